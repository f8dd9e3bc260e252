// Layer norm: y = (x − mean) rstd w + b, rstd = 1 / sqrt(var + eps), and its gradient with respect to x,
// dx = rstd (g − mean(g) − n mean(g n)) with g = dy w and n = (x − mean) rstd, one workgroup a row. The gradient with
// respect to w is in norm.wgsl.
// With HALF activations are f16, and features are counted in fours (common/act.wgsl).
// variant: FORWARD|DX|DX+ACC|DX+IN_DY|DX+IN_DY+ACC|DX+ACC+IN_ACC [HALF]
// also: SUBGROUP
#include "common/act.wgsl"

override WG: u32 = 64u;

struct Params {
    // Rows of this dispatch, the index of the first among all, and units of features.
    rows: u32,
    first: u32,
    cols: u32,
    eps: f32,
}

#if FORWARD
@group(0) @binding(next) var<storage, read_write> y: array<Act>;
@group(0) @binding(next) var<storage, read_write> mean: array<f32>;
@group(0) @binding(next) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
@group(0) @binding(next) var<storage, read_write> w: array<Unit>;
@group(0) @binding(next) var<storage, read_write> b: array<Unit>;
@group(0) @binding(next) var<uniform> p: Params;
#end
#if DX
@group(0) @binding(next) var<storage, read_write> dx: array<Act>;
#if !IN_DY
@group(0) @binding(next) var<storage, read_write> dy: array<Act>;
#end
@group(0) @binding(next) var<storage, read_write> x: array<Act>;
@group(0) @binding(next) var<storage, read_write> w: array<Unit>;
@group(0) @binding(next) var<storage, read_write> mean: array<f32>;
@group(0) @binding(next) var<storage, read_write> rstd: array<f32>;
#if ACC && !IN_ACC
@group(0) @binding(next) var<storage, read_write> acc: array<Act>;
#end
@group(0) @binding(next) var<uniform> p: Params;
#end

#include "common/reduce.wgsl"

#if FORWARD
@compute @workgroup_size(WG)
fn layer_norm(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    let live = row < p.rows;
    let at = row * p.cols;
    var sum = 0.0;
    if live {
        for (var i = lid; i < p.cols; i += WG) { sum += sum_of(wide(x[at + i])); }
    }
    // The mean but for the rounding of its sum. Deviations from it give the variance, which is exact where the mean is
    // large, and by how much the mean is above it.
    let about = reduce_add(lane, sum) / f32(p.cols * UNIT);
    var parts = vec4<f32>(0.0);
    if live {
        for (var i = lid; i < p.cols; i += WG) {
            let d = wide(x[at + i]) - about;
            parts += vec4<f32>(sum_of(d), sum_of(d * d), 0.0, 0.0);
        }
    }
    let means = reduce_add4(lane, parts) / f32(p.cols * UNIT);
    let s = 1.0 / sqrt(max(means.y - means.x * means.x, 0.0) + p.eps);
    if live {
        for (var i = lid; i < p.cols; i += WG) { y[at + i] = kept((wide(x[at + i]) - about - means.x) * s * w[i] + b[i]); }
        if lid == 0u {
            mean[p.first + row] = about + means.x;
            rstd[p.first + row] = s;
        }
    }
}
#end

#if DX
fn gradient(at: u32, i: u32) -> Unit {
#if IN_DY
    return wide(dx[at + i]) * w[i];
#else
    return wide(dy[at + i]) * w[i];
#end
}

@compute @workgroup_size(WG)
fn layer_norm_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    let live = row < p.rows;
    let at = row * p.cols;
    var m = 0.0;
    var s = 0.0;
    var parts = vec4<f32>(0.0);
    if live {
        m = mean[p.first + row];
        s = rstd[p.first + row];
        for (var i = lid; i < p.cols; i += WG) {
            let g = gradient(at, i);
            parts += vec4<f32>(sum_of(g), sum_of(g * ((wide(x[at + i]) - m) * s)), 0.0, 0.0);
        }
    }
    let means = reduce_add4(lane, parts) / f32(p.cols * UNIT);
    if live {
        for (var i = lid; i < p.cols; i += WG) {
            var d = s * (gradient(at, i) - means.x - (wide(x[at + i]) - m) * s * means.y);
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
