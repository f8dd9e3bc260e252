// Attention, the gradient of the table of biases: dbias[r,h] = Σ ds_ts over the queries t and the keys s that t sees at
// the distance of row r, ds_ts = p_ts (dout_t·v_s − δ_t), p_ts = exp(scale q_t·k_s + bias[r,h] − lse_t). A workgroup has a
// row and a head; each invocation adds up its queries' terms in order. `stats`: attention_delta.wgsl, with BIAS.
// With HALF activations are f16, which are taken by fours (common/act.wgsl).
// variant: BIAS [HALF]
// also: SUBGROUP
#include "common/attention.wgsl"
#include "common/act.wgsl"

@group(0) @binding(next) var<storage, read_write> dbias: array<f32>;
@group(0) @binding(next) var<storage, read_write> q: array<Act>;
@group(0) @binding(next) var<storage, read_write> k: array<Act>;
@group(0) @binding(next) var<storage, read_write> v: array<Act>;
@group(0) @binding(next) var<storage, read_write> dout: array<Act>;
@group(0) @binding(next) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(next) var<storage, read_write> key_range: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

const WG: u32 = 64u;
#include "common/reduce.wgsl"
#include "common/attention_stats.wgsl"

@compute @workgroup_size(WG)
fn attention_dbias(@builtin(workgroup_id) wg: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let row = p.tile + wg.x;
    let head = wg.y;
    let kv = head / (p.heads / p.kv_heads);
    let d = p.d / UNIT;
    let bias = bias_at(row * p.heads + head);
    var sum = 0.0;
    for (var t = lid; t < p.t; t += WG) {
        let range = visible(t, vec2<i32>(key_range[2u * t], key_range[2u * t + 1u]), p.s, p.causal, p.window);
        var keys = vec2<i32>(range);
        // The key at the distance of this row; the outermost rows have all that are farther too.
        let key = middle(t) + i32(row) - i32(p.farthest);
        if row > 0u { keys.x = max(keys.x, key); }
        if row < 2u * p.farthest { keys.y = min(keys.y, key + 1); }
        let known = stat(head, t);
        let left = (t * p.heads + head) * d;
        for (var s = keys.x; s < keys.y; s++) {
            let right = (u32(s) * p.kv_heads + kv) * d;
            var score = 0.0;
            var dp = 0.0;
            for (var i = 0u; i < d; i++) {
                score += sum_of(wide(q[left + i]) * wide(k[right + i]));
                dp += sum_of(wide(dout[left + i]) * wide(v[right + i]));
            }
            sum += exp(score * p.scale + bias - known.x) * (dp - known.y);
        }
    }
    let total = reduce_add(lane, sum);
    if lid == 0u { dbias[row * p.heads + head] = total; }
}
