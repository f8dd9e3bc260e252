// Element by element: a + b, x s, dropout, and a row added to (or summed over) all rows.
// With HALF activations are f16, and all lengths are counted in fours (common/act.wgsl).
// variant: ADD|SCALE|DROPOUT|ADD_ROW|ADD_ROW_DV [INPLACE] [HALF]
// variant: ADD_ROW_DV ACC [HALF]
#include "common/act.wgsl"

override WG: u32 = 64u;
// Units of an invocation.
const EACH: u32 = 4u / UNIT;

struct Params {
    // Units of this dispatch, and the number of the first element in the whole, in two words.
    n: u32,
    first: u32,
    first_high: u32,
#if DROPOUT
    site: u32,
    threshold: u32,
    keep: f32,
#end
#if ADD_ROW
    cols: u32,
    factor: f32,
#end
#if ADD_ROW_DV
    cols: u32,
    factor: f32,
#end
}

// Unit k of an invocation: neighbours work on neighbours.
fn element(wg: vec3<u32>, groups: vec3<u32>, lid: u32, k: u32) -> u32 {
    return ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
}

#if ADD
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> a: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> b: array<Act>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] = kept(wide(y[i]) + wide(b[i]));
#else
            y[i] = kept(wide(a[i]) + wide(b[i]));
#end
        }
    }
}
#end

#if SCALE
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> s: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn scale(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let factor = s[0];
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] = kept(wide(y[i]) * factor);
#else
            y[i] = kept(wide(x[i]) * factor);
#end
        }
    }
}
#end

#if DROPOUT
#include "common/philox.wgsl"
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> rng: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;

// An invocation takes four neighbours, which one Philox block serves: ranges start on a multiple of four.
@compute @workgroup_size(WG)
fn dropout(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let start = ((wg.y * groups.x + wg.x) * WG + lid) * 4u;
    if start >= p.n * UNIT { return; }
    let f = dropout_factor4(wide_add(vec2<u32>(p.first, p.first_high), start), p.site, vec4<u32>(rng[0], rng[1], rng[2], rng[3]), p.threshold, p.keep);
#if HALF
    one(start / 4u, f);
#else
    one(start, f.x);
    one(start + 1u, f.y);
    one(start + 2u, f.z);
    one(start + 3u, f.w);
#end
}
fn one(i: u32, f: Unit) {
    if i < p.n {
#if INPLACE
        y[i] = kept(wide(y[i]) * f);
#else
        y[i] = kept(wide(x[i]) * f);
#end
    }
}
#end

#if ADD_ROW
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> v: array<Unit>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn add_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] = kept(wide(y[i]) + p.factor * v[i % p.cols]);
#else
            y[i] = kept(wide(x[i]) + p.factor * v[i % p.cols]);
#end
        }
    }
}
#end

#if ADD_ROW_DV
@group(0) @binding(next) var<storage, read_write> dv: array<Unit>;
@group(0) @binding(next) var<storage, read_write> dy: array<Act>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<Unit>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// A workgroup sums 16 columns of units: lane l of a column the rows l, l + 4, l + 8, …
var<workgroup> sums: array<Unit, 64>;

@compute @workgroup_size(64)
fn add_row_dv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let c = (wg.y * groups.x + wg.x) * 16u + lid % 16u;
    var sum = Unit();
    if c < p.cols {
        for (var t = lid / 16u; t < p.n; t += 4u) {
            sum += wide(dy[t * p.cols + c]);
        }
    }
    sums[lid] = sum;
    workgroupBarrier();
    if lid < 16u && c < p.cols {
        let total = p.factor * (sums[lid] + sums[lid + 16u] + sums[lid + 32u] + sums[lid + 48u]);
#if INPLACE
        dv[c] += total;
#end
#if ACC
        dv[c] = total + acc[c];
#end
#if !INPLACE && !ACC
        dv[c] = total;
#end
    }
}
#end
