// The gradient of a linear layer's input: dx[T,K] = dy[T,N] W[N,K] + mask (dyb[T,R] A[R,K]), mask being the forward
// pass's dropout factors. A dispatch sums over some rows of W; with ADD it adds to what dx holds.
//
// Half of a workgroup's threads load dy, the other half W. With VEC rows of W are multiples of four elements long and
// read by fours (RAGGED: those of NF4 are none of 64); those of dy too, unless they are ODD, and there are a multiple of four
// rows of W here. With HALF activations are f16; PARTS: dx is not, its parts are summed by sum_parts.wgsl.
// variant: W_F32|W_BF16|W_F16|W_NF4|W_NF4DQ [LORA|LORA+DROPOUT]
// variant: W_F32|W_BF16|W_F16|W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [LORA|LORA+DROPOUT] VEC [ODD|LARGE]
// variant: W_F32|W_BF16|W_F16|W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [LORA|LORA+DROPOUT] VEC [LARGE] HALF [PARTS]
// variant: W_F32|W_BF16|W_F16|W_NF4|W_NF4DQ [LORA] [VEC|VEC+ODD] COOP
// variant: W_NF4+RAGGED|W_NF4DQ+RAGGED [LORA] VEC [ODD] COOP
// variant: W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [LORA] VEC HALF [PARTS] COOP
#include "common/tile_any.wgsl"
#if VEC
#include "common/weight_vec.wgsl"
#else
#include "common/weight.wgsl"
#end
#if DROPOUT
#include "common/philox.wgsl"
#end

#include "common/act.wgsl"

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
    // Rows of W that a workgroup sums over, a multiple of BK where there are several along z.
    step: u32,
}
#if PARTS
@group(0) @binding(next) var<storage, read_write> dx: array<vec4<f32>>;
#end
#if VEC && !PARTS
@group(0) @binding(next) var<storage, read_write> dx: array<Act4>;
#end
#if !VEC
@group(0) @binding(next) var<storage, read_write> dx: array<f32>;
#end
#if VEC && !ODD
@group(0) @binding(next) var<storage, read_write> dy: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
#end
#include "common/weight_binding.wgsl"
#if LORA && HALF
@group(0) @binding(next) var<storage, read_write> dyb: array<Act4>;
#end
#if LORA && !HALF
@group(0) @binding(next) var<storage, read_write> dyb: array<f32>;
#end
#if LORA
@group(0) @binding(next) var<storage, read_write> la: array<f32>;
#end
#if DROPOUT
@group(0) @binding(next) var<storage, read_write> rng: array<u32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// Where rows t..t+4 of dy begin here, in the unit in which it is read: one element or four. Those beyond the last are
// the last, whose products nobody stores.
fn rows_at(t: u32) -> vec4<u32> {
    let rows = min(t + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.t - 1u));
#if VEC && !ODD
    return rows * (p.n_all / 4u) + p.n_first / 4u;
#else
    return rows * p.n_all + p.n_first;
#end
}

// Columns n..n+4 of dy.
#if VEC && !ODD
fn load_dy(g: u32, h: u32, at: vec4<u32>, n: u32) {
    if n < p.n {
        let q = n / 4u;
        tile_put_a(g, h, wide4(dy[at.x + q]), wide4(dy[at.y + q]), wide4(dy[at.z + q]), wide4(dy[at.w + q]));
    } else {
        tile_put_a(g, h, vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
}
#else
fn load_dy(g: u32, h: u32, at: vec4<u32>, n: u32) {
    tile_put_a(g, h, dy4(at.x, n), dy4(at.y, n), dy4(at.z, n), dy4(at.w, n));
}
fn dy4(at: u32, n: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if n < p.n { v.x = dy[at + n]; }
    if n + 1u < p.n { v.y = dy[at + n + 1u]; }
    if n + 2u < p.n { v.z = dy[at + n + 2u]; }
    if n + 3u < p.n { v.w = dy[at + n + 3u]; }
    return v;
}
#end

// Thread `unit`'s part of rows n0..n0+BK of W, from column c0 on. Columns beyond the last group are that group, whose products
// nobody stores.
#if VEC && !W_F32 && !W_BF16 && !W_F16
fn load_w(unit: u32, n0: u32, c0: u32) {
    // Sixteen columns of a row: two words under one scale, or RAGGED under two, from any half of a word on.
    let k = unit / (BN / 16u);
    let g = 4u * (unit % (BN / 16u));
    if n0 + k < p.n {
#if RAGGED
        let row = (n0 + k) * (p.k / 4u);
        let q = row + min(c0 / 4u + g + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.k / 4u - 1u));
        let scale = weight_scale(q.x);
        var next = scale;
        if (q.w >> 4u) != (q.x >> 4u) { next = weight_scale(q.w); }
        tile_put_b_k(g, k, scale * codes4(q.x));
        tile_put_b_k(g + 1u, k, select(next, scale, (q.y >> 4u) == (q.x >> 4u)) * codes4(q.y));
        tile_put_b_k(g + 2u, k, select(next, scale, (q.z >> 4u) == (q.x >> 4u)) * codes4(q.z));
        tile_put_b_k(g + 3u, k, next * codes4(q.w));
#else
        let q = (n0 + k) * (p.k / 4u) + min(c0 / 4u + g, p.k / 4u - 4u);
        let scale = weight_scale(q);
        let first = w[q / 2u];
        let second = w[q / 2u + 1u];
        tile_put_b_k(g, k, scale * weight_codes(first));
        tile_put_b_k(g + 1u, k, scale * weight_codes(first >> 16u));
        tile_put_b_k(g + 2u, k, scale * weight_codes(second));
        tile_put_b_k(g + 3u, k, scale * weight_codes(second >> 16u));
#end
    } else {
        tile_put_b_k(g, k, vec4<f32>());
        tile_put_b_k(g + 1u, k, vec4<f32>());
        tile_put_b_k(g + 2u, k, vec4<f32>());
        tile_put_b_k(g + 3u, k, vec4<f32>());
    }
}
#else
fn load_w(unit: u32, n0: u32, c0: u32) {
    let g = unit % NG;
    let h = 4u * (unit / NG);
    for (var j = 0u; j < 4u; j++) {
        tile_put_b_k(g, h + j, w4(n0 + h + j, c0 + 4u * g));
    }
}
#if VEC
fn w4(n: u32, k: u32) -> vec4<f32> {
    if n >= p.n { return vec4<f32>(); }
    let row = p.k / 4u;
    return weight4(n * row + min(k / 4u, row - 1u));
}
#else
fn w4(n: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if n >= p.n { return v; }
    let i = n * p.k + k;
    if k < p.k { v.x = weight_at(i); }
    if k + 1u < p.k { v.y = weight_at(i + 1u); }
    if k + 2u < p.k { v.z = weight_at(i + 2u); }
    if k + 3u < p.k { v.w = weight_at(i + 3u); }
    return v;
}
fn weight_table(lid: u32) {}
#end
#end
#if LORA && HALF
fn dyb4(t: u32, r: u32) -> vec4<f32> {
    if t >= p.t || r >= p.r { return vec4<f32>(); }
    return wide4(dyb[(t * p.r + r) / 4u]);
}
#end
#if LORA && !HALF
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
#end
#if LORA
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

// Where dx begins that this part of the sum goes to.
var<private> part: u32;

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    let m0 = wg.y * BM;
    let c0 = wg.x * BN;
    tile_clear(lid);
    weight_table(lid);
    workgroupBarrier();
    let loads_dy = lid < UNITS_A;
    let unit = select(lid - UNITS_A, lid, loads_dy);
    let h = unit % (BK / 4u);
    let g = unit / (BK / 4u);
    let at = rows_at(m0 + 4u * g);
#if LORA
    // First, because the mask is on this part only.
    for (var r0 = select(p.r, 0u, wg.z == 0u); r0 < p.r; r0 += BK) {
        if loads_dy {
            let r = r0 + 4u * h;
            let t = m0 + 4u * g;
            tile_put_a(g, h, dyb4(t, r), dyb4(t + 1u, r), dyb4(t + 2u, r), dyb4(t + 3u, r));
        } else {
            for (var j = 0u; j < 4u; j++) {
                let k = 4u * (unit / NG) + j;
                tile_put_b_k(unit % NG, k, la4(r0 + k, c0 + 4u * (unit % NG)));
            }
        }
        workgroupBarrier();
        tile_step(lid);
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
#if DROPOUT && LARGE
    acc[8] *= mask4(row, col + BN / 2u);
    acc[9] *= mask4(row + 1u, col + BN / 2u);
    acc[10] *= mask4(row + 2u, col + BN / 2u);
    acc[11] *= mask4(row + 3u, col + BN / 2u);
    acc[12] *= mask4(row + 4u, col + BN / 2u);
    acc[13] *= mask4(row + 5u, col + BN / 2u);
    acc[14] *= mask4(row + 6u, col + BN / 2u);
    acc[15] *= mask4(row + 7u, col + BN / 2u);
#end
    let end = min(p.n, (wg.z + 1u) * p.step);
    part = wg.z * p.t * p.k;
    for (var n0 = wg.z * p.step; n0 < end; n0 += BK) {
        if loads_dy {
            load_dy(g, h, at, n0 + 4u * h);
        } else {
            load_w(unit, n0, c0);
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
    tile_store(lid, m0, c0);
}

#if VEC
fn store4(t: u32, c: u32, v: vec4<f32>) {
    if t >= p.t || c >= p.k { return; }
    let i = (part + t * p.k + c) / 4u;
#if PARTS
    dx[i] = v;
#else
    if ADD {
        dx[i] = kept4(wide4(dx[i]) + v);
    } else {
        dx[i] = kept4(v);
    }
#end
}
#else
fn store4(t: u32, c: u32, v: vec4<f32>) {
    if t >= p.t { return; }
    store(t, c, v.x);
    store(t, c + 1u, v.y);
    store(t, c + 2u, v.z);
    store(t, c + 3u, v.w);
}

fn store(t: u32, c: u32, v: f32) {
    if c < p.k {
        let i = part + t * p.k + c;
        if ADD {
            dx[i] += v;
        } else {
            dx[i] = v;
        }
    }
}
#end
