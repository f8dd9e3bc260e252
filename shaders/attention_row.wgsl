// Attention, forward, for few queries (decoding): a workgroup has one query of one head. Of each tile of 64 keys an
// invocation scores one; then it sums features lid, lid + 64, ... of the values. See attention.wgsl for the equations.
// BIAS: one by the distance of key and query is added to the scores.
// With HALF activations are f16, which are taken by fours (common/act.wgsl).
// variant: [BIAS] [HALF]
// also: SUBGROUP
#include "common/attention.wgsl"
#include "common/act.wgsl"

@group(0) @binding(next) var<storage, read_write> out: array<Act>;
@group(0) @binding(next) var<storage, read_write> lse: array<f32>;
@group(0) @binding(next) var<storage, read_write> q: array<Act>;
@group(0) @binding(next) var<storage, read_write> k: array<Act>;
@group(0) @binding(next) var<storage, read_write> v: array<Act>;
@group(0) @binding(next) var<storage, read_write> key_range: array<i32>;
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
@group(0) @binding(next) var<storage, read_write> q_pos: array<i32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

const WG: u32 = 64u;
const LOW: f32 = -1e30;
#include "common/reduce.wgsl"
var<workgroup> shared_p: array<f32, WG>;

fn feature(key: u32, keys: u32, f: u32, kv: u32, old: Unit, factor: f32) -> Unit {
    let d = p.d / UNIT;
    if f >= d { return Unit(); }
    var sum = old * factor;
    for (var j = 0u; j < min(WG, keys - key); j++) {
        sum += shared_p[j] * wide(v[((key + j) * p.kv_heads + kv) * d + f]);
    }
    return sum;
}
fn put_out(at: u32, f: u32, o: Unit) {
    if f < p.d / UNIT { out[at + f] = kept(o); }
}

@compute @workgroup_size(WG)
fn attention_row(@builtin(workgroup_id) wg: vec3<u32>,
#include "common/lane.wgsl"
) {
    let lane = Lane(lid, subgroup, subgroups);
    let t = wg.x;
    let head = wg.y;
    let kv = head / (p.heads / p.kv_heads);
    let d = p.d / UNIT;
    let base = (t * p.heads + head) * d;
    if lid == 0u { ends = visible(t, vec2<i32>(key_range[2u * t], key_range[2u * t + 1u]), p.s, p.causal, p.window); }
    let keys = workgroupUniformLoad(&ends);
    var top = LOW;
    var sum = 0.0;
    var o0 = Unit();
    var o1 = Unit();
    var o2 = Unit();
    var o3 = Unit();
    for (var key = keys.x; key < keys.y; key += WG) {
        var score = LOW;
        if key + lid < keys.y {
            score = 0.0;
            let at = ((key + lid) * p.kv_heads + kv) * d;
            for (var i = 0u; i < d; i++) { score += sum_of(wide(q[base + i]) * wide(k[at + i])); }
            score *= p.scale;
#if BIAS
            let far = i32(p.farthest);
            let distance = i32(key + lid) - i32(keys.x) - q_pos[t];
            score += bias[u32(clamp(distance, -far, far) + far) * p.heads + head];
#end
        }
        let now = max(top, reduce_max(lane, score));
        let factor = exp(top - now);
        top = now;
        let weight = select(0.0, exp(score - now), key + lid < keys.y);
        sum = sum * factor + weight;
        shared_p[lid] = weight;
        workgroupBarrier();
        o0 = feature(key, keys.y, lid, kv, o0, factor);
        o1 = feature(key, keys.y, lid + WG, kv, o1, factor);
        o2 = feature(key, keys.y, lid + 2u * WG, kv, o2, factor);
        o3 = feature(key, keys.y, lid + 3u * WG, kv, o3, factor);
        workgroupBarrier();
    }
    let total = reduce_add(lane, sum);
    let inverse = select(0.0, 1.0 / max(total, 1e-30), total > 0.0);
    put_out(base, lid, o0 * inverse);
    put_out(base, lid + WG, o1 * inverse);
    put_out(base, lid + 2u * WG, o2 * inverse);
    put_out(base, lid + 3u * WG, o3 * inverse);
    if lid == 0u {
        lse[head * p.t + t] = select(bitcast<f32>(p.negative_infinity), top + log(max(total, 1e-30)), total > 0.0);
    }
}
