// Columns of a table by index: y = scale table[:, ids] transposed, and the gradient of the table.
// variant: GATHER
// variant: SCATTER

override WG: u32 = 64u;

struct Params {
    // Tokens of this dispatch, and the first of them.
    n: u32,
    first: u32,
    // Rows and columns of the table; the elements of it that are bound.
    rows: u32,
    cols: u32,
    start: u32,
    end: u32,
    scale: f32,
}

#if GATHER
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> ids: array<i32>;
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn embed_cols(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n * p.rows { return; }
    // A negative id is a large number, beyond every table.
    let id = bitcast<u32>(ids[p.first + i / p.rows]);
    let at = (i % p.rows) * p.cols + id;
    if id >= p.cols {
        if p.start == 0u { y[i] = 0.0; }
    } else if at >= p.start && at < p.end {
        y[i] = p.scale * w[at - p.start];
    }
}
#end

#if SCATTER
@group(0) @binding(next) var<storage, read_write> dw: array<f32>;
@group(0) @binding(next) var<storage, read_write> ids: array<i32>;
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

#include "common/ids.wgsl"

// A workgroup for each token. Where no earlier token has its id, it adds all of that id, in order.
@compute @workgroup_size(WG)
fn embed_cols_dw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y * groups.x + wg.x;
    let id = id_of(t);
    if !first_of_id(t, lid) || id >= p.cols { return; }
    for (var s = t; s < p.n; s++) {
        if id_of(s) == id {
            for (var r = lid; r < p.rows; r += WG) {
                let at = r * p.cols + id;
                if at >= p.start && at < p.end {
                    dw[at - p.start] += p.scale * dy[s * p.rows + r];
                }
            }
        }
    }
}
#end
