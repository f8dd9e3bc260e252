// Rows of a table by index: y = scale table[ids], the gradient of the table, and rows written into a cache.
// variant: EMBED W_F32
// variant: EMBED W_BF16
// variant: EMBED W_F16
// variant: EMBED W_F16 F16
// variant: EMBED_DW
// variant: CACHE_WRITE [HALF]
// variant: COPY
// variant: FILL

override WG: u32 = 64u;

#if EMBED
#include "common/weight.wgsl"
struct Params {
    // Tokens of this dispatch, and the first of them.
    n: u32,
    first: u32,
    cols: u32,
    // Rows of the table, and those that are bound.
    rows: u32,
    start: u32,
    end: u32,
    scale: f32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> ids: array<i32>;
#include "common/weight_binding.wgsl"
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn embed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n * p.cols { return; }
    // A negative id is a large number, beyond every table.
    let id = bitcast<u32>(ids[p.first + i / p.cols]);
    if id >= p.start && id < p.end {
        y[i] = p.scale * weight_at((id - p.start) * p.cols + i % p.cols);
    } else if p.start == 0u && id >= p.rows {
        y[i] = 0.0;
    }
}
#end

#if EMBED_DW
struct Params {
    // Tokens of this dispatch, and the first of them.
    n: u32,
    first: u32,
    cols: u32,
    // Rows of the table that are bound.
    start: u32,
    end: u32,
    scale: f32,
}
@group(0) @binding(next) var<storage, read_write> dw: array<f32>;
@group(0) @binding(next) var<storage, read_write> ids: array<i32>;
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

#include "common/ids.wgsl"

// A workgroup for each token. Where no earlier token has its id, it adds all of that id, in order.
@compute @workgroup_size(WG)
fn embed_dw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y * groups.x + wg.x;
    let id = id_of(t);
    if !first_of_id(t, lid) || id < p.start || id >= p.end { return; }
    for (var s = t; s < p.n; s++) {
        if id_of(s) == id {
            for (var c = lid; c < p.cols; c += WG) {
                dw[(id - p.start) * p.cols + c] += p.scale * dy[s * p.cols + c];
            }
        }
    }
}
#end

#if CACHE_WRITE
// With HALF rows are of f16, and columns are counted in fours.
#include "common/act.wgsl"
struct Params {
    // Tokens of this dispatch, and the first of them.
    n: u32,
    first: u32,
    cols: u32,
    // Rows of the cache that are bound.
    start: u32,
    end: u32,
}
@group(0) @binding(next) var<storage, read_write> cache: array<Act>;
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
@group(0) @binding(next) var<storage, read_write> positions: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn cache_write(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n * p.cols { return; }
    let row = bitcast<u32>(positions[p.first + i / p.cols]);
    if row >= p.start && row < p.end {
        cache[(row - p.start) * p.cols + i % p.cols] = x[i];
    }
}
#end

#if COPY
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<u32>;
@group(0) @binding(next) var<storage, read_write> x: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;
#end
#if FILL
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;
#end
#if !EMBED && !EMBED_DW && !CACHE_WRITE
// What later dispatches write into: a copy, or zeros.
@compute @workgroup_size(WG)
fn start(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < 4u; k++) {
        let i = ((wg.y * groups.x + wg.x) * 4u + k) * WG + lid;
        if i < p.n {
#if COPY
            y[i] = x[i];
#else
            y[i] = 0u;
#end
        }
    }
}
#end
