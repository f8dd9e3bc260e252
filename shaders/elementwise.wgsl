// Element by element: a + b, x s, act(gate) up and its gradients, dropout, and a row added to (or summed over) all rows.
// variant: ADD
// variant: ADD INPLACE
// variant: SCALE
// variant: SCALE INPLACE
// variant: GATED SILU
// variant: GATED SILU INPLACE_GATE
// variant: GATED SILU INPLACE_UP
// variant: GATED GELU_TANH
// variant: GATED GELU_TANH INPLACE_GATE
// variant: GATED GELU_TANH INPLACE_UP
// variant: GATED GELU
// variant: GATED GELU INPLACE_GATE
// variant: GATED GELU INPLACE_UP
// variant: GATED_BWD SILU
// variant: GATED_BWD SILU INPLACE_GATE
// variant: GATED_BWD SILU INPLACE_UP
// variant: GATED_BWD SILU INPLACE_GATE INPLACE_UP
// variant: GATED_BWD GELU_TANH
// variant: GATED_BWD GELU_TANH INPLACE_GATE
// variant: GATED_BWD GELU_TANH INPLACE_UP
// variant: GATED_BWD GELU_TANH INPLACE_GATE INPLACE_UP
// variant: GATED_BWD GELU
// variant: GATED_BWD GELU INPLACE_GATE
// variant: GATED_BWD GELU INPLACE_UP
// variant: GATED_BWD GELU INPLACE_GATE INPLACE_UP
// variant: DROPOUT
// variant: DROPOUT INPLACE
// variant: ADD_ROW
// variant: ADD_ROW INPLACE
// variant: ADD_ROW_DV
// variant: ADD_ROW_DV INPLACE
// variant: ADD_ROW_DV ACC

override WG: u32 = 64u;
// Elements of an invocation.
const EACH: u32 = 4u;

struct Params {
    // Elements of this dispatch, and the index of the first in the whole.
    n: u32,
    first: u32,
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

// Element k of an invocation: neighbours work on neighbours.
fn element(wg: vec3<u32>, groups: vec3<u32>, lid: u32, k: u32) -> u32 {
    return ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
}

#if ADD
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> a: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> b: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] += b[i];
#else
            y[i] = a[i] + b[i];
#end
        }
    }
}
#end

#if SCALE
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
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
            y[i] *= factor;
#else
            y[i] = x[i] * factor;
#end
        }
    }
}
#end

// act(x) and act'(x). Arguments of exp stay where it neither overflows nor underflows: WGSL promises no infinities.
#if SILU
fn act(x: f32) -> vec2<f32> {
    let s = 1.0 / (1.0 + exp(clamp(-x, -80.0, 80.0)));
    return vec2<f32>(x * s, s * (1.0 + x * (1.0 - s)));
}
#end
#if GELU_TANH
fn act(x: f32) -> vec2<f32> {
    let c = 0.7978845608028654;
    // tanh is 1 in f32 beyond 10; small arguments keep their digits in a series that has no cancellation.
    let u = clamp(c * (x + 0.044715 * x * x * x), -10.0, 10.0);
    let t = small_tanh(u);
    return vec2<f32>(0.5 * x * (1.0 + t),
                     0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x));
}
// An odd polynomial near 0, else 1 - 2 / (e^2x + 1) (Cephes, tanhf.c).
fn small_tanh(x: f32) -> f32 {
    let z = x * x;
    let near = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * abs(x)) + 1.0);
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.625);
}
#end
#if GELU
fn act(x: f32) -> vec2<f32> {
    let phi = 0.5 * (1.0 + erf(x * 0.7071067811865476));
    return vec2<f32>(x * phi, phi + x * 0.3989422804014327 * exp(max(-0.5 * x * x, -80.0)));
}
// The error function: an odd polynomial near 0, else 1 - exp of a polynomial in |x| (N. Juffa's fit).
fn erf(x: f32) -> f32 {
    let t = min(abs(x), 4.0);
    let s = t * t;
    var q = -1.72853470e-5 * t + 3.83197126e-4;
    q = q * s + (-3.88396438e-3 * t + 2.42546219e-2);
    q = q * t - 1.06777877e-1;
    q = q * t - 6.34846687e-1;
    q = q * t - 1.28717512e-1;
    q = q * t - t;
    let far = 1.0 - exp(q);
    var r = -5.96761703e-4;
    r = r * s + 4.99119423e-3;
    r = r * s - 2.67681349e-2;
    r = r * s + 1.12819925e-1;
    r = r * s - 3.76125336e-1;
    r = r * s + 1.28379166e-1;
    return select(r * x + x, select(far, -far, x < 0.0), t > 0.927734375);
}
#end

#if GATED
@group(0) @binding(next) var<storage, read_write> h: array<f32>;
#if !INPLACE_GATE
@group(0) @binding(next) var<storage, read_write> gate: array<f32>;
#end
#if !INPLACE_UP
@group(0) @binding(next) var<storage, read_write> up: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn gated_act(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE_GATE
            h[i] = act(h[i]).x * up[i];
#end
#if INPLACE_UP
            h[i] = act(gate[i]).x * h[i];
#end
#if !INPLACE_GATE && !INPLACE_UP
            h[i] = act(gate[i]).x * up[i];
#end
        }
    }
}
#end

#if GATED_BWD
// In place, dgate comes in as gate and dup as up.
@group(0) @binding(next) var<storage, read_write> dgate: array<f32>;
@group(0) @binding(next) var<storage, read_write> dup: array<f32>;
@group(0) @binding(next) var<storage, read_write> dh: array<f32>;
#if !INPLACE_GATE
@group(0) @binding(next) var<storage, read_write> gate: array<f32>;
#end
#if !INPLACE_UP
@group(0) @binding(next) var<storage, read_write> up: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn gated_act_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE_GATE
            let a = act(dgate[i]);
#else
            let a = act(gate[i]);
#end
#if INPLACE_UP
            let u = dup[i];
#else
            let u = up[i];
#end
            let d = dh[i];
            dgate[i] = d * u * a.y;
            dup[i] = d * a.x;
        }
    }
}
#end

#if DROPOUT
#include "common/philox.wgsl"
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> rng: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;

// An invocation takes four neighbours, which one Philox block serves: ranges start on a multiple of four.
@compute @workgroup_size(WG)
fn dropout(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let start = ((wg.y * groups.x + wg.x) * WG + lid) * 4u;
    if start >= p.n { return; }
    let f = dropout_factor4(p.first + start, p.site, vec4<u32>(rng[0], rng[1], rng[2], rng[3]), p.threshold, p.keep);
    one(start, f.x);
    one(start + 1u, f.y);
    one(start + 2u, f.z);
    one(start + 3u, f.w);
}
fn one(i: u32, f: f32) {
    if i < p.n {
#if INPLACE
        y[i] *= f;
#else
        y[i] = x[i] * f;
#end
    }
}
#end

#if ADD_ROW
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn add_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] += p.factor * v[i % p.cols];
#else
            y[i] = x[i] + p.factor * v[i % p.cols];
#end
        }
    }
}
#end

#if ADD_ROW_DV
@group(0) @binding(next) var<storage, read_write> dv: array<f32>;
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// A workgroup sums 16 columns: lane l of a column the rows l, l + 4, l + 8, …
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn add_row_dv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let c = (wg.y * groups.x + wg.x) * 16u + lid % 16u;
    var sum = 0.0;
    if c < p.cols {
        for (var t = lid / 16u; t < p.n; t += 4u) {
            sum += dy[t * p.cols + c];
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
