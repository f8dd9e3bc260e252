//! Adafactor: second moments of a matrix kept as means of its rows and of its columns. All tensors of a flat stretch
//! are updated by one node, which finds them by a table.

use super::{NORMS, case, clip, clip_f64, copies};
use crate::cpu::math::vectorized;
use crate::cpu::par;
use crate::dtype::Ty;
use crate::error::Result;
use crate::ops::launch::{bytes, flat, grid, words};
use crate::ops::{Arg, Attr, Cost, CudaLaunch, Grad, HostCall, Lower, OpDef, Sample, SampleIn, WgslDispatch, check};

/// Words of a row of the table: where the tensor begins in p, its rows and columns, and where its row and column
/// means begin in r and c.
pub const ENTRY: usize = 5;

/// `adafactor` [p, g F32[N], r F32[R], c F32[C], table U32[K,5], sumsq F32[1], hyper F32[8]] → p′, r′, c′ (Shazeer &
/// Stern 2018, arXiv:1804.04235), in the order of transformers' `Adafactor` with `scale_parameter=False`,
/// `relative_step=False` and no first moment.
///
/// hyper = [lr, 1−β₂ₜ = t^decay_rate, eps, largest root mean square of an update, weight decay, –, –, largest norm
/// (≤ 0: no clipping)]. For each of the K tensors, rows i and columns j:
/// g ← g·min(1, largest / (√sumsq + 1e-6)); r_i ← r_i + (1−β₂ₜ)(mean_j g² + eps − r_i); c_j ← c_j + (1−β₂ₜ)(mean_i g² +
/// eps − c_j); u = g / √(r_i / mean(r)) / √c_j; p ← p·(1 − lr·decay) − lr·u / max(1, rms(u) / largest rms).
/// If `sumsq` is not finite, nothing changes.
///
/// A vector is a matrix of one row: its only r divided by their mean is 1, and c is the second moment of each element,
/// which is what transformers keeps for vectors. Rows of the table ascend in all three beginnings.
pub static ADAFACTOR: OpDef = OpDef {
    name: "adafactor",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [p, g, r, c, table, rest @ ..]) => {
            check::float("p", p)?;
            check::is("g", g, p)?;
            check::is("r", r, &Ty::f32(&[r.len()]))?;
            check::is("c", c, &Ty::f32(&[c.len()]))?;
            check::is("table", table, &Ty::u32(&[table.rows(), ENTRY]))?;
            super::scalars(rest)?;
            Ok(vec![p.clone(), r.clone(), c.clone()])
        }
        _ => Err(check::refuse("p, g, r, c, table, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, r, c, table, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let [lr, rate, eps, largest_rms, decay, _, _, largest] = std::array::from_fn(|i| hyper.data[i]);
        let (mut p, mut r, mut c) = (p.clone(), r.clone(), c.clone());
        let Some(clip) = clip_f64(sumsq, largest) else { return vec![p, r, c] };
        for entry in table.data.chunks(ENTRY) {
            let [start, rows, cols, first_r, first_c] = std::array::from_fn(|i| entry[i] as usize);
            let g = |i: usize, j: usize| clip * g.data[start + i * cols + j];
            let (r, c) = (&mut r.data[first_r..][..rows], &mut c.data[first_c..][..cols]);
            for (i, r) in r.iter_mut().enumerate() {
                let mean = (0..cols).map(|j| g(i, j).powi(2)).sum::<f64>() / cols as f64;
                *r += rate * (mean + eps - *r);
            }
            for (j, c) in c.iter_mut().enumerate() {
                let mean = (0..rows).map(|i| g(i, j).powi(2)).sum::<f64>() / rows as f64;
                *c += rate * (mean + eps - *c);
            }
            let mean = r.iter().sum::<f64>() / rows as f64;
            let u = |i: usize, j: usize| g(i, j) / (r[i] / mean).sqrt() / c[j].sqrt();
            let all = || (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
            let rms = (all().map(|(i, j)| u(i, j).powi(2)).sum::<f64>() / (rows * cols) as f64).sqrt();
            for (i, j) in all() {
                let p = &mut p.data[start + i * cols + j];
                *p = *p * (1.0 - lr * decay) - lr * u(i, j) / (rms / largest_rms).max(1.0);
            }
        }
        vec![p, r, c]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1), (3, 2)],
    // The longest sum is that of all of a tensor's squares.
    cost: |_, ins, _| Cost { flops: 16 * ins[0].len() as u64, terms: ins[0].len() },
    workspace: |_, ins, caps| match caps.target {
        crate::device::Target::Host | crate::device::Target::Null => 8 * ins[2].len() as u64,
        _ => 4 * room(ins).end as u64,
    },
    host,
    wgsl,
    cuda,
    samples,
    cases: |s| {
        const COLS: usize = 1024;
        let (words, [n, rows, cols]) = table(&[(s.params.div_ceil(COLS), s.params.min(COLS))]);
        let moments = |n: usize| SampleIn::uniform(Ty::f32(&[n]), 0.1, 1.0);
        let table = SampleIn::values(Ty::u32(&[1, ENTRY]), words.iter().map(|&w| w as f64).collect());
        let ins = vec![SampleIn::f32(&[n]), SampleIn::f32(&[n]), moments(rows), moments(cols), table];
        case("a matrix", ins, [0.01, 0.3, 1e-30, 0.9, 0.1, 0.0, 0.0], &[(0, 0), (2, 1), (3, 2)])
    },
    ..OpDef::COMPUTE
};

/// Scratch memory, in elements: a sum for each row, then for each column, then the mean of r and the step's length
/// for each tensor.
struct Room {
    cols: usize,
    means: usize,
    steps: usize,
    end: usize,
}

fn room(ins: &[Ty]) -> Room {
    let (cols, tensors) = (ins[2].len(), ins[4].rows());
    let means = cols + ins[3].len();
    Room { cols, means, steps: means + tensors, end: means + 2 * tensors }
}

fn host(call: &HostCall) {
    let (table, h) = (call.input::<u32>(4), call.input::<f32>(6));
    let [lr, rate, eps, largest_rms, decay] = std::array::from_fn(|i| h[i]);
    let Some(clip) = clip(call.input::<f32>(5)[0], h[7]) else {
        return ADAFACTOR.in_place.iter().for_each(|&(from, out)| call.map(out, [from], |[x]| x));
    };
    // What is between the tensors stays as it is.
    let p = call.accumulator::<f32>(0, 0);
    let (r, c) = (call.accumulator::<f32>(2, 1), call.accumulator::<f32>(3, 2));
    let g = call.input::<f32>(1);
    for entry in table.chunks_exact(ENTRY) {
        let [start, rows, cols, first_r, first_c] = std::array::from_fn(|i| entry[i] as usize);
        let (p, g) = (&mut p[start..][..rows * cols], &g[start..][..rows * cols]);
        let (r, c) = (&mut r[first_r..][..rows], &mut c[first_c..][..cols]);
        let squares = &mut call.work::<f64>()[..rows];
        // Rows so that a thread has some ten thousand elements, and columns likewise.
        let some_rows = (1 << 14) / cols.max(1) + 1;
        par::chunks(r, some_rows, |piece, r| {
            for (g, r) in g[piece * some_rows * cols..].chunks_exact(cols).zip(r) {
                *r += rate * (sum_of_squares(g, clip) as f32 / cols as f32 + eps - *r);
            }
        });
        const COLS: usize = 64;
        par::chunks(c, COLS, |piece, c| {
            let mut sums = [0f64; COLS];
            for row in g.chunks_exact(cols) {
                for (sum, g) in sums.iter_mut().zip(&row[piece * COLS..][..c.len()]) {
                    *sum += (clip * g * (clip * g)) as f64;
                }
            }
            for (c, sum) in c.iter_mut().zip(sums) {
                *c += rate * (sum as f32 / rows as f32 + eps - *c);
            }
        });
        let mean = (r.iter().map(|&r| r as f64).sum::<f64>() / rows as f64) as f32;
        let (r, c) = (&*r, &*c);
        let by_row = |i: usize| (r[i] / mean).sqrt().recip();
        let update = |by_row: f32, c: f32, g: f32| clip * g * (by_row * c.sqrt().recip());
        par::chunks(squares, some_rows, |piece, squares| {
            for (k, square) in squares.iter_mut().enumerate() {
                let i = piece * some_rows + k;
                let (by_row, row) = (by_row(i), g[i * cols..][..cols].iter().zip(c));
                *square = row.map(|(&g, &c)| (update(by_row, c, g) as f64).powi(2)).sum();
            }
        });
        let rms = (squares.iter().sum::<f64>() / (rows * cols) as f64).sqrt() as f32;
        let (keep, step) = (1.0 - lr * decay, lr / (rms / largest_rms).max(1.0));
        par::chunks(p, some_rows * cols, |piece, p| {
            vectorized!({
                for (k, p) in p.chunks_exact_mut(cols).enumerate() {
                    let i = piece * some_rows + k;
                    let by_row = by_row(i);
                    for ((p, &g), &c) in p.iter_mut().zip(&g[i * cols..][..cols]).zip(c) {
                        *p = *p * keep - step * update(by_row, c, g);
                    }
                }
            });
        });
    }
}

fn sum_of_squares(g: &[f32], clip: f32) -> f64 {
    const LANES: usize = 16;
    vectorized!({
        let (body, tail) = g.as_chunks::<LANES>();
        let mut lanes = [0f64; LANES];
        for chunk in body {
            for (sum, g) in lanes.iter_mut().zip(chunk) {
                *sum += (clip * g * (clip * g)) as f64;
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(|g| (clip * g * (clip * g)) as f64).sum::<f64>()
    })
}

/// Rows that a workgroup takes, 32 invocations each; columns, eight invocations each.
const ROWS: usize = 8;
const COLS: usize = 32;

/// The launches on a GPU, each for all tensors: (entry, workgroups, whether it goes over the gradient). The gradient
/// may be bound in pieces; sums then go on from piece to piece.
fn stages(ins: &[Ty]) -> [(&'static str, usize, bool); 6] {
    let (rows, cols, tensors) = (ins[2].len(), ins[3].len(), ins[4].rows());
    [
        ("row_sums", rows.div_ceil(ROWS), true),
        ("col_sums", cols.div_ceil(COLS), true),
        ("factors", tensors, false),
        ("row_updates", rows.div_ceil(ROWS), true),
        ("step_lengths", tensors, false),
        ("update", rows.div_ceil(ROWS), true),
    ]
}

/// The parameters of all kernels: the piece of the gradient, and where the parts of the scratch memory begin.
fn params(ins: &[Ty], piece: &std::ops::Range<usize>) -> Vec<u32> {
    let room = room(ins);
    let sizes = [piece.start, piece.end, ins[4].rows(), ins[2].len(), ins[3].len(), room.cols, room.means, room.steps];
    sizes.map(|x| x as u32).to_vec()
}

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let n = l.ins[0].len();
    let mut all = copies(l, ADAFACTOR.in_place);
    for (entry, groups, over_gradient) in stages(l.ins) {
        let pieces = if over_gradient { flat(n, l.caps) } else { std::iter::once(0..n).collect() };
        for piece in pieces {
            let g = Arg::InPart(1, bytes(&piece, 1));
            let work = Arg::Work(0..4 * room(l.ins).end as u64);
            let (define, mut args) = match entry {
                "row_sums" | "col_sums" => ("SUMS", vec![g]),
                "factors" => ("FACTORS", vec![Arg::Out(1), Arg::Out(2)]),
                "row_updates" => ("UPDATES", vec![Arg::Out(1), Arg::Out(2), g]),
                "step_lengths" => ("STEPS", Vec::new()),
                _ => ("UPDATE", vec![Arg::OutPart(0, bytes(&piece, 1)), Arg::Out(1), Arg::Out(2), g]),
            };
            args.extend([work, Arg::In(4), Arg::In(5), Arg::In(6)]);
            all.push(WgslDispatch {
                shader: "optim_adafactor",
                defines: vec![define],
                entry,
                constants: Vec::new(),
                grid: grid(groups, l.caps),
                args,
                params: params(l.ins, &piece),
                flops: 4 * piece.len() as u64,
            });
        }
    }
    Ok(all)
}

fn cuda(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let n = l.ins[0].len();
    let launch = |(entry, groups, _): (&'static str, usize, bool)| CudaLaunch {
        file: "optim_adafactor",
        defines: Vec::new(),
        entry,
        grid: grid(groups, l.caps),
        block: 256,
        shared: 0,
        args: vec![
            Arg::Out(0),
            Arg::Out(1),
            Arg::Out(2),
            Arg::In(0),
            Arg::In(1),
            Arg::In(2),
            Arg::In(3),
            Arg::Work(0..4 * room(l.ins).end as u64),
            Arg::In(4),
            Arg::In(5),
            Arg::In(6),
        ],
        params: [&words(n)[..], &params(l.ins, &(0..n))[2..]].concat(),
        maps: Vec::new(),
        flops: 4 * n as u64,
    };
    // The update goes by elements, four a thread, so that the gaps between tensors are carried over too.
    let stages = stages(l.ins).map(|(entry, groups, over)| match entry {
        "update" => (entry, n.div_ceil(4 * 256), over),
        _ => (entry, groups, over),
    });
    Ok(stages.map(launch).to_vec())
}

/// A table of tensors of these rows and columns in a flat stretch, each on a boundary of 64 elements: the table, and
/// the lengths of p, r and c.
pub fn table(tensors: &[(usize, usize)]) -> (Vec<u32>, [usize; 3]) {
    let mut ends = [0; 3];
    let mut words = Vec::with_capacity(ENTRY * tensors.len());
    for &(rows, cols) in tensors {
        words.extend([ends[0], rows, cols, ends[1], ends[2]].map(|x| x as u32));
        ends[0] += (rows * cols).next_multiple_of(crate::dtype::ALIGN / 4);
        ends[1] += rows;
        ends[2] += cols;
    }
    (words, ends)
}

fn samples() -> Vec<Sample> {
    let shapes: [&[(usize, usize)]; 5] = [
        &[(1, 1)],
        &[(3, 5), (1, 7), (17, 1)],
        &[(33, 9), (1, 300), (7, 65), (40, 130), (130, 96)],
        &[(16, 33)],
        &[(5, 4)],
    ];
    let mut all = Vec::new();
    for ((name, sumsq, largest), shapes) in NORMS.into_iter().zip(shapes) {
        let (table, [n, rows, cols]) = table(shapes);
        // Nothing but zeros is between tensors.
        let mut g = vec![0.0; n];
        for (k, entry) in table.chunks(ENTRY).enumerate() {
            for i in 0..(entry[1] * entry[2]) as usize {
                let hash = (i as u32 + 977 * k as u32).wrapping_mul(2_654_435_761) >> 8;
                g[entry[0] as usize + i] = hash as f64 / (1 << 23) as f64 - 1.0;
            }
        }
        let words = table.iter().map(|&w| w as f64).collect();
        let rate = if shapes.len() == 1 { 1.0 } else { 0.3 };
        let ins = vec![
            SampleIn::normal(Ty::f32(&[n])),
            SampleIn::values(Ty::f32(&[n]), g),
            SampleIn::uniform(Ty::f32(&[rows]), 0.1, 1.0),
            SampleIn::uniform(Ty::f32(&[cols]), 0.1, 1.0),
            SampleIn::values(Ty::u32(&[shapes.len(), ENTRY]), words),
            SampleIn::values(Ty::f32(&[1]), vec![sumsq]),
            SampleIn::values(Ty::f32(&[8]), vec![0.01, rate, 1e-30, 0.9, 0.1, 0.0, 0.0, largest]),
        ];
        all.push(Sample::new(name, Attr::None, ins));
    }
    all
}
