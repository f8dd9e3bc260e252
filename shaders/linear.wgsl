// A linear layer: y[T,N] = x[T,K] W[N,K]^T (+ bias) (+ scale xa[T,R] B[N,R]^T). W is decoded on its way into workgroup
// memory; the low-rank part is R more columns of the same loop. A dispatch computes the columns of some rows of W.
// variant: W_F32
// variant: W_F32 LORA
// variant: W_F32 BIAS
// variant: W_F32 BIAS LORA
// variant: W_BF16
// variant: W_BF16 LORA
// variant: W_BF16 BIAS
// variant: W_BF16 BIAS LORA
// variant: W_F16
// variant: W_F16 LORA
// variant: W_F16 BIAS
// variant: W_F16 BIAS LORA
// variant: W_NF4
// variant: W_NF4 LORA
// variant: W_NF4 BIAS
// variant: W_NF4 BIAS LORA
// variant: W_NF4DQ
// variant: W_NF4DQ LORA
// variant: W_NF4DQ BIAS
// variant: W_NF4DQ BIAS LORA
// also: COOP
// variant: W_F16 F16
// variant: W_F16 F16 LORA
// variant: W_F16 F16 BIAS
// variant: W_F16 F16 BIAS LORA
// also: SUBGROUP
#if COOP
#include "common/tile_coop.wgsl"
#else
#include "common/tile.wgsl"
#end
#include "common/weight.wgsl"
// Invocations that share a few elements of y.
const WG: u32 = 64u;
#include "common/reduce.wgsl"

// Rows of W are multiples of four elements long.
override VEC: bool = false;

struct Params {
    t: u32,
    // Rows of W here, and the first of them in the whole.
    n: u32,
    n_first: u32,
    // Columns of y.
    n_all: u32,
    k: u32,
    r: u32,
    scale: f32,
    w_first: u32,
    w_nested: u32,
    w_offset: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#include "common/weight_binding.wgsl"
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
#end
#if LORA
@group(0) @binding(next) var<storage, read_write> xa: array<f32>;
@group(0) @binding(next) var<storage, read_write> lb: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

fn x4(t: u32, k: u32) -> vec4<f32> {
    let i = t * p.k + k;
    if t >= p.t { return vec4<f32>(0.0); }
    if k + 4u <= p.k { return vec4<f32>(x[i], x[i + 1u], x[i + 2u], x[i + 3u]); }
    var v = vec4<f32>(0.0);
    if k < p.k { v.x = x[i]; }
    if k + 1u < p.k { v.y = x[i + 1u]; }
    if k + 2u < p.k { v.z = x[i + 2u]; }
    return v;
}
fn w4(n: u32, k: u32) -> TileB {
    let i = n * p.k + k;
    if n >= p.n || k >= p.k { return TileB(); }
#if F16
    return w[i / 4u];
#else
    if VEC { return weight4_at(i); }
    var v = vec4<f32>(weight_at(i), 0.0, 0.0, 0.0);
    if k + 1u < p.k { v.y = weight_at(i + 1u); }
    if k + 2u < p.k { v.z = weight_at(i + 2u); }
    if k + 3u < p.k { v.w = weight_at(i + 3u); }
    return v;
#end
}
#if LORA
fn xa4(t: u32, r: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if t >= p.t { return v; }
    let i = t * p.r + r;
    if r < p.r { v.x = xa[i]; }
    if r + 1u < p.r { v.y = xa[i + 1u]; }
    if r + 2u < p.r { v.z = xa[i + 2u]; }
    if r + 3u < p.r { v.w = xa[i + 3u]; }
    return v * p.scale;
}
fn lb4(n: u32, r: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if n >= p.n { return v; }
    let i = (p.n_first + n) * p.r + r;
    if r < p.r { v.x = lb[i]; }
    if r + 1u < p.r { v.y = lb[i + 1u]; }
    if r + 2u < p.r { v.z = lb[i + 2u]; }
    if r + 3u < p.r { v.w = lb[i + 3u]; }
    return v;
}
#end

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    let m0 = wg.y * BM;
    let n0 = wg.x * BN;
    tile_clear(lid);
    for (var k0 = 0u; k0 < p.k; k0 += BK) {
        for (var u = lid; u < UNITS_A; u += THREADS) {
            let k = k0 + 4u * (u % (BK / 4u));
            let g = u / (BK / 4u);
            let t = m0 + 4u * g;
            tile_put_a(g, u % (BK / 4u), x4(t, k), x4(t + 1u, k), x4(t + 2u, k), x4(t + 3u, k));
        }
        for (var u = THREADS - 1u - lid; u < UNITS_B; u += THREADS) {
            let k = k0 + 4u * (u % (BK / 4u));
            let g = u / (BK / 4u);
            let n = n0 + 4u * g;
            tile_put_b(g, u % (BK / 4u), w4(n, k), w4(n + 1u, k), w4(n + 2u, k), w4(n + 3u, k));
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
#if LORA
    for (var r0 = 0u; r0 < p.r; r0 += RK) {
        for (var u = lid; u < MG * (RK / 4u); u += THREADS) {
            let r = r0 + 4u * (u % (RK / 4u));
            let g = u / (RK / 4u);
            let t = m0 + 4u * g;
            tile_put_a(g, u % (RK / 4u), xa4(t, r), xa4(t + 1u, r), xa4(t + 2u, r), xa4(t + 3u, r));
        }
        for (var u = THREADS - 1u - lid; u < NG * (RK / 4u); u += THREADS) {
            let r = r0 + 4u * (u % (RK / 4u));
            let g = u / (RK / 4u);
            let n = n0 + 4u * g;
            low_put_b(g, u % (RK / 4u), lb4(n, r), lb4(n + 1u, r), lb4(n + 2u, r), lb4(n + 3u, r));
        }
        workgroupBarrier();
        low_step(lid);
        workgroupBarrier();
    }
#end
    tile_store(lid, m0, n0);
}

fn store4(t: u32, n: u32, v: vec4<f32>) {
    if t >= p.t { return; }
    store(t, n, v.x);
    store(t, n + 1u, v.y);
    store(t, n + 2u, v.z);
    store(t, n + 3u, v.w);
}

fn store(t: u32, n: u32, v: f32) {
    if n < p.n {
#if BIAS
        y[t * p.n_all + p.n_first + n] = v + bias[p.n_first + n];
#else
        y[t * p.n_all + p.n_first + n] = v;
#end
    }
}

#if !COOP
// Few tokens: a workgroup computes 4 elements of y, so that every row of W is read once, in order.
@compute @workgroup_size(WG)
fn row(@builtin(workgroup_id) wg: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let n = wg.x * 4u;
    let t = wg.y;
    var sums = vec4<f32>(0.0);
    for (var k = lid * 4u; k < p.k; k += 4u * WG) {
        let v = x4(t, k);
        sums += vec4<f32>(
            dot(v, vec4<f32>(w4(n, k))),
            dot(v, vec4<f32>(w4(n + 1u, k))),
            dot(v, vec4<f32>(w4(n + 2u, k))),
            dot(v, vec4<f32>(w4(n + 3u, k))),
        );
    }
#if LORA
    for (var r = lid * 4u; r < p.r; r += 4u * WG) {
        let v = xa4(t, r);
        sums += vec4<f32>(dot(v, lb4(n, r)), dot(v, lb4(n + 1u, r)), dot(v, lb4(n + 2u, r)), dot(v, lb4(n + 3u, r)));
    }
#end
    let all = reduce_add4(lane, sums);
    if lid == 0u { store4(t, n, all); }
}
#end
