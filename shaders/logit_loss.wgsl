// Losses of logits in memory, and their gradients (src/ops/logit_loss.rs has the equations): a workgroup for each row, or
// for each range of rows and column. What it adds to the loss goes into `losses`, which loss.wgsl sums.
// variant: SOFTMAX
// variant: SOFTMAX GRAD
// variant: SOFTMAX GRAD INPLACE
// variant: RANGE
// variant: RANGE GRAD
// variant: BCE
// variant: BCE GRAD
// variant: BCE GRAD INPLACE
// variant: MSE
// variant: MSE GRAD
// variant: MSE GRAD INPLACE
// also: SUBGROUP

override WG: u32 = 64u;
#include "common/reduce.wgsl"

struct Params {
#if RANGE
    // Rows of the logits, pairs of a range and a column, and columns.
    rows: u32,
    pairs: u32,
    cols: u32,
#else
    // Rows of this dispatch, the index of the first among all, and columns.
    rows: u32,
    first: u32,
    cols: u32,
#end
}

// In place, dx comes in as x.
#if GRAD
@group(0) @binding(next) var<storage, read_write> dx: array<f32>;
#end
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> losses: array<f32>;
#if SOFTMAX
@group(0) @binding(next) var<storage, read_write> labels: array<i32>;
#end
#if RANGE
@group(0) @binding(next) var<storage, read_write> ranges: array<i32>;
@group(0) @binding(next) var<storage, read_write> labels: array<i32>;
#end
#if !SOFTMAX && !RANGE
@group(0) @binding(next) var<storage, read_write> targets: array<f32>;
@group(0) @binding(next) var<storage, read_write> weight: array<f32>;
#end
#if GRAD
@group(0) @binding(next) var<storage, read_write> inv: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

fn x_at(i: u32) -> f32 {
#if INPLACE
    return dx[i];
#else
    return x[i];
#end
}

#if !BCE && !MSE
// e^d for d <= 0: 1 at 0, so that a single logit has the probability 1, and no smaller than WGSL promises.
fn exp_of(d: f32) -> f32 {
    return select(exp(max(d, -80.0)), 1.0, d >= 0.0);
}

// The cross entropy of the `n` logits from `at` on, `step` apart; dx = inv (softmax - onehot).
fn softmax_loss(lane: Lane, at: u32, n: u32, step: u32, label: u32) -> f32 {
    let at_label = x_at(at + label * step);
    var most = at_label;
    for (var i = lane.index; i < n; i += WG) { most = max(most, x_at(at + i * step)); }
    most = reduce_max(lane, most);
    var sum = 0.0;
    for (var i = lane.index; i < n; i += WG) { sum += exp_of(x_at(at + i * step) - most); }
    let total = reduce_add(lane, sum);
#if GRAD
    for (var i = lane.index; i < n; i += WG) {
        let e = exp_of(x_at(at + i * step) - most);
        dx[at + i * step] = inv[0] * (e / total - select(0.0, 1.0, i == label));
    }
#end
    return most - at_label + log(total);
}
#end

#if SOFTMAX
@compute @workgroup_size(WG)
fn cross_entropy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    if row >= p.rows { return; }
    let at = row * p.cols;
    // A negative label is a large number, beyond every column.
    let label = bitcast<u32>(labels[p.first + row]);
    if label >= p.cols {
#if GRAD
        for (var c = lid; c < p.cols; c += WG) { dx[at + c] = 0.0; }
#end
        if lid == 0u { losses[p.first + row] = 0.0; }
        return;
    }
    let loss = softmax_loss(lane, at, p.cols, 1u, label);
    if lid == 0u { losses[p.first + row] = loss; }
}
#end

#if RANGE
// dx is 0 before.
@compute @workgroup_size(WG)
fn range_cross_entropy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let pair = wg.y * groups.x + wg.x;
    if pair >= p.pairs { return; }
    let range = pair / p.cols;
    let first = ranges[2u * range];
    let end = ranges[2u * range + 1u];
    let label = labels[pair];
    let within = first >= 0 && end > first && end <= i32(p.rows);
    if !within || label < 0 || label >= end - first {
        if lid == 0u { losses[pair] = 0.0; }
        return;
    }
    let at = u32(first) * p.cols + pair % p.cols;
    let loss = softmax_loss(lane, at, u32(end - first), p.cols, u32(label));
    if lid == 0u { losses[pair] = loss; }
}
#end

#if BCE
// ln(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)): WGSL's log loses the digits of a small e.
fn log1p(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let z = s * s;
    var q = z / 15.0 + 1.0 / 13.0;
    q = q * z + 1.0 / 11.0;
    q = q * z + 1.0 / 9.0;
    q = q * z + 1.0 / 7.0;
    q = q * z + 0.2;
    q = q * z + 1.0 / 3.0;
    return 2.0 * s * (q * z + 1.0);
}

// The loss of an element with its target, and the slope. Arguments of exp stay where it does not underflow.
fn element(x: f32, t: f32) -> vec2<f32> {
    let e = exp(-min(abs(x), 80.0));
    return vec2<f32>(max(x, 0.0) - x * t + log1p(e), select(1.0, e, x < 0.0) / (1.0 + e) - t);
}
#end
#if MSE
fn element(x: f32, t: f32) -> vec2<f32> {
    return vec2<f32>((x - t) * (x - t), 2.0 * (x - t));
}
#end

#if !SOFTMAX && !RANGE
fn elements(lane: Lane, row: u32) {
    let at = row * p.cols;
    let w = weight[p.first + row];
    if w == 0.0 {
#if GRAD
        for (var c = lane.index; c < p.cols; c += WG) { dx[at + c] = 0.0; }
#end
        if lane.index == 0u { losses[p.first + row] = 0.0; }
        return;
    }
    var sum = 0.0;
    for (var c = lane.index; c < p.cols; c += WG) {
        let e = element(x_at(at + c), targets[at + c]);
        sum += e.x;
#if GRAD
        dx[at + c] = inv[0] * w * e.y;
#end
    }
    let all = reduce_add(lane, sum);
    if lane.index == 0u { losses[p.first + row] = w * all; }
}
#end

#if BCE
@compute @workgroup_size(WG)
fn bce_with_logits(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let row = wg.y * groups.x + wg.x;
    if row < p.rows { elements(Lane(lid, subgroup, subgroups), row); }
}
#end
#if MSE
@compute @workgroup_size(WG)
fn mse(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let row = wg.y * groups.x + wg.x;
    if row < p.rows { elements(Lane(lid, subgroup, subgroups), row); }
}
#end
