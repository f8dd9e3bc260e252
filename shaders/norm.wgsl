// Root-mean-square norm: y = x rstd (offset + w), rstd = 1 / sqrt(mean(x²) + eps); its gradient with respect to x,
// dx = rstd (g − x rstd² mean(g x)) with g = dy (offset + w), one workgroup a row; and the one with respect to w,
// dw[i] = Σ over rows of dy x rstd, first over blocks of rows, then over the blocks. With MEAN the latter is the layer
// norm's (norm_layer.wgsl), dy (x − mean) rstd.
// With HALF activations are f16, and features are counted in fours (common/act.wgsl).
// variant: FORWARD|DX|DX+ACC|DX+IN_DY|DX+IN_DY+ACC|DX+ACC+IN_ACC|DW|DW+MEAN [HALF]
// variant: DW_SUM [ACC]
// also: SUBGROUP
#include "common/act.wgsl"

override WG: u32 = 64u;

struct Params {
    // Rows of this dispatch, the index of the first among all, and units of features.
    rows: u32,
    first: u32,
    cols: u32,
    eps: f32,
    offset: f32,
}

#if FORWARD
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
@group(0) @binding(next) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
@group(0) @binding(next) var<storage, read_write> w: array<Unit>;
@group(0) @binding(next) var<uniform> p: Params;
#end
#if DX
@group(0) @binding(next) var<storage, read_write> dx: array<Act>;
#if !IN_DY
@group(0) @binding(next) var<storage, read_write> dy: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
@group(0) @binding(next) var<storage, read_write> w: array<Unit>;
@group(0) @binding(next) var<storage, read_write> rstd: array<f32>;
#if ACC && !IN_ACC
@group(0) @binding(next) var<storage, read_write> acc: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;
#end

#if !DW && !DW_SUM
#include "common/reduce.wgsl"
#end

#if FORWARD
@compute @workgroup_size(WG)
fn rms_norm(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    let live = row < p.rows;
    let at = row * p.cols;
    var sum = 0.0;
    if live {
        for (var i = lid; i < p.cols; i += WG) {
            let v = wide(x[at + i]);
            sum += sum_of(v * v);
        }
    }
    let s = 1.0 / sqrt(reduce_add(lane, sum) / f32(p.cols * UNIT) + p.eps);
    if live {
        for (var i = lid; i < p.cols; i += WG) { y[at + i] = kept(wide(x[at + i]) * s * (p.offset + w[i])); }
        if lid == 0u { rstd[p.first + row] = s; }
    }
}
#end

#if DX
fn gradient(at: u32, i: u32) -> Unit {
#if IN_DY
    return wide(dx[at + i]) * (p.offset + w[i]);
#else
    return wide(dy[at + i]) * (p.offset + w[i]);
#end
}

@compute @workgroup_size(WG)
fn rms_norm_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    let live = row < p.rows;
    let at = row * p.cols;
    var sum = 0.0;
    if live {
        for (var i = lid; i < p.cols; i += WG) { sum += sum_of(gradient(at, i) * wide(x[at + i])); }
    }
    let mean = reduce_add(lane, sum) / f32(p.cols * UNIT);
    if live {
        let s = rstd[p.first + row];
        let along = mean * s * s;
        for (var i = lid; i < p.cols; i += WG) {
            var d = s * (gradient(at, i) - wide(x[at + i]) * along);
#if IN_ACC
            d += wide(dx[at + i]);
#end
#if ACC && !IN_ACC
            d += wide(acc[at + i]);
#end
            dx[at + i] = kept(d);
        }
    }
}
#end

// A workgroup sums 16 columns (of units) in 16 lanes, whose sums are added in a tree.
const COLS: u32 = 16u;
const LANES: u32 = 16u;

#if DW
override ROWS: u32 = 256u;
// f32[blocks of ROWS rows, cols].
@group(0) @binding(next) var<storage, read_write> dy: array<Act>;
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
#if MEAN
@group(0) @binding(next) var<storage, read_write> mean: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(next) var<storage, read_write> partial: array<Unit>;
@group(0) @binding(next) var<uniform> p: Params;
#end
#if DW_SUM
// Add to what dw holds.
override ADD: bool = false;
@group(0) @binding(next) var<storage, read_write> dw: array<f32>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> partial: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;
#end

#if !FORWARD && !DX
var<workgroup> sums: array<Unit, 256>;

// The sum over the lanes of a column; valid in lane 0.
fn total(col: u32, lane: u32, value: Unit) -> Unit {
    sums[lane * COLS + col] = value;
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width { sums[lane * COLS + col] += sums[(lane + width) * COLS + col]; }
    }
    return sums[col];
}
#end

#if DW
@compute @workgroup_size(COLS, LANES)
fn norm_dw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let i = wg.x * COLS + lid.x;
    var sum = Unit();
    if i < p.cols {
        let end = min((wg.y + 1u) * ROWS, p.rows);
        for (var r = wg.y * ROWS + lid.y; r < end; r += LANES) {
#if MEAN
            let d = wide(x[r * p.cols + i]) - mean[p.first + r];
#else
            let d = wide(x[r * p.cols + i]);
#end
            sum += wide(dy[r * p.cols + i]) * (d * rstd[p.first + r]);
        }
    }
    let all = total(lid.x, lid.y, sum);
    if lid.y == 0u && i < p.cols { partial[(p.first / ROWS + wg.y) * p.cols + i] = all; }
}
#end

#if DW_SUM
@compute @workgroup_size(COLS, LANES)
fn norm_dw_sum(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let i = wg.x * COLS + lid.x;
    var sum = 0.0;
    if i < p.cols {
        for (var b = lid.y; b < p.rows; b += LANES) { sum += partial[b * p.cols + i]; }
    }
    var all = total(lid.x, lid.y, sum);
    if lid.y == 0u && i < p.cols {
#if ACC
        all += acc[i];
#end
        if ADD { all += dw[i]; }
        dw[i] = all;
    }
}
#end
