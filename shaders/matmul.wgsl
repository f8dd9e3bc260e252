// Dense products: c[m,n] = alpha * op(a)[m,k] * op(b)[k,n] (+ acc[m,n]), op a transpose where TA, TB say so.
// With DROPOUT a is dropped out first (mask by Philox, element index counted in the whole of a).
// With VEC the rows of a, b and c are multiples of four elements, in memory and in what is computed, and read by fours.
// A16, B16, C16: a, b, c and acc are activations in f16.
// variant: [NARROW|FLAT] [ACC] [VEC]
// variant: [NARROW] DROPOUT [VEC]
// variant: LARGE [ACC] VEC
// variant: [NARROW|FLAT|LARGE] [ACC] VEC A16+B16|A16+C16
// variant: [NARROW|FLAT|LARGE] VEC A16
// variant: [NARROW] DROPOUT VEC A16 [C16]
// variant: [ACC] [VEC] COOP
#include "common/tile_any.wgsl"
#if DROPOUT
#include "common/philox.wgsl"
#end

#include "common/half.wgsl"

override TA: bool = false;
override TB: bool = false;
// Add to what c holds.
override ADD: bool = false;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Elements from one row to the next, and the first element, of each bound range.
    lda: u32,
    ldb: u32,
    ldc: u32,
    a0: u32,
    b0: u32,
    c0: u32,
    alpha: f32,
    // Dropout: the number of a's first bound element in two words, and the mask's parameters.
    first: u32,
    first_high: u32,
    site: u32,
    threshold: u32,
    keep: f32,
    // Terms of a part of the sum, a multiple of BK where there are several: workgroups along z.
    step: u32,
}
#if A16
alias A4 = vec2<u32>;
fn wide_a(v: vec2<u32>) -> vec4<f32> { return half_wide4(v); }
#else
alias A4 = vec4<f32>;
fn wide_a(v: vec4<f32>) -> vec4<f32> { return v; }
#end
#if B16
alias B4 = vec2<u32>;
fn wide_b(v: vec2<u32>) -> vec4<f32> { return half_wide4(v); }
#else
alias B4 = vec4<f32>;
fn wide_b(v: vec4<f32>) -> vec4<f32> { return v; }
#end
#if C16
alias C4 = vec2<u32>;
fn wide_c(v: vec2<u32>) -> vec4<f32> { return half_wide4(v); }
fn kept_c(v: vec4<f32>) -> vec2<u32> { return half_kept4(v); }
#else
alias C4 = vec4<f32>;
fn wide_c(v: vec4<f32>) -> vec4<f32> { return v; }
fn kept_c(v: vec4<f32>) -> vec4<f32> { return v; }
#end
#if VEC
@group(0) @binding(next) var<storage, read_write> c: array<C4>;
@group(0) @binding(next) var<storage, read_write> a: array<A4>;
@group(0) @binding(next) var<storage, read_write> b: array<B4>;
#else
@group(0) @binding(next) var<storage, read_write> c: array<f32>;
@group(0) @binding(next) var<storage, read_write> a: array<f32>;
@group(0) @binding(next) var<storage, read_write> b: array<f32>;
#end
#if ACC && VEC
@group(0) @binding(next) var<storage, read_write> add: array<C4>;
#end
#if ACC && !VEC
@group(0) @binding(next) var<storage, read_write> add: array<f32>;
#end
#if DROPOUT
@group(0) @binding(next) var<storage, read_write> rng: array<u32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// `valid` elements from i on, zeros after them; with VEC four, or none.
fn a4(i: u32, valid: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
#if VEC
    if valid > 0u { v = wide_a(a[i / 4u]); }
#else
    if valid > 0u { v.x = a[i]; }
    if valid > 1u { v.y = a[i + 1u]; }
    if valid > 2u { v.z = a[i + 2u]; }
    if valid > 3u { v.w = a[i + 3u]; }
#end
#if DROPOUT
    let seed = vec4<u32>(rng[0], rng[1], rng[2], rng[3]);
    v *= dropout_factor4(wide_add(vec2<u32>(p.first, p.first_high), i), p.site, seed, p.threshold, p.keep);
#end
    return v;
}
fn b4(i: u32, valid: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
#if VEC
    if valid > 0u { v = wide_b(b[i / 4u]); }
#else
    if valid > 0u { v.x = b[i]; }
    if valid > 1u { v.y = b[i + 1u]; }
    if valid > 2u { v.z = b[i + 2u]; }
    if valid > 3u { v.w = b[i + 3u]; }
#end
    return v;
}
// How many of the four elements from i on are below `end`, if `row` is below `rows`; with VEC, whether they are.
fn left(i: u32, end: u32, row: u32, rows: u32) -> u32 {
#if VEC
    return u32(i < end && row < rows);
#else
    return select(0u, end - min(i, end), row < rows);
#end
}
fn a_row(m: u32, k: u32) -> vec4<f32> {
    return a4(p.a0 + m * p.lda + k, left(k, p.k, m, p.m));
}
fn b_row(n: u32, k: u32) -> vec4<f32> {
    return b4(p.b0 + n * p.ldb + k, left(k, p.k, n, p.n));
}

// Where c begins that this part of the sum goes to.
var<private> part: u32;

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    let m0 = wg.y * BM;
    let n0 = wg.x * BN;
    part = wg.z * p.m * p.ldc;
    let end = min(p.k, (wg.z + 1u) * p.step);
    tile_clear(lid);
    for (var k0 = wg.z * p.step; k0 < end; k0 += BK) {
        for (var u = lid; u < UNITS_A; u += THREADS) {
            if TA {
                // Four neighbours along m of one k at a time.
                let g = u % MG;
                let h = u / MG;
                for (var j = 0u; j < 4u; j++) {
                    let k = k0 + 4u * h + j;
                    let m = m0 + 4u * g;
                    tile_put_a_k(g, 4u * h + j, a4(p.a0 + k * p.lda + m, left(m, p.m, k, p.k)));
                }
            } else {
                let h = u % (BK / 4u);
                let g = u / (BK / 4u);
                let m = m0 + 4u * g;
                let k = k0 + 4u * h;
                tile_put_a(g, h, a_row(m, k), a_row(m + 1u, k), a_row(m + 2u, k), a_row(m + 3u, k));
            }
        }
        for (var u = THREADS - 1u - lid; u < UNITS_B; u += THREADS) {
            if TB {
                let h = u % (BK / 4u);
                let g = u / (BK / 4u);
                let n = n0 + 4u * g;
                let k = k0 + 4u * h;
                tile_put_b(g, h, b_row(n, k), b_row(n + 1u, k), b_row(n + 2u, k), b_row(n + 3u, k));
            } else {
                let g = u % NG;
                let h = u / NG;
                for (var j = 0u; j < 4u; j++) {
                    let k = k0 + 4u * h + j;
                    let n = n0 + 4u * g;
                    tile_put_b_k(g, 4u * h + j, b4(p.b0 + k * p.ldb + n, left(n, p.n, k, p.k)));
                }
            }
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
    tile_store(lid, m0, n0);
}

#if VEC
fn store4(m: u32, n: u32, v: vec4<f32>) {
    if m >= p.m || n >= p.n { return; }
    let i = (part + p.c0 + m * p.ldc + n) / 4u;
    var sum = v * p.alpha;
#if ACC
    sum += wide_c(add[i]);
#end
    if ADD { sum += wide_c(c[i]); }
    c[i] = kept_c(sum);
}
#else
fn store4(m: u32, n: u32, v: vec4<f32>) {
    if m >= p.m { return; }
    let at = part + p.c0 + m * p.ldc + n;
    store(at, v.x * p.alpha, n < p.n);
    store(at + 1u, v.y * p.alpha, n + 1u < p.n);
    store(at + 2u, v.z * p.alpha, n + 2u < p.n);
    store(at + 3u, v.w * p.alpha, n + 3u < p.n);
}

fn store(i: u32, v: f32, inside: bool) {
    if inside {
        var sum = v;
#if ACC
        sum += add[i];
#end
        if ADD { sum += c[i]; }
        c[i] = sum;
    }
}
#end
