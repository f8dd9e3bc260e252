// Multiply-adds on what stays in registers (src/ops/probe.rs): y = x, then `rounds` times y = 0.75 y + 0.125.
// variant:

override WG: u32 = 64u;
// Elements of an invocation, whose rounds overlap.
const EACH: u32 = 8u;

struct Params {
    n: u32,
    rounds: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn multiply_add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = (wg.y * groups.x + wg.x) * EACH * WG + lid;
    // Neighbours work on neighbours; what is beyond the end is computed of the last element and kept nowhere.
    let last = p.n - 1u;
    var a = vec4f(x[min(first, last)], x[min(first + WG, last)], x[min(first + 2u * WG, last)], x[min(first + 3u * WG, last)]);
    let next = first + 4u * WG;
    var b = vec4f(x[min(next, last)], x[min(next + WG, last)], x[min(next + 2u * WG, last)], x[min(next + 3u * WG, last)]);
    for (var r = 0u; r < p.rounds; r++) {
        a = fma(a, vec4f(0.75), vec4f(0.125));
        b = fma(b, vec4f(0.75), vec4f(0.125));
    }
    for (var k = 0u; k < 4u; k++) {
        if first + k * WG < p.n { y[first + k * WG] = a[k]; }
        if next + k * WG < p.n { y[next + k * WG] = b[k]; }
    }
}
