// Activations, alone and as gates: act(x), dy act'(x), act(gate) up and its gradients. Which activation is a constant,
// KIND: 0 SiLU, 1 GELU by its tanh approximation, 2 GELU by erf, 3 ReLU, 4 tanh, 5 x sigmoid(1.702 x).
// With HALF activations are f16, and lengths are counted in fours (common/act.wgsl).
// variant: PLAIN [INPLACE] [HALF]
// variant: PLAIN_BWD [INPLACE_DY|INPLACE_X] [HALF]
// variant: GATED [INPLACE_GATE|INPLACE_UP] [HALF]
// variant: GATED_BWD [INPLACE_GATE] [INPLACE_UP] [HALF]
#include "common/act.wgsl"

override WG: u32 = 64u;
override KIND: u32 = 0u;
// Units of an invocation.
const EACH: u32 = 4u / UNIT;

struct Params {
    // Units of this dispatch, and the index of the first element in the whole.
    n: u32,
    first: u32,
}

// Unit k of an invocation: neighbours work on neighbours.
fn element(wg: vec3<u32>, groups: vec3<u32>, lid: u32, k: u32) -> u32 {
    return ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
}

// act(x) and act'(x).
fn act(x: f32) -> vec2<f32> {
    if KIND == 1u { return gelu_tanh(x); }
    if KIND == 2u { return gelu(x); }
    if KIND == 3u { return vec2<f32>(select(x, 0.0, x < 0.0), select(1.0, 0.0, x <= 0.0)); }
    if KIND == 4u {
        let t = tanh1(x);
        return vec2<f32>(t, 1.0 - t * t);
    }
    return swish(x, select(1.0, 1.702, KIND == 5u));
}

// The same of a unit.
#if HALF
fn both(x: vec4<f32>) -> array<vec4<f32>, 2> {
    let a = act(x.x);
    let b = act(x.y);
    let c = act(x.z);
    let d = act(x.w);
    return array<vec4<f32>, 2>(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}
#else
fn both(x: f32) -> array<f32, 2> {
    let a = act(x);
    return array<f32, 2>(a.x, a.y);
}
#end
fn value(x: Unit) -> Unit { return both(x)[0]; }
fn slope(x: Unit) -> Unit { return both(x)[1]; }

// x sigmoid(b x). Arguments of exp stay where it neither overflows nor underflows: WGSL promises no infinities.
fn swish(x: f32, b: f32) -> vec2<f32> {
    let s = 1.0 / (1.0 + exp(clamp(-b * x, -80.0, 80.0)));
    return vec2<f32>(x * s, s * (1.0 + b * x * (1.0 - s)));
}

fn gelu_tanh(x: f32) -> vec2<f32> {
    let c = 0.7978845608028654;
    let t = tanh1(c * (x + 0.044715 * x * x * x));
    return vec2<f32>(0.5 * x * (1.0 + t),
                     0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x));
}

// An odd polynomial near 0, where it keeps the digits of small arguments, else 1 - 2 / (e^2x + 1) (Cephes, tanhf.c).
// tanh is 1 in f32 beyond 10.
fn tanh1(u: f32) -> f32 {
    let x = clamp(u, -10.0, 10.0);
    let z = x * x;
    let near = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * abs(x)) + 1.0);
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.625);
}

fn gelu(x: f32) -> vec2<f32> {
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

#if PLAIN
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn activation(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE
            y[i] = kept(value(wide(y[i])));
#else
            y[i] = kept(value(wide(x[i])));
#end
        }
    }
}
#end

#if PLAIN_BWD
// In place, dx comes in as dy or as x.
@group(0) @binding(next) var<storage, read_write> dx: array<Act>;
#if !INPLACE_DY
@group(0) @binding(next) var<storage, read_write> dy: array<Act>;
#end
#if !INPLACE_X
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn activation_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE_DY
            dx[i] = kept(wide(dx[i]) * slope(wide(x[i])));
#end
#if INPLACE_X
            dx[i] = kept(wide(dy[i]) * slope(wide(dx[i])));
#end
#if !INPLACE_DY && !INPLACE_X
            dx[i] = kept(wide(dy[i]) * slope(wide(x[i])));
#end
        }
    }
}
#end

#if GATED
@group(0) @binding(next) var<storage, read_write> h: array<Act>;
#if !INPLACE_GATE
@group(0) @binding(next) var<storage, read_write> gate: array<Act>;
#end
#if !INPLACE_UP
@group(0) @binding(next) var<storage, read_write> up: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn gated_act(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE_GATE
            h[i] = kept(value(wide(h[i])) * wide(up[i]));
#end
#if INPLACE_UP
            h[i] = kept(value(wide(gate[i])) * wide(h[i]));
#end
#if !INPLACE_GATE && !INPLACE_UP
            h[i] = kept(value(wide(gate[i])) * wide(up[i]));
#end
        }
    }
}
#end

#if GATED_BWD
// In place, dgate comes in as gate and dup as up.
@group(0) @binding(next) var<storage, read_write> dgate: array<Act>;
@group(0) @binding(next) var<storage, read_write> dup: array<Act>;
@group(0) @binding(next) var<storage, read_write> dh: array<Act>;
#if !INPLACE_GATE
@group(0) @binding(next) var<storage, read_write> gate: array<Act>;
#end
#if !INPLACE_UP
@group(0) @binding(next) var<storage, read_write> up: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn gated_act_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = element(wg, groups, lid, k);
        if i < p.n {
#if INPLACE_GATE
            let a = both(wide(dgate[i]));
#else
            let a = both(wide(gate[i]));
#end
#if INPLACE_UP
            let u = wide(dup[i]);
#else
            let u = wide(up[i]);
#end
            let d = wide(dh[i]);
            dgate[i] = kept(d * u * a[1]);
            dup[i] = kept(d * a[0]);
        }
    }
}
#end
