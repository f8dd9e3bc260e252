// Attention, backward: for each head and query, lse and δ_t = Σ over features of dout out, side by side.
// variant:
override WG: u32 = 64u;

struct Params {
    t: u32,
    d: u32,
    heads: u32,
}

@group(0) @binding(next) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(next) var<storage, read_write> out: array<f32>;
@group(0) @binding(next) var<storage, read_write> lse: array<f32>;
@group(0) @binding(next) var<storage, read_write> dout: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn attention_delta(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let n = (wg.y * groups.x + wg.x) * WG + lid;
    if n >= p.t * p.heads { return; }
    let at = n / p.heads + n % p.heads * p.t;
    var delta = 0.0;
    for (var i = 0u; i < p.d; i++) { delta += dout[n * p.d + i] * out[n * p.d + i]; }
    stats[at] = vec2<f32>(lse[at], delta);
}
