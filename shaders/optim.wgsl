// The optimizer: sums of squares in two stages, AdamW with clipping (src/ops/optim.rs has the equation), clearing.
// variant: SUM_SQUARES
// variant: SUM
// variant: SUM INPLACE
// variant: SUM ACC
// variant: ADAMW
// variant: COPY
// variant: ZERO
// also: SUBGROUP

#if SUM_SQUARES
const WG: u32 = 256u;
#include "common/reduce.wgsl"
#end
#if SUM
const WG: u32 = 256u;
#include "common/reduce.wgsl"
#end
#if !SUM_SQUARES && !SUM
override WG: u32 = 64u;
#end
// Elements of an invocation of the elementwise kernels.
const EACH: u32 = 4u;

#if SUM_SQUARES
// Elements of a partial sum.
const PIECE: u32 = 8192u;
struct Params {
    // Elements of this dispatch, and its first partial sum.
    n: u32,
    first: u32,
}
@group(0) @binding(next) var<storage, read_write> partials: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn partial_sums(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let piece = wg.y * groups.x + wg.x;
    let start = piece * PIECE;
    if start >= p.n { return; }
    var sum = 0.0;
    for (var i = start + lid; i < min(start + PIECE, p.n); i += WG) { sum += x[i] * x[i]; }
    sum = reduce_add(lane, sum);
    if lid == 0u { partials[p.first + piece] = sum; }
}
#end

#if SUM
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> partials: array<f32>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn sum(
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    var sum = 0.0;
    for (var i = lid; i < p.n; i += WG) { sum += partials[i]; }
    sum = reduce_add(lane, sum);
    if lid == 0u {
#if INPLACE
        y[0] += sum;
#end
#if ACC
        y[0] = acc[0] + sum;
#end
#if !INPLACE && !ACC
        y[0] = sum;
#end
    }
}
#end

#if ADAMW
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
@group(0) @binding(next) var<storage, read_write> m: array<f32>;
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
@group(0) @binding(next) var<storage, read_write> g: array<f32>;
// As bits: WGSL may assume that floats are finite.
@group(0) @binding(next) var<storage, read_write> sumsq: array<u32>;
@group(0) @binding(next) var<storage, read_write> hyper: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn adamw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let bits = sumsq[0];
    if (bits & 0x7f800000u) == 0x7f800000u { return; }
    let lr = hyper[0];
    let rate1 = hyper[1];
    let rate2 = hyper[2];
    let largest = hyper[7];
    var clip = 1.0;
    if largest > 0.0 { clip = min(largest / (sqrt(bitcast<f32>(bits)) + 1e-6), 1.0); }
    let keep = 1.0 - lr * hyper[4];
    let step = lr / hyper[5];
    let root = sqrt(hyper[6]);
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n {
            let d = clip * g[i];
            let mi = m[i] + rate1 * (d - m[i]);
            let vi = v[i] + rate2 * (d * d - v[i]);
            w[i] = w[i] * keep - step * (mi / (sqrt(vi) / root + hyper[3]));
            m[i] = mi;
            v[i] = vi;
        }
    }
}
#end

#if COPY
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<u32>;
@group(0) @binding(next) var<storage, read_write> x: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn copy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n { y[i] = x[i]; }
    }
}
#end

#if ZERO
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn zero(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n { y[i] = 0.0; }
    }
}
#end
