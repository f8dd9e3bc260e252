//! The CUDA launches of attention: which tiles fit registers and shared memory, and when keys are split.

use std::ops::Range;

use super::{common, farthest, spec, wgmma, words};
use crate::device::{Caps, Target};
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::ops::{Arg, Attention, Attr, CudaLaunch, Lower, launch};

/// Keys of a split are at least this many: less is not worth the second pass.
const SPLIT: usize = 128;
/// Keys are split until each multiprocessor has this many blocks. What sums they are split into depends on the shape and
/// on what [`Caps::rounding`] tells of the card.
const BLOCKS: usize = 2;
/// Threads of the kernels that have a warp for each query and head.
const ROW_THREADS: usize = 128;

/// Whether a multiprocessor holds two blocks of 64 KiB of shared memory each.
fn roomy(caps: &Caps) -> bool {
    caps.workgroup_memory >= 128 << 10
}

/// How a block cuts its head: `kernels/common/attention.cuh` has the meaning of each.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// The least size of heads that kernels are compiled for and that holds this one.
    head: usize,
    warps: usize,
    blocks: usize,
    cols: usize,
    stages: usize,
    dtype: DType,
    bias: bool,
}

impl Tile {
    /// `shape` gives warps, blocks and columns for a size of heads, 16 bits or not.
    fn new(a: &Attention, dtype: DType, shape: impl Fn(usize, bool) -> (usize, usize, usize)) -> Tile {
        let head = [32, 64, 96, 128, 192].into_iter().find(|&class| a.head_dim <= class).unwrap_or(256);
        let (warps, blocks, cols) = shape(head, dtype != DType::F32);
        // Where biases are read, a second block of rows leaves too few registers.
        let blocks = if a.bias { 1 } else { blocks };
        Tile { head, warps, blocks, cols, stages: 1, dtype, bias: a.bias }
    }

    /// Forward: at most 48 KiB for queries, keys and values (64 on cards with room for two such blocks), and no spilled
    /// registers, which from sm_90 on takes narrower tiles. Two blocks of 16 rows a warp halve what tensor cores read of
    /// keys and values; beyond heads of 128 the sums leave no registers for them.
    fn forward(a: &Attention, dtype: DType, caps: &Caps) -> Tile {
        let wide = if roomy(caps) && caps.arch < 90 { 64 } else { 32 };
        Tile::new(a, dtype, |head, narrow| match (head, narrow) {
            (32 | 64, true) => (4, 2, 64),
            (96 | 128, true) => (4, 2, wide),
            (192, true) => (4, 1, 32),
            (_, true) => (4, 1, 16),
            (32 | 64 | 96, false) => (4, 1, 32),
            (128, false) => (4, 1, 16),
            (192, false) => (2, 1, 16),
            (_, false) => (2, 1, 8),
        })
    }

    /// Backward: sums of dk and dv side by side leave registers for half the columns. Two stages where shared memory
    /// has room for two such blocks.
    fn backward(a: &Attention, dtype: DType, caps: &Caps) -> Tile {
        // Before sm_80 a product of 16 features is two instructions, and registers would spill.
        let blocks = if caps.arch >= 80 { 2 } else { 1 };
        let tile = Tile::new(a, dtype, |head, narrow| match (head, narrow) {
            (32 | 64, true) => (4, blocks, 32),
            (96 | 128, true) => (4, 1, 32),
            (192, true) => (2, 1, 32),
            (_, true) => (2, 1, 16),
            (32 | 64, false) => (4, 1, 32),
            (96, false) => (2, 1, 32),
            (128, false) => (2, 1, 16),
            (192, false) => (2, 1, 8),
            (_, false) => (1, 1, 8),
        });
        let stages = if dtype != DType::F32 && roomy(caps) { 2 } else { 1 };
        Tile { stages, ..tile }
    }

    /// Whether the kernel for dq keeps its queries in registers and gives their room to keys.
    fn keep(&self) -> bool {
        self.dtype != DType::F32 && self.head * self.blocks <= 128
    }

    fn rows(&self) -> usize {
        16 * self.blocks * self.warps
    }

    fn threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Bytes of `rows` rows of a tile.
    fn bytes(&self, rows: usize) -> usize {
        rows * self.head * if self.dtype == DType::F32 { 4 } else { 2 }
    }

    /// Bytes of the rows' spans and of what the warps tell each other of them.
    fn spans(&self) -> usize {
        8 * self.rows() + 16 * self.warps
    }

    /// Bytes of what says where each row's biases are.
    fn places(&self) -> usize {
        if self.bias { 8 * self.rows() } else { 0 }
    }

    fn defines(&self) -> Vec<(&'static str, i64)> {
        let mut defines = vec![
            launch::act(&Ty::new(self.dtype, &[1])),
            ("HEAD_DIM", self.head as i64),
            ("WARPS", self.warps as i64),
            ("BLOCKS", self.blocks as i64),
            ("COLS", self.cols as i64),
            ("STAGES", self.stages as i64),
        ];
        defines.extend(self.bias.then_some(("BIAS", 1)));
        defines
    }
}

/// Refuses what the kernels cannot do.
fn check(l: &Lower, a: &Attention, tiles: usize) -> Result<()> {
    let hint = "use --device cpu";
    if a.head_dim > 256 {
        return Err(Error::unsupported(format!("attention with heads of {} on CUDA, at most 256,", a.head_dim), hint));
    }
    // The largest score is found before scores are scaled.
    if !(a.scale > 0.0 && a.scale.is_finite()) {
        return Err(Error::unsupported(format!("attention with a scale of {} on CUDA, not above 0,", a.scale), hint));
    }
    if tiles > 65535 {
        let what = format!("attention over {} tokens at once on CUDA", l.ins[0].rows());
        return Err(Error::unsupported(what, "use fewer --micro-tokens"));
    }
    Ok(())
}

/// What the forward kernel is launched with.
struct Forward {
    tile: Tile,
    /// Heads in a tile.
    pack: usize,
    /// Parts of the keys.
    splits: usize,
    grid: [usize; 2],
}

impl Forward {
    fn new(a: &Attention, ins: &[Ty], caps: &Caps) -> Forward {
        let (queries, keys, group) = (ins[0].rows(), ins[1].rows(), a.heads / a.kv_heads);
        let tile = Tile::forward(a, ins[0].dtype, caps);
        let pack = if queries * group <= tile.rows() { group } else { 1 };
        let grid = [a.heads / pack, (queries * pack).div_ceil(tile.rows())];
        let blocks = (grid[0] * grid[1]).max(1);
        let wanted = caps.workgroups(BLOCKS);
        let most = if a.causal || 2 * blocks > wanted { 1 } else { keys.div_ceil(SPLIT) };
        Forward { tile, pack, splits: wanted.div_ceil(blocks).min(most).max(1), grid }
    }

    /// Bytes of the parts' sums, maxima and totals.
    fn parts(&self, a: &Attention, queries: usize) -> u64 {
        if self.splits > 1 { 4 * (self.splits * a.heads * queries * (a.head_dim + 2)) as u64 } else { 0 }
    }
}

pub fn forward_workspace(attr: &Attr, ins: &[Ty], caps: &Caps) -> u64 {
    match caps.target {
        Target::Cuda => {
            let parts = Forward::new(&spec(attr), ins, caps).parts(&spec(attr), ins[0].rows());
            after(parts, attr, ins).end
        }
        _ => 0,
    }
}

/// Where the kernels find a bias in the scratch memory after its first `start` bytes: the table, one head after the
/// other, then the key at distance 0 of each query. Empty if there is no bias.
pub fn after(start: u64, attr: &Attr, ins: &[Ty]) -> Range<u64> {
    match spec(attr).bias {
        true => start..start + 4 * (ins[4].len() + ins[0].rows()) as u64,
        false => start..start,
    }
}

/// The launch that writes it in the same place, if there is a bias, and the two arguments of the kernels.
fn bias(l: &Lower, tile: &Tile, file: &'static str, start: u64) -> (Option<CudaLaunch>, [Arg; 2]) {
    let a = spec(l.attr);
    let range = after(start, l.attr, l.ins);
    if range.is_empty() {
        return (None, [Arg::Absent, Arg::Absent]);
    }
    let (tokens, table) = (l.ins[0].rows(), l.ins[4].len());
    let columns = range.start..range.start + 4 * table as u64;
    let args = [Arg::Work(columns.clone()), Arg::Work(columns.end..range.end)];
    let counts = [tokens, l.ins[1].rows(), a.heads, farthest(l.attr, l.ins)].map(|n| n as u32);
    let launch = CudaLaunch {
        file,
        defines: tile.defines(),
        entry: "attention_bias",
        grid: launch::grid(table.max(tokens).div_ceil(ROW_THREADS), l.caps),
        block: ROW_THREADS as u32,
        shared: 0,
        args: args.iter().cloned().chain([4, 5, 3].map(Arg::In)).collect(),
        params: counts.into_iter().chain([a.scale.to_bits()]).collect(),
        maps: Vec::new(),
        flops: table as u64,
    };
    (Some(launch), args)
}

pub fn forward(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let a = spec(l.attr);
    let queries = l.ins[0].rows();
    let f = Forward::new(&a, l.ins, l.caps);
    check(l, &a, f.grid[1])?;
    if f.pack == 1 && f.splits == 1 && wgmma::takes(&a, l.ins, l.caps) {
        return Ok(wgmma::forward(l));
    }
    let bytes = f.parts(&a, queries);
    let parts = if bytes > 0 { Arg::Work(0..bytes) } else { Arg::Absent };
    let tile = &f.tile;
    let (before, of_bias) = bias(l, tile, "attention", bytes);
    let mut args = vec![Arg::Out(0), Arg::Out(1)];
    args.extend((0..4).map(Arg::In).chain(of_bias));
    args.push(parts.clone());
    let mut params = words(l, &a).to_vec();
    params.extend([f.pack as u32, farthest(l.attr, l.ins) as u32]);
    let mut launches: Vec<CudaLaunch> = before.into_iter().collect();
    let tiles = CudaLaunch {
        file: "attention",
        defines: tile.defines(),
        entry: "attention",
        grid: [0; 3],
        block: tile.threads(),
        shared: (tile.bytes(tile.rows() + 2 * tile.cols) + tile.spans() + tile.places()) as u32,
        args,
        params,
        maps: Vec::new(),
        flops: super::cost(l.attr, l.ins, 2).flops,
    };
    let grid = |tiles: usize| [f.grid[0] as u32, tiles as u32, f.splits as u32];
    launches.extend(launch::short(tiles, f.grid[1], l.caps, grid));
    if f.splits > 1 {
        launches.push(CudaLaunch {
            file: "attention",
            defines: tile.defines(),
            entry: "attention_merge",
            grid: launch::grid((queries * a.heads * 32).div_ceil(ROW_THREADS), l.caps),
            block: ROW_THREADS as u32,
            shared: 0,
            args: vec![Arg::Out(0), Arg::Out(1), parts],
            params: vec![queries as u32, a.head_dim as u32, a.heads as u32, f.splits as u32],
            maps: Vec::new(),
            flops: (2 * f.splits * queries * a.heads * a.head_dim) as u64,
        });
    }
    Ok(launches)
}

pub fn backward(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let a = spec(l.attr);
    let (tokens, keys) = (l.ins[0].rows(), l.ins[1].rows());
    let tile = Tile::backward(&a, l.ins[0].dtype, l.caps);
    let [of_queries, of_keys] = [tokens, keys].map(|rows| rows.div_ceil(tile.rows()));
    check(l, &a, of_queries.max(of_keys))?;
    let flops = |products| super::cost(l.attr, l.ins, products).flops;
    let at = common(&a);
    let bytes = 8 * (a.heads * tokens) as u64;
    let stats = Arg::Work(0..bytes);
    let (before, of_bias) = bias(l, &tile, "attention_bwd", bytes);
    let delta = CudaLaunch {
        file: "attention_bwd",
        defines: tile.defines(),
        entry: "attention_delta",
        grid: launch::grid((tokens * a.heads * 32).div_ceil(ROW_THREADS), l.caps),
        block: ROW_THREADS as u32,
        shared: 0,
        args: [stats.clone()].into_iter().chain((at + 1..at + 4).map(Arg::In)).collect(),
        params: vec![tokens as u32, a.head_dim as u32, a.heads as u32],
        maps: Vec::new(),
        flops: 2 * l.ins[0].len() as u64,
    };
    if wgmma::takes(&a, l.ins, l.caps) {
        return Ok([delta].into_iter().chain(wgmma::backward(l, stats)).collect());
    }
    let tiled = |entry, [heads, tiles]: [usize; 2], shared: usize, args: Vec<Arg>, products| {
        let all = CudaLaunch {
            file: "attention_bwd",
            defines: tile.defines(),
            entry,
            grid: [0; 3],
            block: tile.threads(),
            shared: (shared + tile.spans()) as u32,
            args: args.into_iter().chain(of_bias.clone()).collect(),
            params: words(l, &a).into_iter().chain([farthest(l.attr, l.ins) as u32]).collect(),
            maps: Vec::new(),
            flops: flops(products),
        };
        launch::short(all, tiles, l.caps, |tiles| [heads as u32, tiles as u32, 1])
    };
    let (left, right) = (tile.bytes(2 * tile.rows()), tile.bytes(2 * tile.stages * tile.cols));
    let [q, k, v, key_range, query_range, dout] = [0, 1, 2, 3, at, at + 3].map(Arg::In);
    let args = vec![Arg::Out(0), q.clone(), k.clone(), v.clone(), dout.clone(), stats.clone(), key_range];
    let shared = if tile.keep() { left.max(right) } else { left + right };
    let dq = tiled("attention_dq", [a.heads, of_queries], shared + tile.places(), args, 3);
    let mut launches: Vec<CudaLaunch> = before.into_iter().chain([delta]).chain(dq).collect();
    // Of each query that is there: lse and δ, and with a bias the key at distance 0.
    let shared = left + right + (if a.bias { 12 } else { 8 }) * tile.stages * tile.cols;
    if tile.head <= 128 {
        let args = vec![Arg::Out(1), Arg::Out(2), q, k, v, dout, stats, query_range];
        launches.extend(tiled("attention_dkv", [a.kv_heads, of_keys], shared, args, 4));
    } else {
        let args = vec![Arg::Out(1), q.clone(), k.clone(), v, dout.clone(), stats.clone(), query_range.clone()];
        launches.extend(tiled("attention_dk", [a.kv_heads, of_keys], shared, args, 3));
        let args = vec![Arg::Out(2), q, k, dout, stats, query_range];
        launches.extend(tiled("attention_dv", [a.kv_heads, of_keys], shared, args, 2));
    }
    Ok(launches)
}

pub fn dbias(l: &Lower) -> Result<Vec<CudaLaunch>> {
    const THREADS: u32 = 256;
    let a = spec(l.attr);
    check(l, &a, 1)?;
    let all = CudaLaunch {
        file: "attention_dbias",
        defines: vec![launch::act(&l.ins[0])],
        entry: "attention_dbias",
        grid: [0; 3],
        block: THREADS,
        shared: 0,
        args: [Arg::Out(0)].into_iter().chain((0..l.ins.len()).map(Arg::In)).collect(),
        params: words(l, &a).into_iter().chain([farthest(l.attr, l.ins) as u32]).collect(),
        maps: Vec::new(),
        flops: super::cost(l.attr, l.ins, 2).flops,
    };
    Ok(launch::short(all, l.ins[4].rows(), l.caps, |rows| [rows as u32, a.heads as u32, 1]))
}
