//! What lowerings share: long grids over two axes, long operands over several bindings, the macros of CUDA kernels.

use std::ops::Range;

use crate::device::Caps;
use crate::dtype::{ALIGN, DType, Nf4Layout, Ty};
use crate::ops::{Arg, CudaLaunch, Lower};

/// `groups` workgroups over x and y; kernels find their number by `wg.y * num_wg.x + wg.x` and skip those beyond
/// the end.
pub fn grid(groups: usize, caps: &Caps) -> [u32; 3] {
    let most = (caps.max_groups as usize).clamp(1, 65535);
    let y = groups.div_ceil(most).max(1);
    [groups.div_ceil(y).max(1) as u32, y as u32, 1]
}

/// Launches of at most [`Caps::max_flops`] that together are `launch`: each is some of its `blocks`, with the number of the
/// first as a last parameter. `grid` is that of so many.
pub fn short(launch: CudaLaunch, blocks: usize, caps: &Caps, grid: impl Fn(usize) -> [u32; 3]) -> Vec<CudaLaunch> {
    let blocks = blocks.max(1);
    let parts = launch.flops.div_ceil(caps.max_flops.max(1)).clamp(1, blocks as u64) as usize;
    let each = blocks.div_ceil(parts);
    let part = |first: usize| {
        let count = each.min(blocks - first);
        let mut part = CudaLaunch { grid: grid(count), ..launch.clone() };
        part.params.push(first as u32);
        part.flops = (u128::from(launch.flops) * count as u128 / blocks as u128) as u64;
        part
    };
    (0..blocks).step_by(each).map(part).collect()
}

/// Cuts `len` elements of four bytes into ranges that can be bound.
pub fn flat(len: usize, caps: &Caps) -> Vec<Range<usize>> {
    rows(len, 1, caps)
}

/// Cuts `rows` rows of `cols` elements of four bytes into ranges that can be bound and start on a boundary.
pub fn rows(rows: usize, cols: usize, caps: &Caps) -> Vec<Range<usize>> {
    rows_of(DType::F32, rows, cols, caps)
}

/// The same of activations in `dtype`; ranges can be bound in f32 too.
pub fn rows_of(dtype: DType, rows: usize, cols: usize, caps: &Caps) -> Vec<Range<usize>> {
    let step = super::quant::row_step(dtype, cols);
    let limit = caps.max_binding.min(1 << 31) as usize / ALIGN * ALIGN;
    let len = (limit / (4 * cols * step).max(1)).max(1) * step;
    (0..rows).step_by(len).map(|start| start..(start + len).min(rows)).collect()
}

/// The bytes of a range of rows of `cols` elements of four bytes.
pub fn bytes(rows: &Range<usize>, cols: usize) -> Range<u64> {
    (4 * rows.start * cols) as u64..(4 * rows.end * cols) as u64
}

/// The bytes of a range of rows of `cols` activations in `dtype`.
pub fn bytes_of(dtype: DType, rows: &Range<usize>, cols: usize) -> Range<u64> {
    dtype.bytes(rows.start * cols) as u64..dtype.bytes(rows.end * cols) as u64
}

/// Activations that WGSL kernels take at a time (`shaders/common/act.wgsl`), and the symbol that says so.
pub fn unit(dtype: DType) -> usize {
    if dtype == DType::F16 { 4 } else { 1 }
}
pub fn half(dtype: DType) -> Option<&'static str> {
    (dtype == DType::F16).then_some("HALF")
}

/// The macro that tells a CUDA kernel what activations are kept in (`common/types.cuh`).
pub fn act(x: &Ty) -> (&'static str, i64) {
    let code = match x.dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        _ => 0,
    };
    ("ACT", code)
}

/// How many problems a launch of a kernel takes at most, each with the pointers and words of its own (`common/batch.cuh`).
pub fn problems(launch: &CudaLaunch) -> usize {
    match launch.entry {
        "dequantize" | "linear" | "linear_dx" | "linear_wgmma" | "linear_dx_wgmma" | "matmul_wgmma" | "rope" => 3,
        "matmul" => 6,
        _ => 1,
    }
}

/// Whether a kernel's blocks take tiles in turns: its grid, one of all tiles until then, becomes what the card holds at once when
/// its problems are together (`plan/batch.rs`).
pub fn in_turns(launch: &CudaLaunch) -> bool {
    matches!(launch.entry, "linear_wgmma" | "linear_dx_wgmma" | "matmul_wgmma")
}

/// Elements of `x` in 16 bytes: what a thread of a CUDA kernel takes at a time.
pub fn lanes(x: &Ty) -> usize {
    match x.dtype {
        DType::BF16 | DType::F16 => 8,
        _ => 4,
    }
}

/// The macro that tells a CUDA kernel how a weight is stored, and its four pointers (`common/weight.cuh`).
pub fn weight(input: usize, w: &Ty) -> ((&'static str, i64), [Arg; 4]) {
    let plain = [Arg::In(input), Arg::Absent, Arg::Absent, Arg::Absent];
    let nf4 = |double: bool| {
        let layout = Nf4Layout::new(w.len(), double);
        let part = |r: Range<usize>| match r.is_empty() {
            true => Arg::Absent,
            false => Arg::InPart(input, r.start as u64..r.end as u64),
        };
        [part(layout.codes), part(layout.absmax), part(layout.nested), part(layout.offset)]
    };
    match w.dtype {
        DType::BF16 => (("W", 1), plain),
        DType::F16 => (("W", 2), plain),
        DType::Nf4 => (("W", 3), nf4(false)),
        DType::Nf4Dq => (("W", 4), nf4(true)),
        _ => (("W", 0), plain),
    }
}

/// The launch of an entry that is `kernels/common/row.cuh`: output 0 from input 0 and a row, input 1, that meets each of
/// its rows. `more`: parameters after the number of rows, of columns, and of rows a thread.
pub fn with_row(l: &Lower, file: &'static str, entry: &'static str, more: &[u32], flops: usize) -> CudaLaunch {
    const BLOCK: usize = 256;
    let (x, lanes) = (&l.ins[0], lanes(&l.ins[0]));
    let (rows, cols) = (x.rows(), x.cols());
    let block = cols.div_ceil(lanes).next_multiple_of(32).min(BLOCK);
    // Rows that a thread's part of the row serves; a grid's y ends at 65535.
    let each = rows.div_ceil(65535).max(8);
    CudaLaunch {
        file,
        defines: vec![act(x)],
        entry,
        grid: [cols.div_ceil(block * lanes) as u32, rows.div_ceil(each) as u32, 1],
        block: block as u32,
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0), Arg::In(1)],
        params: [rows as u32, cols as u32, each as u32].into_iter().chain(more.iter().copied()).collect(),
        maps: Vec::new(),
        flops: (flops * x.len()) as u64,
    }
}

/// The two launches of `kernels/common/columns.cuh`, which sum over the rows of a matrix.
pub struct Columns {
    x: Ty,
    /// Blocks of rows, and rows of each.
    blocks: usize,
    each: usize,
}

impl Columns {
    pub fn new(x: &Ty) -> Columns {
        // 16 rows a thread: enough to be worth its part in the second pass, and many blocks.
        const EACH: usize = 256;
        // A grid's y ends at 65535.
        let each = x.rows().div_ceil(65535).max(EACH);
        Columns { x: x.clone(), blocks: x.rows().div_ceil(each).max(1), each }
    }

    /// Bytes of the partial sums.
    pub fn workspace(&self) -> u64 {
        4 * (self.blocks * self.x.cols()) as u64
    }

    /// `first`: the operands of the first launch after the partial sums; `acc`: what is added to the sums of output
    /// 0; `more`: parameters of the second.
    pub fn launches(
        &self,
        file: &'static str,
        entries: [&'static str; 2],
        first: Vec<Arg>,
        acc: Arg,
        more: &[u32],
        caps: &Caps,
    ) -> Vec<CudaLaunch> {
        let cols = self.x.cols();
        // 16 threads take 16 bytes each.
        let slab = 16 * lanes(&self.x);
        let partial = Arg::Work(0..self.workspace());
        let launch = |entry, grid, args, params, flops: usize| CudaLaunch {
            file,
            defines: vec![act(&self.x)],
            entry,
            grid,
            block: 256,
            shared: 0,
            args,
            params,
            maps: Vec::new(),
            flops: flops as u64,
        };
        vec![
            launch(
                entries[0],
                [cols.div_ceil(slab) as u32, self.blocks as u32, 1],
                [partial.clone()].into_iter().chain(first).collect(),
                vec![self.x.rows() as u32, cols as u32, self.each as u32],
                3 * self.x.len(),
            ),
            launch(
                entries[1],
                grid(cols.div_ceil(32), caps),
                vec![Arg::Out(0), partial, acc],
                [self.blocks as u32, cols as u32].into_iter().chain(more.iter().copied()).collect(),
                self.blocks * cols,
            ),
        ]
    }
}

/// A length as two words, the low one first.
pub fn words(len: usize) -> [u32; 2] {
    [len as u32, (len as u64 >> 32) as u32]
}
