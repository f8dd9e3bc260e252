// The norms of the rows of W + s B A, for DoRA: n[i] = sqrt(sum over k of (w[i,k] + s sum over r of b[i,r] a[r,k])^2).
// A workgroup walks four rows together, an invocation four columns at a time, so that what it reads of A serves four.
// variant: W_F32
// variant: W_BF16
// variant: W_F16
// variant: W_NF4
// variant: W_NF4DQ
#include "common/weight.wgsl"

// Rows of W are multiples of four elements long.
override VEC: bool = false;
const WG: u32 = 64u;
const ROWS: u32 = 4u;

struct Params {
    // Rows of W here, and the first of them in the whole.
    n: u32,
    n_first: u32,
    k: u32,
    r: u32,
    scale: f32,
    w_first: u32,
    w_nested: u32,
    w_offset: u32,
}
@group(0) @binding(next) var<storage, read_write> norm: array<f32>;
#if W_F32
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
#else
@group(0) @binding(next) var<storage, read_write> w: array<u32>;
#end
#if !W_F32 && !W_BF16 && !W_F16
@group(0) @binding(next) var<storage, read_write> w_scales: array<u32>;
#end
@group(0) @binding(next) var<storage, read_write> la: array<f32>;
@group(0) @binding(next) var<storage, read_write> lb: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

fn w4(n: u32, k: u32) -> vec4<f32> {
    let i = n * p.k + k;
    if n >= p.n { return vec4<f32>(0.0); }
    if VEC { return weight4_at(i); }
    var v = vec4<f32>(weight_at(i), 0.0, 0.0, 0.0);
    if k + 1u < p.k { v.y = weight_at(i + 1u); }
    if k + 2u < p.k { v.z = weight_at(i + 2u); }
    if k + 3u < p.k { v.w = weight_at(i + 3u); }
    return v;
}
fn a4(r: u32, k: u32) -> vec4<f32> {
    let i = r * p.k + k;
    if k + 4u <= p.k { return vec4<f32>(la[i], la[i + 1u], la[i + 2u], la[i + 3u]); }
    var v = vec4<f32>(la[i], 0.0, 0.0, 0.0);
    if k + 1u < p.k { v.y = la[i + 1u]; }
    if k + 2u < p.k { v.z = la[i + 2u]; }
    return v;
}
// Rows behind the last are computed from its B and thrown away.
fn b_row(n: u32) -> u32 {
    return (p.n_first + min(n, p.n - 1u)) * p.r;
}

var<workgroup> sums: array<vec4<f32>, WG>;

@compute @workgroup_size(WG)
fn dora_norm(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let n = (wg.y * groups.x + wg.x) * ROWS;
    let b = vec4<u32>(b_row(n), b_row(n + 1u), b_row(n + 2u), b_row(n + 3u));
    var sum = vec4<f32>(0.0);
    for (var k = 4u * lid; k < p.k; k += 4u * WG) {
        var d0 = w4(n, k);
        var d1 = w4(n + 1u, k);
        var d2 = w4(n + 2u, k);
        var d3 = w4(n + 3u, k);
        for (var r = 0u; r < p.r; r++) {
            let a = p.scale * a4(r, k);
            d0 += lb[b.x + r] * a;
            d1 += lb[b.y + r] * a;
            d2 += lb[b.z + r] * a;
            d3 += lb[b.w + r] * a;
        }
        sum += vec4<f32>(dot(d0, d0), dot(d1, d1), dot(d2, d2), dot(d3, d3));
    }
    sums[lid] = sum;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lid < half { sums[lid] += sums[lid + half]; }
    }
    workgroupBarrier();
    if lid < ROWS && n + lid < p.n {
        norm[p.n_first + n + lid] = sqrt(sums[0][lid]);
    }
}
