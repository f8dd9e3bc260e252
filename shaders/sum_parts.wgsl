// The parts of a product whose sum was split, in order: c[i] = alpha sum over z of parts[z,i] (+ bias[i mod n]) (+ add[i]).
// With HALF c and what is added are f16, and lengths are counted in fours (common/act.wgsl).
// variant: [BIAS|ACC] [HALF]
#include "common/act.wgsl"

// Add to what c holds.
override ADD: bool = false;
const WG: u32 = 64u;

struct Params {
    // Units of c, and parts.
    len: u32,
    parts: u32,
    // Units of the bias.
    n: u32,
    alpha: f32,
}
@group(0) @binding(next) var<storage, read_write> c: array<Act>;
@group(0) @binding(next) var<storage, read_write> parts: array<Unit>;
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<Unit>;
#end
#if ACC
@group(0) @binding(next) var<storage, read_write> add: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn sum_parts(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.len { return; }
    var sum = Unit();
    for (var z = 0u; z < p.parts; z++) { sum += parts[z * p.len + i]; }
    sum *= p.alpha;
#if BIAS
    sum += bias[i % p.n];
#end
#if ACC
    sum += wide(add[i]);
#end
    if ADD { sum += wide(c[i]); }
    c[i] = kept(sum);
}
