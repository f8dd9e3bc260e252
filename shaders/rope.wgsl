// Rotary position embeddings: in each head, features i and i + half are rotated by the angle of the token's position,
// y1 = x1 cos − x2 sin, y2 = x2 cos + x1 sin (the sine negated backward); features from 2 half on pass.
// With HALF activations are f16, and features are counted in fours (common/act.wgsl).
// variant: [INPLACE] [HALF]
#include "common/act.wgsl"

override WG: u32 = 64u;

struct Params {
    // Tokens of this dispatch, and the index of the first among all.
    tokens: u32,
    first: u32,
    heads: u32,
    // Units of features.
    head_dim: u32,
    // Units of pairs that are rotated; rows of the table.
    half: u32,
    rows: u32,
    // 1, or −1 backward.
    sign: f32,
}

@group(0) @binding(next) var<storage, read_write> y: array<Act>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> table: array<Unit>;
@group(0) @binding(next) var<storage, read_write> positions: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

fn element(i: u32) -> Unit {
#if INPLACE
    return wide(y[i]);
#else
    return wide(x[i]);
#end
}

// An invocation takes a unit of pairs, or of features that pass.
@compute @workgroup_size(WG)
fn rope(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let n = (wg.y * groups.x + wg.x) * WG + lid;
    let each = p.head_dim - p.half;
    let head = n / each;
    let i = n % each;
    let token = head / p.heads;
    if token >= p.tokens { return; }
    let at = head * p.head_dim + i;
    if i >= p.half {
        y[at + p.half] = kept(element(at + p.half));
        return;
    }
    let row = u32(clamp(positions[p.first + token], 0, i32(p.rows) - 1)) * 2u * p.half;
    let c = table[row + i];
    let s = p.sign * table[row + p.half + i];
    let a = element(at);
    let b = element(at + p.half);
    y[at] = kept(a * c - b * s);
    y[at + p.half] = kept(b * c + a * s);
}
