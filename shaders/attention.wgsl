// Attention, forward: out_t = Σ_s p_ts v_s with p_ts = exp(scale q_t·k_s − lse_t) over the keys s that query t sees,
// lse_t = ln Σ_s exp(scale q_t·k_s); flash style (Dao et al. 2022), the softmax running over tiles of keys.
// D64, D128, D256: the most features that a head may have. VEC: they are a multiple of four. BIAS: one by the distance of
// key and query is added to the scores.
// HALF: activations are f16.
// variant: D64|D128|D256 [VEC|VEC+HALF] [BIAS]
#include "common/attention.wgsl"
#include "common/act.wgsl"

#if VEC
@group(0) @binding(next) var<storage, read_write> out: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> out: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> lse: array<f32>;
#if VEC
@group(0) @binding(next) var<storage, read_write> q: array<Act4>;
@group(0) @binding(next) var<storage, read_write> k: array<Act4>;
@group(0) @binding(next) var<storage, read_write> v: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> q: array<f32>;
@group(0) @binding(next) var<storage, read_write> k: array<f32>;
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> key_range: array<i32>;
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
@group(0) @binding(next) var<storage, read_write> q_pos: array<i32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// Of each row, a number of each of the eight invocations that share it.
var<workgroup> partial: array<f32, 512>;

#include "common/attention_qk.wgsl"
#include "common/attention_v.wgsl"
fn put_out(row: u32, rows: u32, head: u32, f: u32, v: vec4<f32>) {
    if row >= rows || f >= p.d { return; }
    let i = (row * p.heads + head) * p.d + f;
#if VEC
    out[i / 4u] = kept4(v);
#else
    out[i] = v.x;
    if f + 1u < p.d { out[i + 1u] = v.y; }
    if f + 2u < p.d { out[i + 2u] = v.z; }
    if f + 3u < p.d { out[i + 3u] = v.w; }
#end
}

fn seen(t: u32) -> vec2<u32> {
    if t >= p.t { return vec2<u32>(0u); }
    return visible(t, vec2<i32>(key_range[2u * t], key_range[2u * t + 1u]), p.s, p.causal, p.window);
}

#if BIAS
fn bias_at(i: u32) -> f32 {
    return bias[i];
}
// The key at distance 0 of query t, the first that it sees being `first`.
fn middle(t: u32, first: u32) -> i32 {
    if t >= p.t { return 0; }
    return i32(first) + q_pos[t];
}
#include "common/attention_bias.wgsl"
#end

// The eight numbers of row 4 g + i.
fn row_max(lid: u32, i: u32) -> f32 {
    let at = (lid / 8u * 4u + i) * 8u;
    return max(
        max(max(partial[at], partial[at + 1u]), max(partial[at + 2u], partial[at + 3u])),
        max(max(partial[at + 4u], partial[at + 5u]), max(partial[at + 6u], partial[at + 7u])),
    );
}
fn row_sum(lid: u32, i: u32) -> f32 {
    let at = (lid / 8u * 4u + i) * 8u;
    return ((partial[at] + partial[at + 1u]) + (partial[at + 2u] + partial[at + 3u]))
        + ((partial[at + 4u] + partial[at + 5u]) + (partial[at + 6u] + partial[at + 7u]));
}
fn put_partial(lid: u32, x: vec4<f32>) {
    let at = lid / 8u * 32u + lid % 8u;
    partial[at] = x.x;
    partial[at + 8u] = x.y;
    partial[at + 16u] = x.z;
    partial[at + 24u] = x.w;
}

fn highest(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

// Scores of a row: scaled, and far below any where the key is not seen.
const LOW: f32 = -1e30;
fn masked(score: vec4<f32>, range: vec2<u32>, keys: vec4<u32>) -> vec4<f32> {
    return select(vec4<f32>(LOW), score * p.scale, keys >= vec4<u32>(range.x) & keys < vec4<u32>(range.y));
}
fn weights(score: vec4<f32>, top: f32, range: vec2<u32>, keys: vec4<u32>) -> vec4<f32> {
    let seen = keys >= vec4<u32>(range.x) & keys < vec4<u32>(range.y);
    return select(vec4<f32>(0.0), exp(score - top), seen);
}

// Sums of features from `start` on: times `factor`, plus the weights times the values of the tile at `key`.
fn step(lid: u32, start: u32, key: u32, head: u32, factor: vec4<f32>, acc: ptr<function, Quad>) {
    if start >= p.d { return; }
    workgroupBarrier();
    for (var u = lid; u < COLS * 8u; u += THREADS) {
        right[u] = v4(key + u / 8u, p.s, head, start + 4u * (u % 8u));
    }
    workgroupBarrier();
    (*acc)[0] *= factor.x;
    (*acc)[1] *= factor.y;
    (*acc)[2] *= factor.z;
    (*acc)[3] *= factor.w;
    weigh(lid, acc);
}

fn finish(lid: u32, start: u32, row: u32, head: u32, factor: vec4<f32>, acc: ptr<function, Quad>) {
    let f = start + 4u * (lid % 8u);
    put_out(row, p.t, head, f, (*acc)[0] * factor.x);
    put_out(row + 1u, p.t, head, f, (*acc)[1] * factor.y);
    put_out(row + 2u, p.t, head, f, (*acc)[2] * factor.z);
    put_out(row + 3u, p.t, head, f, (*acc)[3] * factor.w);
}

@compute @workgroup_size(THREADS)
fn attention(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = (p.tile + wg.x) * ROWS;
    let head = wg.y;
    let kv = head / (p.heads / p.kv_heads);
    let row = first + lid / 8u * 4u;
    let s0 = seen(row);
    let s1 = seen(row + 1u);
    let s2 = seen(row + 2u);
    let s3 = seen(row + 3u);
#if BIAS
    let m0 = middle(row, s0.x);
    let m1 = middle(row + 1u, s1.x);
    let m2 = middle(row + 2u, s2.x);
    let m3 = middle(row + 3u, s3.x);
#end
    let keys = meet(lid, seen(first + lid % ROWS));
    var top = vec4<f32>(LOW);
    var sum = vec4<f32>(0.0);
    var o0 = Quad();
    var o1 = Quad();
#if !D64
    var o2 = Quad();
    var o3 = Quad();
#end
#if D256
    var o4 = Quad();
    var o5 = Quad();
    var o6 = Quad();
    var o7 = Quad();
#end
    for (var key = keys.x; key < keys.y; key += COLS) {
        var s = Quad();
        for (var start = 0u; start < p.d; start += CHUNK) {
            workgroupBarrier();
            for (var u = lid; u < ROWS * 8u; u += THREADS) {
                left[(u % 8u) * LEFT + u / 8u] = q4(first + u / 8u, p.t, head, start + 4u * (u % 8u));
            }
            for (var u = lid; u < COLS * 8u; u += THREADS) {
                right[(u % 8u) * RIGHT + u / 8u] = k4(key + u / 8u, p.s, kv, start + 4u * (u % 8u));
            }
            workgroupBarrier();
            scores(lid, quads(start, p.d), &s);
        }
        let index = vec4<u32>(key + lid % 8u) + vec4<u32>(0u, 8u, 16u, 24u);
        s[0] = masked(s[0], s0, index);
        s[1] = masked(s[1], s1, index);
        s[2] = masked(s[2], s2, index);
        s[3] = masked(s[3], s3, index);
#if BIAS
        // What is masked stays far below.
        s[0] += biases(head, vec4<i32>(index) - m0);
        s[1] += biases(head, vec4<i32>(index) - m1);
        s[2] += biases(head, vec4<i32>(index) - m2);
        s[3] += biases(head, vec4<i32>(index) - m3);
#end
        put_partial(lid, vec4<f32>(highest(s[0]), highest(s[1]), highest(s[2]), highest(s[3])));
        workgroupBarrier();
        let now = max(top, vec4<f32>(row_max(lid, 0u), row_max(lid, 1u), row_max(lid, 2u), row_max(lid, 3u)));
        let factor = exp(top - now);
        top = now;
        s[0] = weights(s[0], now.x, s0, index);
        s[1] = weights(s[1], now.y, s1, index);
        s[2] = weights(s[2], now.z, s2, index);
        s[3] = weights(s[3], now.w, s3, index);
        // Each invocation sums its own columns; they meet at the end.
        let one = vec4<f32>(1.0);
        sum = sum * factor + vec4<f32>(dot(s[0], one), dot(s[1], one), dot(s[2], one), dot(s[3], one));
        put_weights(lid, &s);
        step(lid, 0u, key, kv, factor, &o0);
        step(lid, 32u, key, kv, factor, &o1);
#if !D64
        step(lid, 64u, key, kv, factor, &o2);
        step(lid, 96u, key, kv, factor, &o3);
#end
#if D256
        step(lid, 128u, key, kv, factor, &o4);
        step(lid, 160u, key, kv, factor, &o5);
        step(lid, 192u, key, kv, factor, &o6);
        step(lid, 224u, key, kv, factor, &o7);
#end
    }
    workgroupBarrier();
    put_partial(lid, sum);
    workgroupBarrier();
    let total = vec4<f32>(row_sum(lid, 0u), row_sum(lid, 1u), row_sum(lid, 2u), row_sum(lid, 3u));
    let inverse = select(vec4<f32>(0.0), 1.0 / max(total, vec4<f32>(1e-30)), total > vec4<f32>(0.0));
    finish(lid, 0u, row, head, inverse, &o0);
    finish(lid, 32u, row, head, inverse, &o1);
#if !D64
    finish(lid, 64u, row, head, inverse, &o2);
    finish(lid, 96u, row, head, inverse, &o3);
#end
#if D256
    finish(lid, 128u, row, head, inverse, &o4);
    finish(lid, 160u, row, head, inverse, &o5);
    finish(lid, 192u, row, head, inverse, &o6);
    finish(lid, 224u, row, head, inverse, &o7);
#end
    if lid % 8u < 4u {
        let i = lid % 8u;
        if row + i < p.t {
            let nothing = bitcast<f32>(p.negative_infinity);
            lse[head * p.t + row + i] = select(nothing, top[i] + log(max(total[i], 1e-30)), total[i] > 0.0);
        }
    }
}
