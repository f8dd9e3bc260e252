// The gradient of a linear layer's input: dx[T,K] = dy[T,N] W[N,K] + mask (dyb[T,R] A[R,K]), mask being the forward
// pass's dropout factors. A dispatch sums over some rows of W; with ADD it adds to what dx holds.
// variant: W_F32
// variant: W_F32 LORA
// variant: W_BF16
// variant: W_BF16 LORA
// variant: W_F16
// variant: W_F16 LORA
// variant: W_NF4
// variant: W_NF4 LORA
// variant: W_NF4DQ
// variant: W_NF4DQ LORA
// also: COOP
// variant: W_F32 LORA DROPOUT
// variant: W_BF16 LORA DROPOUT
// variant: W_F16 LORA DROPOUT
// variant: W_F16 F16
// variant: W_F16 F16 LORA
// variant: W_F16 F16 LORA DROPOUT
// variant: W_NF4 LORA DROPOUT
// variant: W_NF4DQ LORA DROPOUT
#if COOP
#include "common/tile_coop.wgsl"
#else
#include "common/tile.wgsl"
#end
#include "common/weight.wgsl"
#if DROPOUT
#include "common/philox.wgsl"
#end

// Rows of W are multiples of four elements long.
override VEC: bool = false;
override ADD: bool = false;

struct Params {
    t: u32,
    // Rows of W here, and the first of them in the whole.
    n: u32,
    n_first: u32,
    // Columns of dy.
    n_all: u32,
    k: u32,
    r: u32,
    w_first: u32,
    w_nested: u32,
    w_offset: u32,
    // Dropout: the first token here, and the mask's parameters.
    t_first: u32,
    site: u32,
    threshold: u32,
    keep: f32,
}
@group(0) @binding(next) var<storage, read_write> dx: array<f32>;
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
#include "common/weight_binding.wgsl"
#if LORA
@group(0) @binding(next) var<storage, read_write> dyb: array<f32>;
@group(0) @binding(next) var<storage, read_write> la: array<f32>;
#end
#if DROPOUT
@group(0) @binding(next) var<storage, read_write> rng: array<u32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

fn dy4(t: u32, n: u32) -> vec4<f32> {
    let i = t * p.n_all + p.n_first + n;
    if t >= p.t { return vec4<f32>(0.0); }
    if n + 4u <= p.n { return vec4<f32>(dy[i], dy[i + 1u], dy[i + 2u], dy[i + 3u]); }
    var v = vec4<f32>(0.0);
    if n < p.n { v.x = dy[i]; }
    if n + 1u < p.n { v.y = dy[i + 1u]; }
    if n + 2u < p.n { v.z = dy[i + 2u]; }
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
fn dyb4(t: u32, r: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if t >= p.t { return v; }
    let i = t * p.r + r;
    if r < p.r { v.x = dyb[i]; }
    if r + 1u < p.r { v.y = dyb[i + 1u]; }
    if r + 2u < p.r { v.z = dyb[i + 2u]; }
    if r + 3u < p.r { v.w = dyb[i + 3u]; }
    return v;
}
fn la4(r: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if r >= p.r { return v; }
    let i = r * p.k + k;
    if k < p.k { v.x = la[i]; }
    if k + 1u < p.k { v.y = la[i + 1u]; }
    if k + 2u < p.k { v.z = la[i + 2u]; }
    if k + 3u < p.k { v.w = la[i + 3u]; }
    return v;
}
#end

#if DROPOUT
// Dropout's factors of columns col..col+4 of a row.
fn mask4(row: u32, col: u32) -> vec4<f32> {
    let seed = vec4<u32>(rng[0], rng[1], rng[2], rng[3]);
    return dropout_factor4(wide_number(row, p.k, col), p.site, seed, p.threshold, p.keep);
}
#end

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    let m0 = wg.y * BM;
    let c0 = wg.x * BN;
    tile_clear(lid);
#if LORA
    // First, because the mask is on this part only.
    for (var r0 = 0u; r0 < p.r; r0 += RK) {
        for (var u = lid; u < MG * (RK / 4u); u += THREADS) {
            let r = r0 + 4u * (u % (RK / 4u));
            let g = u / (RK / 4u);
            let t = m0 + 4u * g;
            tile_put_a(g, u % (RK / 4u), dyb4(t, r), dyb4(t + 1u, r), dyb4(t + 2u, r), dyb4(t + 3u, r));
        }
        for (var u = THREADS - 1u - lid; u < NG * (RK / 4u); u += THREADS) {
            let g = u % NG;
            let h = u / NG;
            for (var j = 0u; j < 4u; j++) {
                low_put_b_k(g, 4u * h + j, la4(r0 + 4u * h + j, c0 + 4u * g));
            }
        }
        workgroupBarrier();
        low_step(lid);
        workgroupBarrier();
    }
#end
#if DROPOUT
    let row = p.t_first + m0 + tile_row(lid);
    let col = c0 + tile_col(lid);
    acc[0] *= mask4(row, col);
    acc[1] *= mask4(row + 1u, col);
    acc[2] *= mask4(row + 2u, col);
    acc[3] *= mask4(row + 3u, col);
    acc[4] *= mask4(row + 4u, col);
    acc[5] *= mask4(row + 5u, col);
    acc[6] *= mask4(row + 6u, col);
    acc[7] *= mask4(row + 7u, col);
#end
    for (var k0 = 0u; k0 < p.n; k0 += BK) {
        for (var u = lid; u < UNITS_A; u += THREADS) {
            let n = k0 + 4u * (u % (BK / 4u));
            let g = u / (BK / 4u);
            let t = m0 + 4u * g;
            tile_put_a(g, u % (BK / 4u), dy4(t, n), dy4(t + 1u, n), dy4(t + 2u, n), dy4(t + 3u, n));
        }
        for (var u = THREADS - 1u - lid; u < UNITS_B; u += THREADS) {
            let g = u % NG;
            let h = u / NG;
            for (var j = 0u; j < 4u; j++) {
                tile_put_b_k(g, 4u * h + j, w4(k0 + 4u * h + j, c0 + 4u * g));
            }
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
    tile_store(lid, m0, c0);
}

fn store4(t: u32, c: u32, v: vec4<f32>) {
    if t >= p.t { return; }
    store(t, c, v.x);
    store(t, c + 1u, v.y);
    store(t, c + 2u, v.z);
    store(t, c + 3u, v.w);
}

fn store(t: u32, c: u32, v: f32) {
    if c < p.k {
        let i = t * p.k + c;
        if ADD {
            dx[i] += v;
        } else {
            dx[i] = v;
        }
    }
}
