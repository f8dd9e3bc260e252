// Optimizers with one f32 of state a parameter, or none: SGD and Lion (src/ops/optim/plain.rs has the equations).
// variant: SGD
// variant: SGD MOMENTUM
// variant: LION

#include "common/clip.wgsl"

override WG: u32 = 64u;
// Elements of an invocation.
const EACH: u32 = 4u;
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
#if MOMENTUM
@group(0) @binding(next) var<storage, read_write> b: array<f32>;
#end
#if LION
@group(0) @binding(next) var<storage, read_write> m: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> g: array<f32>;
@group(0) @binding(next) var<storage, read_write> sumsq: array<u32>;
@group(0) @binding(next) var<storage, read_write> hyper: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

#if SGD
@compute @workgroup_size(WG)
fn sgd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    if skipped(sumsq[0]) { return; }
    let clip = clip_factor(sumsq[0], hyper[7]);
    let lr = hyper[0];
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n {
            var d = clip * g[i] + hyper[4] * w[i];
#if MOMENTUM
            let bi = hyper[1] * b[i] + hyper[2] * d;
            b[i] = bi;
            d = select(bi, d + hyper[1] * bi, hyper[3] != 0.0);
#end
            w[i] -= lr * d;
        }
    }
}
#end

#if LION
@compute @workgroup_size(WG)
fn lion(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    if skipped(sumsq[0]) { return; }
    let clip = clip_factor(sumsq[0], hyper[7]);
    let lr = hyper[0];
    let keep = 1.0 - lr * hyper[4];
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n {
            let d = clip * g[i];
            w[i] = w[i] * keep - lr * sign(m[i] + hyper[1] * (d - m[i]));
            m[i] += hyper[2] * (d - m[i]);
        }
    }
}
#end
