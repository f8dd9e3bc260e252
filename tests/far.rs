//! Dropout where elements have numbers that 32 bits do not hold, which no test has the memory for: of operands that large
//! only the rows that one launch touches are there.

mod common;

use common::devices::Device;
#[cfg(feature = "wgpu")]
use trimtab::backend::{Kernel, Launch, Slice};
use trimtab::cpu::philox::Mask;
use trimtab::dtype::Ty;
#[cfg(feature = "wgpu")]
use trimtab::ops::elementwise::DROPOUT;
use trimtab::ops::linear::{LINEAR, LINEAR_DX};
use trimtab::ops::{Attr, Dropout, Linear, Lora, OpDef};
#[cfg(feature = "wgpu")]
use trimtab::plan::{Operands, lower};

const RNG: [u32; 4] = [11, 7, 3, 1];
const DROP: Dropout = Dropout { p: 0.25, site: 3 };
/// Columns of x.
const K: usize = 512;
/// First rows: their elements are below 2³², reach it, 2³³, 2³⁴, and beyond.
const ROWS: [usize; 5] = [1 << 22, (1 << 23) - 1024, 1 << 23, 1 << 25, (1 << 25) + (1 << 24)];

/// What the CPU says of the elements from `row` on, `cols` of each of `rows` rows.
fn factors(row: usize, rows: usize, cols: usize) -> Vec<f32> {
    let mask = Mask::new(RNG, DROP);
    (row..row + rows).flat_map(|r| (0..cols).map(move |c| r * K + c)).map(|i| mask.factor(i)).collect()
}

/// A linear layer on `t` tokens, or its gradient, and what its operands are: x or dy, W, then A and B or dyb and A. The part
/// that drops out gives the factors themselves: x and dyb are 1, and A has a 1 for each feature of xa, or is 1.
struct Case {
    op: &'static OpDef,
    /// Rows of W, and the rank.
    n: usize,
    r: usize,
}

const FORWARD: Case = Case { op: &LINEAR, n: 8, r: 16 };
const BACKWARD: Case = Case { op: &LINEAR_DX, n: 8, r: 4 };

impl Case {
    fn attr(&self) -> Attr {
        Attr::Linear(Linear { lora: Some(Lora { scale: 1.0, dropout: Some(DROP) }), ..Linear::default() })
    }

    fn forward(&self) -> bool {
        std::ptr::eq(self.op, &LINEAR)
    }

    fn ins(&self, t: usize) -> Vec<Ty> {
        let Case { n, r, .. } = *self;
        let shapes = match self.forward() {
            true => [[t, K], [n, K], [r, K], [n, r]],
            false => [[t, n], [n, K], [t, r], [r, K]],
        };
        shapes.iter().map(|s| Ty::f32(s)).chain([Ty::u32(&[4])]).collect()
    }

    /// The values of operand `i`, of `t` tokens.
    fn values(&self, i: usize, t: usize) -> Vec<f32> {
        let ones_at = |rows: usize, cols: usize, at: &dyn Fn(usize, usize) -> bool| -> Vec<f32> {
            (0..rows * cols).map(|j| at(j / cols, j % cols) as u8 as f32).collect()
        };
        match (self.forward(), i) {
            (true, 0) => vec![1.0; t * K],
            (true, 2) => ones_at(self.r, K, &|row, col| row == col),
            (false, 2) => ones_at(t, self.r, &|_, col| col == 0),
            (false, 3) => ones_at(self.r, K, &|row, _| row == 0),
            _ => vec![0.0; self.ins(t)[i].len()],
        }
    }

    /// The columns of a row that the launch of interest writes: of xa, or of dx.
    fn cols(&self) -> usize {
        if self.forward() { self.r } else { K }
    }
}

fn text(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// One block of CUDA's launches: operands are so many rows, and their addresses those of row 0, which is not there.
#[cfg(feature = "cuda")]
fn block(case: &Case, row: usize, arch: u32) -> Vec<f32> {
    use ptxsim::{Launch as Grid, Memory, Module, Param, Schedule, run};
    use trimtab::backend::cuda::{Output, caps, compile};
    use trimtab::ops::{Arg, Lower};
    const AT_ONCE: usize = 128;
    let (attr, ins, caps) = (case.attr(), case.ins(row + AT_ONCE), caps("".into(), arch));
    let outs = case.op.types(&attr, &ins).unwrap();
    let shared = vec![None; outs.len()];
    let lower = Lower { attr: &attr, ins: &ins, outs: &outs, shared: &shared, caps: &caps };
    let all = (case.op.cuda)(&lower).unwrap();
    let mut launch = all.into_iter().find(|l| l.file == if case.forward() { "matmul" } else { "linear_dx" }).unwrap();
    let (rows, cols) = match launch.defines.iter().find(|d| d.0 == "TILE").unwrap().1 {
        0 => (128, 128),
        1 => (64, 64),
        _ => (64, 16),
    };
    // Blocks go down strips of eight rows of tiles.
    assert_eq!((row % (8 * rows), launch.grid[2]), (0, 1));
    *launch.params.last_mut().unwrap() = (row / rows * case.cols().div_ceil(cols)) as u32;

    let mut memory = Memory::new();
    let mut result = 0;
    let mut params = Vec::new();
    for arg in &launch.args {
        let (out, i) = match arg {
            Arg::Out(_) => (true, 0),
            Arg::In(i) => (false, *i),
            Arg::Absent => {
                params.push(Param::U64(0));
                continue;
            }
            other => panic!("{other:?}"),
        };
        let (bytes, width) = match i {
            _ if out => (vec![0; 4 * AT_ONCE * case.cols()], case.cols()),
            4 => (RNG.iter().flat_map(|w| w.to_le_bytes()).collect(), 0),
            i => {
                let by_token = case.ins(2)[i].shape[0] == 2;
                (text(&case.values(i, AT_ONCE)), if by_token { case.ins(2)[i].cols() } else { 0 })
            }
        };
        let address = memory.alloc("operand", &bytes);
        result = if out { address } else { result };
        params.push(Param::U64(address.wrapping_sub(4 * (row * width) as u64)));
    }
    let ptx = compile(launch.file, &launch.defines, arch, Output::Ptx).unwrap().code;
    let module = Module::parse(&String::from_utf8(ptx).unwrap()).unwrap();
    // The kernel takes several problems, of which this is the first and has all blocks.
    let sizes = module.parameters(launch.entry).unwrap();
    let pointers = sizes.iter().filter(|&&bytes| bytes == 8).count();
    let problems = pointers / launch.args.len();
    params.resize(pointers, Param::U64(0));
    params.extend(launch.params.iter().map(|&word| Param::U32(word)));
    params.resize(sizes.len() - (problems - 1), Param::U32(0));
    params.resize(sizes.len(), Param::U32(u32::MAX));
    let (entry, shared_bytes, schedule) = (launch.entry, launch.shared, Schedule::all()[0]);
    let grid = Grid { entry, grid: [1, 1, 1], block: [launch.block, 1, 1], shared_bytes, params: &params, schedule };
    run(&module, &mut memory, &grid).unwrap();
    let found = floats(memory.read(result));
    (0..rows.min(64)).flat_map(|t| found[t * case.cols()..][..cols.min(case.cols())].to_vec()).collect()
}

#[cfg(feature = "cuda")]
#[test]
fn far_elements_are_dropped_alike_on_cuda() {
    if Device::ptx(80).is_none() {
        return;
    }
    for case in [&FORWARD, &BACKWARD] {
        let mut seen: Vec<Vec<f32>> = Vec::new();
        for row in ROWS {
            let found = block(case, row, 80);
            let cols = found.len() / 64;
            assert!(found == factors(row, 64, cols), "{} from row {row} on", case.op.name);
            // The control: no two places have one mask.
            assert!(!seen.contains(&found), "{} repeats a mask at row {row}", case.op.name);
            seen.push(found);
        }
    }
}

/// A WGSL dispatch on `t` tokens that takes itself for one on the tokens from `row` on.
#[cfg(feature = "wgpu")]
fn moved(launch: &mut Launch, row: usize) {
    let Kernel::Wgsl(dispatch) = &mut launch.kernel else { panic!("no WGSL") };
    let first = (row * K) as u64;
    let words = [first as u32, (first >> 32) as u32];
    match dispatch.shader {
        "matmul" => dispatch.params[10..12].copy_from_slice(&words),
        "elementwise" => dispatch.params[1..3].copy_from_slice(&words),
        "linear_dx" => dispatch.params[9] = row as u32,
        other => panic!("{other}"),
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn far_elements_are_dropped_alike_on_wgpu() {
    const T: usize = 8;
    let Some(device) = Device::wgpu() else { return };
    let mut backend = device.open();
    let linear = |case: &Case| (case.op, case.attr(), case.ins(T), case.forward() as usize);
    let alone = (&DROPOUT, Attr::Dropout(DROP), vec![Ty::f32(&[T, K]), Ty::u32(&[4])], 0);
    for (case, (op, attr, ins, out)) in
        [(&FORWARD, linear(&FORWARD)), (&BACKWARD, linear(&BACKWARD)), (&FORWARD, alone)]
    {
        let outs = op.types(&attr, &ins).unwrap();
        let scratch = (op.workspace)(&attr, &ins, backend.caps());
        let mut room = |ty: &Ty| {
            let bytes = ty.bytes() as u64;
            Slice { buffer: backend.alloc(bytes).unwrap(), offset: 0, bytes }
        };
        let at = Operands {
            outs: outs.iter().map(&mut room).collect(),
            ins: ins.iter().map(&mut room).collect(),
            work: Some(scratch).filter(|&bytes| bytes > 0).map(|bytes| Slice {
                buffer: backend.alloc(bytes).unwrap(),
                offset: 0,
                bytes,
            }),
        };
        for (i, &place) in at.ins.iter().enumerate() {
            let bytes = match i + 1 == ins.len() {
                true => RNG.iter().flat_map(|w| w.to_le_bytes()).collect(),
                false => text(&case.values(i, T)),
            };
            backend.upload(place, &bytes).unwrap();
        }
        let launches = lower(op, "test", &attr, &ins, &outs, &at, backend.caps()).unwrap();
        // The dropping one, and the sum of its parts if its sum is split.
        let sums = |launch: &Launch| matches!(&launch.kernel, Kernel::Wgsl(d) if d.shader == "sum_parts");
        let count = 1 + launches.get(1).is_some_and(sums) as usize;
        let mut launches: Vec<Launch> = launches.into_iter().take(count).collect();
        let cols = outs[out].cols();
        for row in ROWS {
            moved(&mut launches[0], row);
            let recording = backend.record(&launches).unwrap();
            backend.replay(recording).unwrap();
            let mut found = vec![0; outs[out].bytes()];
            backend.download(at.outs[out], &mut found).unwrap();
            assert!(floats(&found) == factors(row, T, cols), "{} from row {row} on", op.name);
        }
    }
}

/// The control: element numbers in 32 bits would repeat the mask of the first rows at 2³², those of groups at 2³⁴.
#[test]
fn control_far_masks_differ_from_near_ones() {
    for row in ROWS {
        assert_ne!(factors(row, 64, K), factors(row % (1 << 22), 64, K), "row {row}");
    }
}
