// Trained tokens of a frozen embedding: which row of theirs an id has, and the table in f32 that their rows go into.
// variant: TOKEN_ROWS
// variant: WIDEN W_F32
// variant: WIDEN W_BF16
// variant: WIDEN W_F16

override WG: u32 = 64u;

#if TOKEN_ROWS
struct Params {
    n: u32,
    tokens: u32,
}
@group(0) @binding(next) var<storage, read_write> rows: array<i32>;
@group(0) @binding(next) var<storage, read_write> rest: array<i32>;
@group(0) @binding(next) var<storage, read_write> ids: array<i32>;
@group(0) @binding(next) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn token_rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n { return; }
    let id = ids[i];
    var row = -1;
    for (var k = 0u; k < p.tokens; k++) {
        if tokens[k] == id {
            row = i32(k);
            break;
        }
    }
    rows[i] = row;
    rest[i] = select(-1, id, row < 0);
}
#end

#if WIDEN
#include "common/weight.wgsl"
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if W_F32
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
#else
@group(0) @binding(next) var<storage, read_write> w: array<u32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn widen(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < 4u; k++) {
        let i = ((wg.y * groups.x + wg.x) * 4u + k) * WG + lid;
        if i < p.n { y[i] = weight_at(i); }
    }
}
#end
