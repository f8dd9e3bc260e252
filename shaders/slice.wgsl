// Columns of a matrix taken out, and the gradient that puts them back (src/ops/slice.rs). An invocation an element.
// variant: SLICE_COLS
// variant: SLICE_COLS_DX
// variant: SLICE_COLS_DX ACC
// variant: SLICE_COLS_DX INPLACE

override WG: u32 = 64u;

struct Params {
    // Elements of this dispatch, and of a row of it.
    n: u32,
    width: u32,
    // Columns of the wide matrix; the first of the slice, and their number.
    columns: u32,
    start: u32,
    count: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

#if SLICE_COLS
// y = columns of x.
@compute @workgroup_size(WG)
fn slice_cols(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n { return; }
    let row = i / p.width;
    y[i] = x[row * p.columns + p.start + (i - row * p.width)];
}
#end

#if SLICE_COLS_DX
// y = zeros with x in the slice's columns (+ acc). In place, only those columns are gone over.
@compute @workgroup_size(WG)
fn slice_cols_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * WG + lid;
    if i >= p.n { return; }
    let row = i / p.width;
    let col = i - row * p.width;
#if INPLACE
    y[row * p.columns + p.start + col] += x[i];
#else
#if ACC
    var v = acc[i];
#else
    var v = 0.0;
#end
    if col >= p.start && col < p.start + p.count { v += x[row * p.count + col - p.start]; }
    y[i] = v;
#end
}
#end
