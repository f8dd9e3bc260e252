// The parts of a product whose sum was split, in order: c[i] = alpha sum over z of parts[z,i] (+ bias[i mod n]) (+ add[i]).
// variant:
// variant: BIAS
// variant: ACC

// Add to what c holds.
override ADD: bool = false;
const WG: u32 = 64u;

struct Params {
    // Elements of c, and parts.
    len: u32,
    parts: u32,
    // Elements of the bias.
    n: u32,
    alpha: f32,
}
@group(0) @binding(next) var<storage, read_write> c: array<f32>;
@group(0) @binding(next) var<storage, read_write> parts: array<f32>;
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
#end
#if ACC
@group(0) @binding(next) var<storage, read_write> add: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn sum_parts(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.len { return; }
    var sum = 0.0;
    for (var z = 0u; z < p.parts; z++) { sum += parts[z * p.len + i]; }
    sum *= p.alpha;
#if BIAS
    sum += bias[i % p.n];
#end
#if ACC
    sum += add[i];
#end
    if ADD { sum += c[i]; }
    c[i] = sum;
}
