// Attention, backward, dq_t = scale Σ_s ds_ts k_s with ds_ts = p_ts (dout_t·v_s − δ_t), p_ts = exp(scale q_t·k_s − lse_t),
// over the keys s that query t sees. `stats` holds lse and δ for each head and query.
// D64, D128, D256: the most features that a head may have. VEC: they are a multiple of four. BIAS: p has one by the
// distance of key and query.
// HALF: activations are f16.
// variant: D64|D128|D256 [VEC|VEC+HALF] [BIAS]
#include "common/attention.wgsl"
#include "common/act.wgsl"

#if VEC
@group(0) @binding(next) var<storage, read_write> dq: array<Act4>;
@group(0) @binding(next) var<storage, read_write> q: array<Act4>;
@group(0) @binding(next) var<storage, read_write> k: array<Act4>;
@group(0) @binding(next) var<storage, read_write> v: array<Act4>;
@group(0) @binding(next) var<storage, read_write> dout: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> dq: array<f32>;
@group(0) @binding(next) var<storage, read_write> q: array<f32>;
@group(0) @binding(next) var<storage, read_write> k: array<f32>;
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
@group(0) @binding(next) var<storage, read_write> dout: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(next) var<storage, read_write> key_range: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

#include "common/attention_qk.wgsl"
#include "common/attention_v.wgsl"
#include "common/attention_dout.wgsl"
fn put_dq(row: u32, rows: u32, head: u32, f: u32, v: vec4<f32>) {
    if row >= rows || f >= p.d { return; }
    let i = (row * p.heads + head) * p.d + f;
#if VEC
    dq[i / 4u] = kept4(v);
#else
    dq[i] = v.x;
    if f + 1u < p.d { dq[i + 1u] = v.y; }
    if f + 2u < p.d { dq[i + 2u] = v.z; }
    if f + 3u < p.d { dq[i + 3u] = v.w; }
#end
}

fn seen(t: u32) -> vec2<u32> {
    if t >= p.t { return vec2<u32>(0u); }
    return visible(t, vec2<i32>(key_range[2u * t], key_range[2u * t + 1u]), p.s, p.causal, p.window);
}

#include "common/attention_stats.wgsl"

// ds of a row. `lse`: less the bias.
fn slope(score: vec4<f32>, dp: vec4<f32>, lse: vec4<f32>, delta: f32, range: vec2<u32>, keys: vec4<u32>) -> vec4<f32> {
    let seen = keys >= vec4<u32>(range.x) & keys < vec4<u32>(range.y);
    return select(vec4<f32>(0.0), exp(score * p.scale - lse) * (dp - delta), seen);
}

// Sums of features from `start` on, plus the weights times those features of the tile's columns.
fn step_k(lid: u32, start: u32, first: u32, head: u32, acc: ptr<function, Quad>) {
    if start >= p.d { return; }
    workgroupBarrier();
    for (var u = lid; u < COLS * 8u; u += THREADS) {
        right[u] = k4(first + u / 8u, p.s, head, start + 4u * (u % 8u));
    }
    workgroupBarrier();
    weigh(lid, acc);
}

fn finish_dq(lid: u32, start: u32, row: u32, head: u32, factor: f32, acc: ptr<function, Quad>) {
    let f = start + 4u * (lid % 8u);
    put_dq(row, p.t, head, f, (*acc)[0] * factor);
    put_dq(row + 1u, p.t, head, f, (*acc)[1] * factor);
    put_dq(row + 2u, p.t, head, f, (*acc)[2] * factor);
    put_dq(row + 3u, p.t, head, f, (*acc)[3] * factor);
}

@compute @workgroup_size(THREADS)
fn attention_dq(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = (p.tile + wg.x) * ROWS;
    let head = wg.y;
    let kv = head / (p.heads / p.kv_heads);
    let row = first + lid / 8u * 4u;
    let s0 = seen(row);
    let s1 = seen(row + 1u);
    let s2 = seen(row + 2u);
    let s3 = seen(row + 3u);
    let t0 = stat(head, row);
    let t1 = stat(head, row + 1u);
    let t2 = stat(head, row + 2u);
    let t3 = stat(head, row + 3u);
#if BIAS
    let m0 = middle(row);
    let m1 = middle(row + 1u);
    let m2 = middle(row + 2u);
    let m3 = middle(row + 3u);
#end
    let keys = meet(lid, seen(first + lid % ROWS));
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
        var dp = Quad();
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
        for (var start = 0u; start < p.d; start += CHUNK) {
            workgroupBarrier();
            for (var u = lid; u < ROWS * 8u; u += THREADS) {
                left[(u % 8u) * LEFT + u / 8u] = dout4(first + u / 8u, p.t, head, start + 4u * (u % 8u));
            }
            for (var u = lid; u < COLS * 8u; u += THREADS) {
                right[(u % 8u) * RIGHT + u / 8u] = v4(key + u / 8u, p.s, kv, start + 4u * (u % 8u));
            }
            workgroupBarrier();
            scores(lid, quads(start, p.d), &dp);
        }
        let index = vec4<u32>(key + lid % 8u) + vec4<u32>(0u, 8u, 16u, 24u);
        var lse = Quad(vec4<f32>(t0.x), vec4<f32>(t1.x), vec4<f32>(t2.x), vec4<f32>(t3.x));
#if BIAS
        lse[0] -= biases(head, vec4<i32>(index) - m0);
        lse[1] -= biases(head, vec4<i32>(index) - m1);
        lse[2] -= biases(head, vec4<i32>(index) - m2);
        lse[3] -= biases(head, vec4<i32>(index) - m3);
#end
        s[0] = slope(s[0], dp[0], lse[0], t0.y, s0, index);
        s[1] = slope(s[1], dp[1], lse[1], t1.y, s1, index);
        s[2] = slope(s[2], dp[2], lse[2], t2.y, s2, index);
        s[3] = slope(s[3], dp[3], lse[3], t3.y, s3, index);
        workgroupBarrier();
        put_weights(lid, &s);
        step_k(lid, 0u, key, kv, &o0);
        step_k(lid, 32u, key, kv, &o1);
#if !D64
        step_k(lid, 64u, key, kv, &o2);
        step_k(lid, 96u, key, kv, &o3);
#end
#if D256
        step_k(lid, 128u, key, kv, &o4);
        step_k(lid, 160u, key, kv, &o5);
        step_k(lid, 192u, key, kv, &o6);
        step_k(lid, 224u, key, kv, &o7);
#end
    }
    finish_dq(lid, 0u, row, head, p.scale, &o0);
    finish_dq(lid, 32u, row, head, p.scale, &o1);
#if !D64
    finish_dq(lid, 64u, row, head, p.scale, &o2);
    finish_dq(lid, 96u, row, head, p.scale, &o3);
#end
#if D256
    finish_dq(lid, 128u, row, head, p.scale, &o4);
    finish_dq(lid, 160u, row, head, p.scale, &o5);
    finish_dq(lid, 192u, row, head, p.scale, &o6);
    finish_dq(lid, 224u, row, head, p.scale, &o7);
#end
}
