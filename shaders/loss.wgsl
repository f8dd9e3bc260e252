// The cross entropy of rows of logits, which become their own gradient: inv (softmax - onehot); and the sum of losses.
// The products around it are those of linear.wgsl, linear_dx.wgsl and matmul.wgsl.
// variant: SOFTMAX
// variant: TOTAL
// also: SUBGROUP

const WG: u32 = 256u;
#include "common/reduce.wgsl"

#if SOFTMAX
struct Params {
    // Rows of this dispatch, the vocabulary, and the token of the first row.
    rows: u32,
    cols: u32,
    first: u32,
}
@group(0) @binding(next) var<storage, read_write> logits: array<f32>;
@group(0) @binding(next) var<storage, read_write> losses: array<f32>;
@group(0) @binding(next) var<storage, read_write> labels: array<i32>;
@group(0) @binding(next) var<storage, read_write> inv: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

// A workgroup for each row.
@compute @workgroup_size(WG)
fn softmax(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = wg.y * groups.x + wg.x;
    if row >= p.rows { return; }
    // A label that is not trained on is negative, as an unsigned number beyond every vocabulary.
    let label = bitcast<u32>(labels[p.first + row]);
    let at = row * p.cols;
    if label >= p.cols {
        for (var c = lid; c < p.cols; c += WG) { logits[at + c] = 0.0; }
        if lid == 0u { losses[p.first + row] = 0.0; }
        return;
    }
    let at_label = logits[at + label];
    var most = at_label;
    for (var c = lid; c < p.cols; c += WG) { most = max(most, logits[at + c]); }
    most = reduce_max(lane, most);
    var sum = 0.0;
    for (var c = lid; c < p.cols; c += WG) {
        let e = exp(max(logits[at + c] - most, -100.0));
        logits[at + c] = e;
        sum += e;
    }
    let total = reduce_add(lane, sum);
    let factor = inv[0] / total;
    for (var c = lid; c < p.cols; c += WG) {
        logits[at + c] = logits[at + c] * factor - select(0.0, inv[0], c == label);
    }
    if lid == 0u { losses[p.first + row] = most - at_label + log(total); }
}
#end

#if TOTAL
struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> loss: array<f32>;
@group(0) @binding(next) var<storage, read_write> losses: array<f32>;
@group(0) @binding(next) var<storage, read_write> inv: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn total(
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    var sum = 0.0;
    for (var i = lid; i < p.n; i += WG) { sum += losses[i]; }
    let all = reduce_add(lane, sum);
    if lid == 0u { loss[0] = inv[0] * all; }
}
#end
