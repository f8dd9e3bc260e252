//! Launches of the attention kernels.

use super::{common, farthest, spec, words};
use crate::device::Caps;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::ops::{Arg, Attention, Attr, Lower, WgslDispatch, launch};

/// Rows of a tile, as in `shaders/common/attention.wgsl`.
const ROWS: usize = 64;
/// Up to this many queries have a workgroup each.
const FEW: usize = 8;
/// A dispatch stays below this: drivers stop what runs for seconds.
const MAX_FLOPS: u64 = 20_000_000_000;

/// Refuses what the kernels cannot do.
fn check(l: &Lower, a: &Attention) -> Result<()> {
    if a.head_dim > 256 {
        let hint = "256 is the most; use --device cpu";
        return Err(Error::unsupported(format!("attention with heads of {} on wgpu", a.head_dim), hint));
    }
    let largest = l.ins.iter().chain(l.outs).map(Ty::bytes).max().unwrap_or(0) as u64;
    if largest > l.caps.max_binding {
        let what = format!("attention over {} tokens, with operands of {largest} bytes,", l.ins[0].rows());
        let hint = format!("the device binds {} bytes at a time; use fewer --micro-tokens", l.caps.max_binding);
        return Err(Error::unsupported(what, hint));
    }
    Ok(())
}

/// Whether heads are such that the kernels take activations in f16.
pub fn takes_half(attr: &Attr, _: &[Ty], _: &Caps) -> bool {
    spec(attr).head_dim.is_multiple_of(4)
}

/// The variant for the head size, and of one that computes only a part.
fn defines(a: &Attention, act: DType, only: Option<&'static str>) -> Vec<&'static str> {
    let size = match a.head_dim {
        ..=64 => "D64",
        65..=128 => "D128",
        _ => "D256",
    };
    let mut defines = vec![size];
    defines.extend(a.head_dim.is_multiple_of(4).then_some("VEC"));
    defines.extend(launch::half(act));
    defines.extend(only);
    defines.extend(a.bias.then_some("BIAS"));
    defines
}

/// The variant of the kernels that have one for all head sizes.
fn biased(l: &Lower, a: &Attention) -> Vec<&'static str> {
    a.bias.then_some("BIAS").into_iter().chain(launch::half(l.ins[0].dtype)).collect()
}

/// The parameter block of `shaders/common/attention.wgsl`.
fn params(l: &Lower, a: &Attention, tile: usize) -> Vec<u32> {
    let rest = [tile as u32, f32::NEG_INFINITY.to_bits(), farthest(l.attr, l.ins) as u32];
    words(l, a).into_iter().chain(rest).collect()
}

/// Launches of a kernel over `tiles` tiles for each of `heads` heads, none of more than [`MAX_FLOPS`].
fn tiles(
    l: &Lower,
    kernel: (&'static str, Vec<&'static str>),
    args: Vec<Arg>,
    tiles: usize,
    heads: usize,
    flops: u64,
) -> Vec<WgslDispatch> {
    let a = spec(l.attr);
    let launches = (flops.div_ceil(MAX_FLOPS) as usize).clamp(1, tiles.max(1));
    let each = tiles.div_ceil(launches).min(65535);
    let dispatch = |tile: usize| {
        let count = each.min(tiles - tile);
        WgslDispatch {
            shader: kernel.0,
            defines: kernel.1.clone(),
            entry: kernel.0,
            constants: Vec::new(),
            grid: [count as u32, heads as u32, 1],
            args: args.clone(),
            params: params(l, &a, tile),
            flops: flops * count as u64 / tiles as u64,
        }
    };
    (0..tiles).step_by(each.max(1)).map(dispatch).collect()
}

pub fn forward(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let a = spec(l.attr);
    check(l, &a)?;
    let t = l.ins[0].rows();
    let args = [Arg::Out(0), Arg::Out(1)].into_iter().chain((0..common(&a)).map(Arg::In)).collect();
    let flops = super::cost(l.attr, l.ins, 2).flops;
    if t > FEW {
        return Ok(tiles(l, ("attention", defines(&a, l.ins[0].dtype, None)), args, t.div_ceil(ROWS), a.heads, flops));
    }
    Ok(vec![WgslDispatch {
        shader: "attention_row",
        defines: biased(l, &a),
        entry: "attention_row",
        constants: Vec::new(),
        grid: [t as u32, a.heads as u32, 1],
        args,
        params: params(l, &a, 0),
        flops,
    }])
}

/// Bytes of what `attention_delta` writes: pairs of numbers for each head and query, and with a bias for each query and
/// each element of the table.
pub fn stats(attr: &Attr, ins: &[Ty]) -> u64 {
    let a = spec(attr);
    let bias = if a.bias { ins[0].rows() + ins[4].len() } else { 0 };
    8 * (a.heads * ins[0].rows() + bias) as u64
}

/// The launch that writes it, `results` being the number of the operand `out`, which lse and dout follow.
fn delta(l: &Lower, a: &Attention, results: usize) -> WgslDispatch {
    const WG: usize = 64;
    let (t, s) = (l.ins[0].rows(), l.ins[1].rows());
    let bytes = stats(l.attr, l.ins);
    let mut args = vec![Arg::Work(0..bytes)];
    args.extend((results..results + 3).map(Arg::In));
    let mut params = vec![t as u32, a.head_dim as u32, a.heads as u32];
    if a.bias {
        args.extend([3, 4, 5].map(Arg::In));
        params.extend([s as u32, l.ins[4].len() as u32]);
    }
    WgslDispatch {
        shader: "attention_delta",
        defines: biased(l, a),
        entry: "attention_delta",
        constants: vec![("WG", WG as f64)],
        grid: launch::grid((bytes as usize / 8).div_ceil(WG), l.caps),
        args,
        params,
        flops: 2 * l.ins[0].len() as u64,
    }
}

pub fn backward(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let a = spec(l.attr);
    check(l, &a)?;
    let at = common(&a);
    let [of_queries, of_keys] = [0, 1].map(|i| l.ins[i].rows().div_ceil(ROWS));
    let flops = |products| super::cost(l.attr, l.ins, products).flops;
    let mut dispatches = vec![delta(l, &a, at + 1)];
    let stats = Arg::Work(0..stats(l.attr, l.ins));
    let [q, k, v, key_range, query_range, dout] = [0, 1, 2, 3, at, at + 3].map(Arg::In);
    let args = vec![Arg::Out(0), q.clone(), k.clone(), v.clone(), dout.clone(), stats.clone(), key_range];
    dispatches.extend(tiles(
        l,
        ("attention_dq", defines(&a, l.ins[0].dtype, None)),
        args,
        of_queries,
        a.heads,
        flops(3),
    ));
    let mut dkv = |only, args, products| {
        let kernel = ("attention_dkv", defines(&a, l.ins[0].dtype, only));
        dispatches.extend(tiles(l, kernel, args, of_keys, a.kv_heads, flops(products)));
    };
    if a.head_dim <= 128 {
        dkv(None, vec![Arg::Out(1), Arg::Out(2), q, k, v, dout, stats, query_range], 4);
        return Ok(dispatches);
    }
    let args = vec![Arg::Out(1), q.clone(), k.clone(), v, dout.clone(), stats.clone(), query_range.clone()];
    dkv(Some("ONLY_DK"), args, 3);
    dkv(Some("ONLY_DV"), vec![Arg::Out(2), q, k, dout, stats, query_range], 2);
    Ok(dispatches)
}

pub fn dbias(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let a = spec(l.attr);
    check(l, &a)?;
    let stats = Arg::Work(0..stats(l.attr, l.ins));
    let [q, k, v, key_range, dout] = [0, 1, 2, 3, 8].map(Arg::In);
    let args = vec![Arg::Out(0), q, k, v, dout, stats, key_range];
    let flops = super::cost(l.attr, l.ins, 2).flops;
    let kernel = ("attention_dbias", biased(l, &a));
    let mut dispatches = vec![delta(l, &a, 6)];
    // A tile is a row of the table.
    dispatches.extend(tiles(l, kernel, args, l.ins[4].rows(), a.heads, flops));
    Ok(dispatches)
}
