// AdamW and Lion with their state in 8 bits, blocks of 256 (src/ops/optim/eight_bit.rs has the equations): a workgroup
// a block, a word of four codes an invocation.
// variant: ADAMW
// variant: LION

#include "common/clip.wgsl"
#include "common/dynamic.wgsl"

const LANES: u32 = 64u;
struct Params {
    blocks: u32,
}
@group(0) @binding(next) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(next) var<storage, read_write> m: array<u32>;
@group(0) @binding(next) var<storage, read_write> m_absmax: array<f32>;
#if ADAMW
@group(0) @binding(next) var<storage, read_write> v: array<u32>;
@group(0) @binding(next) var<storage, read_write> v_absmax: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> g: array<vec4<f32>>;
@group(0) @binding(next) var<storage, read_write> sumsq: array<u32>;
@group(0) @binding(next) var<storage, read_write> hyper: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;
// The largest |m| and v of the lanes.
var<workgroup> largest: array<vec2<f32>, LANES>;

fn largest_of_block(lid: u32, mine: vec2<f32>) -> vec2<f32> {
    largest[lid] = mine;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lid < half { largest[lid] = max(largest[lid], largest[lid + half]); }
        workgroupBarrier();
    }
    return largest[0];
}

fn largest_of_four(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

@compute @workgroup_size(LANES)
fn update(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = wg.y * groups.x + wg.x;
    if block >= p.blocks { return; }
    let skip = skipped(sumsq[0]);
    let lr = hyper[0];
    let keep = 1.0 - lr * hyper[4];
    let i = block * LANES + lid;
    let d = clip_factor(sumsq[0], hyper[7]) * g[i];
    var mi = dynamic_values(m[i]) * m_absmax[block];
#if ADAMW
    var vi = dynamic_unsigned_values(v[i]) * v_absmax[block];
    mi += hyper[1] * (d - mi);
    vi += hyper[2] * (d * d - vi);
    let step = lr / hyper[5] * (mi / (sqrt(vi) / sqrt(hyper[6]) + hyper[3]));
    let top = largest_of_block(lid, vec2<f32>(largest_of_four(abs(mi)), largest_of_four(vi)));
#end
#if LION
    let step = lr * sign(mi + hyper[1] * (d - mi));
    mi += hyper[2] * (d - mi);
    let top = largest_of_block(lid, vec2<f32>(largest_of_four(abs(mi)), 0.0));
#end
    if skip { return; }
    w[i] = w[i] * keep - step;
    // A block of zeros is divided by one.
    m[i] = dynamic_codes(mi / select(1.0, top.x, top.x > 0.0));
    if lid == 0u { m_absmax[block] = top.x; }
#if ADAMW
    v[i] = dynamic_unsigned_codes(vi / select(1.0, top.y, top.y > 0.0));
    if lid == 0u { v_absmax[block] = top.y; }
#end
}
