//! Optimizer state in 8 bits as bitsandbytes keeps it (Dettmers et al. 2022, arXiv:2110.02861): blocks of 256
//! elements, a byte an element, which indexes a dynamic map, and one f32 a block, by which the map is multiplied.
//! The bytes are in U32[N/4], four to a word, the first in the lowest bits.

use super::clip;
use crate::cpu::math::vectorized;
use crate::cpu::par;
use crate::dtype::Ty;
use crate::ops::{HostCall, Tensor, check};
use crate::quant::dynamic::DynamicMap;

/// Elements of a block.
pub const BLOCK: usize = 256;

/// Checks parameters and gradients of whole blocks, `states` pairs of codes and absmax, sumsq and hyper, and gives
/// the types of the outputs: parameters, then the states.
pub fn infer(ins: &[Ty], states: usize) -> Result<Vec<Ty>, String> {
    let (flats, rest) = ins.split_at(2.min(ins.len()));
    let ([p, g], true) = (flats, rest.len() == 2 * states + 2) else {
        return Err(format!("{} operands, expected {}", ins.len(), 2 * states + 4));
    };
    check::float("p", p)?;
    check::is("g", g, p)?;
    let n = p.len();
    if p.shape.len() != 1 || !n.is_multiple_of(BLOCK) {
        return Err(format!("p is {p}, expected a vector of whole blocks of {BLOCK}"));
    }
    let mut outs = vec![p.clone()];
    for state in rest[..2 * states].chunks_exact(2) {
        check::is("the codes", &state[0], &Ty::u32(&[n / 4]))?;
        check::is("absmax", &state[1], &Ty::f32(&[n / BLOCK]))?;
        outs.extend(state.iter().cloned());
    }
    super::scalars(&rest[2 * states..])?;
    Ok(outs)
}

/// The values that codes and absmax represent.
pub fn decode(codes: &Tensor, absmax: &Tensor, map: &DynamicMap) -> Vec<f64> {
    let value = |i: usize| {
        let code = (codes.data[i / 4] as u32 >> (8 * (i % 4))) & 255;
        map.values[code as usize] as f64 * absmax.data[i / BLOCK]
    };
    (0..4 * codes.data.len()).map(value).collect()
}

/// Codes and absmax of `values`.
pub fn encode(values: &[f64], map: &DynamicMap) -> [Tensor; 2] {
    let (mut words, mut scales) = (Vec::new(), Vec::new());
    for block in values.chunks(BLOCK) {
        let absmax = block.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let code = |x: f64| map.code_f64(if absmax > 0.0 { x / absmax } else { 0.0 });
        words.extend(block.chunks(4).map(|four| u32::from_le_bytes(std::array::from_fn(|i| code(four[i]))) as f64));
        scales.push(absmax);
    }
    [Tensor::new(&[words.len()], words), Tensor::new(&[scales.len()], scales)]
}

/// Updates parameters and `S` states, each of its map: `f(p, clipped g, states)` gives the new ones. The states are
/// the inputs from 2 on and the outputs from 1 on.
#[allow(clippy::needless_range_loop)] // plain loops over arrays, which the compiler vectorizes
pub fn host<const S: usize>(
    call: &HostCall,
    maps: [&DynamicMap; S],
    f: impl Fn(f32, f32, [f32; S]) -> (f32, [f32; S]) + Sync,
) {
    let (sumsq, hyper) = (call.input::<f32>(2 + 2 * S)[0], call.input::<f32>(3 + 2 * S));
    let clip = clip(sumsq, hyper[7]);
    let n = call.outs[0].len();
    let g = call.input::<f32>(1);
    let (p_in, p_out) = (call.input_ptr::<f32>(0), call.output_ptr::<f32>(0));
    let codes: [_; S] =
        std::array::from_fn(|s| (call.input_ptr::<[u8; BLOCK]>(2 + 2 * s), call.output_ptr::<[u8; BLOCK]>(1 + 2 * s)));
    let scales: [_; S] = std::array::from_fn(|s| (call.input_ptr::<f32>(3 + 2 * s), call.output_ptr::<f32>(2 + 2 * s)));
    par::ranges(n / BLOCK, 16, |blocks| {
        vectorized!({
            for b in blocks {
                // SAFETY: block b is in operands of n elements and is this thread's alone; all of it is read before
                // any is written, as the outputs may be the inputs.
                let (mut p, stored): ([f32; BLOCK], [([u8; BLOCK], f32); S]) = unsafe {
                    let stored = |s: usize| (codes[s].0.add(b).read(), scales[s].0.add(b).read());
                    (p_in.add(b * BLOCK).cast::<[f32; BLOCK]>().read(), std::array::from_fn(stored))
                };
                let mut state = [[0f32; BLOCK]; S];
                let mut result = stored;
                if let Some(clip) = clip {
                    for s in 0..S {
                        for (x, &code) in state[s].iter_mut().zip(&stored[s].0) {
                            *x = maps[s].values[code as usize] * stored[s].1;
                        }
                    }
                    let g = &g[b * BLOCK..][..BLOCK];
                    for i in 0..BLOCK {
                        let mut now = [0f32; S];
                        for s in 0..S {
                            now[s] = state[s][i];
                        }
                        (p[i], now) = f(p[i], clip * g[i], now);
                        for s in 0..S {
                            state[s][i] = now[s];
                        }
                    }
                    for s in 0..S {
                        result[s] = quantize(&state[s], maps[s]);
                    }
                }
                // SAFETY: as above.
                unsafe {
                    p_out.add(b * BLOCK).cast::<[f32; BLOCK]>().write(p);
                    for s in 0..S {
                        codes[s].1.add(b).write(result[s].0);
                        scales[s].1.add(b).write(result[s].1);
                    }
                }
            }
        });
    });
}

/// Codes and absmax of a block.
#[inline(always)]
fn quantize(x: &[f32; BLOCK], map: &DynamicMap) -> ([u8; BLOCK], f32) {
    let mut lanes = [0f32; 16];
    for chunk in x.as_chunks::<16>().0 {
        for (most, x) in lanes.iter_mut().zip(chunk) {
            *most = if x.abs() > *most { x.abs() } else { *most };
        }
    }
    let absmax = lanes.iter().fold(0f32, |most, &x| if x > most { x } else { most });
    let by = if absmax > 0.0 { absmax } else { 1.0 };
    let mut codes = [0u8; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = map.code(x / by);
    }
    (codes, absmax)
}
