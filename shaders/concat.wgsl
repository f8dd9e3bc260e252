// Elements copied from one place to another: rows after rows, and rows taken out (src/ops/concat.rs).
// variant:

override WG: u32 = 64u;
// Elements of an invocation.
const EACH: u32 = 4u;

struct Params {
    n: u32,
    // The first element in what is bound of y, and of x.
    to: u32,
    start: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn copy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n { y[p.to + i] = x[p.start + i]; }
    }
}
