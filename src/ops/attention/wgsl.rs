//! Launches of the attention kernels.

use super::{spec, words};
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::ops::{Arg, Attention, Lower, WgslDispatch, launch};

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

/// The variant for the head size.
fn defines(a: &Attention) -> Vec<&'static str> {
    let size = match a.head_dim {
        ..=64 => "D64",
        65..=128 => "D128",
        _ => "D256",
    };
    let mut defines = vec![size];
    defines.extend(a.head_dim.is_multiple_of(4).then_some("VEC"));
    defines
}

/// The parameter block of `shaders/common/attention.wgsl`.
fn params(l: &Lower, a: &Attention, tile: usize) -> Vec<u32> {
    words(l, a).into_iter().chain([tile as u32, f32::NEG_INFINITY.to_bits()]).collect()
}

/// Launches of a kernel over tiles of `rows` rows (queries or keys) for each of `heads` heads, none of more than
/// [`MAX_FLOPS`].
fn tiles(
    l: &Lower,
    kernel: (&'static str, Vec<&'static str>),
    args: Vec<Arg>,
    rows: usize,
    heads: usize,
    flops: u64,
) -> Vec<WgslDispatch> {
    let a = spec(l.attr);
    let tiles = rows.div_ceil(ROWS);
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
    let args = vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1), Arg::In(2), Arg::In(3)];
    let flops = super::cost(l.attr, l.ins, 2).flops;
    if t > FEW {
        return Ok(tiles(l, ("attention", defines(&a)), args, t, a.heads, flops));
    }
    Ok(vec![WgslDispatch {
        shader: "attention_row",
        defines: Vec::new(),
        entry: "attention_row",
        constants: Vec::new(),
        grid: [t as u32, a.heads as u32, 1],
        args,
        params: params(l, &a, 0),
        flops,
    }])
}

pub fn backward(l: &Lower) -> Result<Vec<WgslDispatch>> {
    const WG: usize = 64;
    let a = spec(l.attr);
    check(l, &a)?;
    let (t, s) = (l.ins[0].rows(), l.ins[1].rows());
    let stats = Arg::Work(0..8 * (a.heads * t) as u64);
    let delta = WgslDispatch {
        shader: "attention_delta",
        defines: Vec::new(),
        entry: "attention_delta",
        constants: vec![("WG", WG as f64)],
        grid: launch::grid((a.heads * t).div_ceil(WG), l.caps),
        args: vec![stats.clone(), Arg::In(5), Arg::In(6), Arg::In(7)],
        params: vec![t as u32, a.head_dim as u32, a.heads as u32],
        flops: 2 * l.ins[0].len() as u64,
    };
    let flops = |products| super::cost(l.attr, l.ins, products).flops;
    let mut dispatches = vec![delta];
    let [q, k, v, key_range, query_range, dout] = [0, 1, 2, 3, 4, 7].map(Arg::In);
    let args = vec![Arg::Out(0), q.clone(), k.clone(), v.clone(), dout.clone(), stats.clone(), key_range];
    dispatches.extend(tiles(l, ("attention_dq", defines(&a)), args, t, a.heads, flops(3)));
    if a.head_dim <= 128 {
        let args = vec![Arg::Out(1), Arg::Out(2), q, k, v, dout, stats, query_range];
        dispatches.extend(tiles(l, ("attention_dkv", defines(&a)), args, s, a.kv_heads, flops(4)));
        return Ok(dispatches);
    }
    let only = |what| defines(&a).into_iter().chain([what]).collect();
    let args = vec![Arg::Out(1), q.clone(), k.clone(), v, dout.clone(), stats.clone(), query_range.clone()];
    dispatches.extend(tiles(l, ("attention_dkv", only("ONLY_DK")), args, s, a.kv_heads, flops(3)));
    let args = vec![Arg::Out(2), q, k, dout, stats, query_range];
    dispatches.extend(tiles(l, ("attention_dkv", only("ONLY_DV")), args, s, a.kv_heads, flops(2)));
    Ok(dispatches)
}
