// Attention, backward, before the rest: for each head and query, lse and δ_t = Σ over features of dout out, side by side.
// BIAS: after these, for each query the key at distance 0, as two numbers (WGSL may flush what is no float), and the
// table of biases, so that the kernels that follow bind no more than eight operands.
// With HALF activations are f16, which are taken by fours (common/act.wgsl).
// variant: [BIAS] [HALF]
#include "common/act.wgsl"

override WG: u32 = 64u;

struct Params {
    t: u32,
    d: u32,
    heads: u32,
#if BIAS
    // Keys, elements of the table.
    s: u32,
    table: u32,
#end
}

@group(0) @binding(next) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(next) var<storage, read_write> out: array<Act>;
@group(0) @binding(next) var<storage, read_write> lse: array<f32>;
@group(0) @binding(next) var<storage, read_write> dout: array<Act>;
#if BIAS
@group(0) @binding(next) var<storage, read_write> key_range: array<i32>;
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
@group(0) @binding(next) var<storage, read_write> q_pos: array<i32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

#if BIAS
fn put_bias(i: u32) {
    if i < p.t {
        let middle = clamp(key_range[2u * i], 0, i32(p.s)) + q_pos[i];
        stats[p.t * p.heads + i] = vec2<f32>(f32(middle >> 12u), f32(middle & 4095));
    } else if i - p.t < p.table {
        stats[p.t * p.heads + i] = vec2<f32>(bias[i - p.t], 0.0);
    }
}
#end

@compute @workgroup_size(WG)
fn attention_delta(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let n = (wg.y * groups.x + wg.x) * WG + lid;
#if BIAS
    if n >= p.t * p.heads { put_bias(n - p.t * p.heads); }
#end
    if n >= p.t * p.heads { return; }
    let at = n / p.heads + n % p.heads * p.t;
    let d = p.d / UNIT;
    var delta = 0.0;
    for (var i = 0u; i < d; i++) { delta += sum_of(wide(dout[n * d + i]) * wide(out[n * d + i])); }
    stats[at] = vec2<f32>(lse[at], delta);
}
