// Attention, backward, dv_s = Σ_t p_ts dout_t and dk_s = scale Σ_t ds_ts q_t with ds_ts = p_ts (dout_t·v_s − δ_t),
// p_ts = exp(scale q_t·k_s − lse_t), over the queries t that see key s, of all heads of the group, in order. `stats` holds
// lse and δ for each head and query. D64, D128, D256: the most features that a head may have. VEC: they are a multiple of
// four. ONLY_DK, ONLY_DV: large heads take a launch for each, for want of registers. BIAS: p has one by the distance of
// key and query.
// HALF: activations are f16.
// variant: D64|D128 [VEC|VEC+HALF] [BIAS]
// variant: D256 [VEC|VEC+HALF] ONLY_DK|ONLY_DV [BIAS]
#include "common/attention.wgsl"
#include "common/act.wgsl"

#if !ONLY_DV
#if VEC
@group(0) @binding(next) var<storage, read_write> dk: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> dk: array<f32>;
#end
#end
#if !ONLY_DK
#if VEC
@group(0) @binding(next) var<storage, read_write> dv: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> dv: array<f32>;
#end
#end
#if VEC
@group(0) @binding(next) var<storage, read_write> q: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> q: array<f32>;
#end
#if VEC
@group(0) @binding(next) var<storage, read_write> k: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> k: array<f32>;
#end
#if !ONLY_DV
#if VEC
@group(0) @binding(next) var<storage, read_write> v: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
#end
#end
#if VEC
@group(0) @binding(next) var<storage, read_write> dout: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> dout: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(next) var<storage, read_write> query_range: array<i32>;
@group(0) @binding(next) var<uniform> p: Params;

#include "common/attention_qk.wgsl"
#include "common/attention_dout.wgsl"
#if !ONLY_DV
#include "common/attention_v.wgsl"
fn put_dk(row: u32, rows: u32, head: u32, f: u32, v: vec4<f32>) {
    if row >= rows || f >= p.d { return; }
    let i = (row * p.kv_heads + head) * p.d + f;
#if VEC
    dk[i / 4u] = kept4(v);
#else
    dk[i] = v.x;
    if f + 1u < p.d { dk[i + 1u] = v.y; }
    if f + 2u < p.d { dk[i + 2u] = v.z; }
    if f + 3u < p.d { dk[i + 3u] = v.w; }
#end
}
#end
#if !ONLY_DK
fn put_dv(row: u32, rows: u32, head: u32, f: u32, v: vec4<f32>) {
    if row >= rows || f >= p.d { return; }
    let i = (row * p.kv_heads + head) * p.d + f;
#if VEC
    dv[i / 4u] = kept4(v);
#else
    dv[i] = v.x;
    if f + 1u < p.d { dv[i + 1u] = v.y; }
    if f + 2u < p.d { dv[i + 2u] = v.z; }
    if f + 3u < p.d { dv[i + 3u] = v.w; }
#end
}
#end

// The queries that see key s.
fn seeing(s: u32) -> vec2<u32> {
    if s >= p.s { return vec2<u32>(0u); }
    var lo = u32(clamp(query_range[2u * s], 0, i32(p.t)));
    var hi = u32(clamp(query_range[2u * s + 1u], 0, i32(p.t)));
    if p.causal != 0u { lo = max(lo, s); }
    if p.window != 0u { hi = min(hi, s + min(p.window, p.t)); }
    return select(vec2<u32>(0u), vec2<u32>(lo, hi), lo < hi);
}

#include "common/attention_stats.wgsl"

// p of a key's row. `lse`: less the bias.
fn weights(score: vec4<f32>, lse: vec4<f32>, range: vec2<u32>, queries: vec4<u32>) -> vec4<f32> {
    let seen = queries >= vec4<u32>(range.x) & queries < vec4<u32>(range.y);
    return select(vec4<f32>(0.0), exp(score * p.scale - lse), seen);
}

#if !ONLY_DK
// Sums of features from `start` on, plus the weights times those features of the tile's columns.
fn step_dout(lid: u32, start: u32, first: u32, head: u32, acc: ptr<function, Quad>) {
    if start >= p.d { return; }
    workgroupBarrier();
    for (var u = lid; u < COLS * 8u; u += THREADS) {
        right[u] = dout4(first + u / 8u, p.t, head, start + 4u * (u % 8u));
    }
    workgroupBarrier();
    weigh(lid, acc);
}

fn finish_dv(lid: u32, start: u32, row: u32, head: u32, factor: f32, acc: ptr<function, Quad>) {
    let f = start + 4u * (lid % 8u);
    put_dv(row, p.s, head, f, (*acc)[0] * factor);
    put_dv(row + 1u, p.s, head, f, (*acc)[1] * factor);
    put_dv(row + 2u, p.s, head, f, (*acc)[2] * factor);
    put_dv(row + 3u, p.s, head, f, (*acc)[3] * factor);
}
#end
#if !ONLY_DV
// Sums of features from `start` on, plus the weights times those features of the tile's columns.
fn step_q(lid: u32, start: u32, first: u32, head: u32, acc: ptr<function, Quad>) {
    if start >= p.d { return; }
    workgroupBarrier();
    for (var u = lid; u < COLS * 8u; u += THREADS) {
        right[u] = q4(first + u / 8u, p.t, head, start + 4u * (u % 8u));
    }
    workgroupBarrier();
    weigh(lid, acc);
}

fn finish_dk(lid: u32, start: u32, row: u32, head: u32, factor: f32, acc: ptr<function, Quad>) {
    let f = start + 4u * (lid % 8u);
    put_dk(row, p.s, head, f, (*acc)[0] * factor);
    put_dk(row + 1u, p.s, head, f, (*acc)[1] * factor);
    put_dk(row + 2u, p.s, head, f, (*acc)[2] * factor);
    put_dk(row + 3u, p.s, head, f, (*acc)[3] * factor);
}
#end

@compute @workgroup_size(THREADS)
fn attention_dkv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = (p.tile + wg.x) * ROWS;
    let kv = wg.y;
    let group = p.heads / p.kv_heads;
    let row = first + lid / 8u * 4u;
    let s0 = seeing(row);
    let s1 = seeing(row + 1u);
    let s2 = seeing(row + 2u);
    let s3 = seeing(row + 3u);
    let queries = meet(lid, seeing(first + lid % ROWS));
#if !ONLY_DV
    var dk0 = Quad();
    var dk1 = Quad();
#if !D64
    var dk2 = Quad();
    var dk3 = Quad();
#end
#if D256
    var dk4 = Quad();
    var dk5 = Quad();
    var dk6 = Quad();
    var dk7 = Quad();
#end
#end
#if !ONLY_DK
    var dv0 = Quad();
    var dv1 = Quad();
#if !D64
    var dv2 = Quad();
    var dv3 = Quad();
#end
#if D256
    var dv4 = Quad();
    var dv5 = Quad();
    var dv6 = Quad();
    var dv7 = Quad();
#end
#end
    for (var head = kv * group; head < (kv + 1u) * group; head++) {
        for (var query = queries.x; query < queries.y; query += COLS) {
            var s = Quad();
            for (var start = 0u; start < p.d; start += CHUNK) {
                workgroupBarrier();
                for (var u = lid; u < ROWS * 8u; u += THREADS) {
                    left[(u % 8u) * LEFT + u / 8u] = k4(first + u / 8u, p.s, kv, start + 4u * (u % 8u));
                }
                for (var u = lid; u < COLS * 8u; u += THREADS) {
                    right[(u % 8u) * RIGHT + u / 8u] = q4(query + u / 8u, p.t, head, start + 4u * (u % 8u));
                }
                workgroupBarrier();
                scores(lid, quads(start, p.d), &s);
            }
            let index = vec4<u32>(query + lid % 8u) + vec4<u32>(0u, 8u, 16u, 24u);
            let t0 = stat(head, index.x);
            let t1 = stat(head, index.y);
            let t2 = stat(head, index.z);
            let t3 = stat(head, index.w);
            let lse = vec4<f32>(t0.x, t1.x, t2.x, t3.x);
#if BIAS
            let distance = i32(row) - vec4<i32>(middle(index.x), middle(index.y), middle(index.z), middle(index.w));
            s[0] = weights(s[0], lse - biases(head, distance), s0, index);
            s[1] = weights(s[1], lse - biases(head, distance + 1), s1, index);
            s[2] = weights(s[2], lse - biases(head, distance + 2), s2, index);
            s[3] = weights(s[3], lse - biases(head, distance + 3), s3, index);
#else
            s[0] = weights(s[0], lse, s0, index);
            s[1] = weights(s[1], lse, s1, index);
            s[2] = weights(s[2], lse, s2, index);
            s[3] = weights(s[3], lse, s3, index);
#end
#if !ONLY_DK
            workgroupBarrier();
            put_weights(lid, &s);
            step_dout(lid, 0u, query, head, &dv0);
            step_dout(lid, 32u, query, head, &dv1);
#if !D64
            step_dout(lid, 64u, query, head, &dv2);
            step_dout(lid, 96u, query, head, &dv3);
#end
#if D256
            step_dout(lid, 128u, query, head, &dv4);
            step_dout(lid, 160u, query, head, &dv5);
            step_dout(lid, 192u, query, head, &dv6);
            step_dout(lid, 224u, query, head, &dv7);
#end
#end
#if !ONLY_DV
            var dp = Quad();
            for (var start = 0u; start < p.d; start += CHUNK) {
                workgroupBarrier();
                for (var u = lid; u < ROWS * 8u; u += THREADS) {
                    left[(u % 8u) * LEFT + u / 8u] = v4(first + u / 8u, p.s, kv, start + 4u * (u % 8u));
                }
                for (var u = lid; u < COLS * 8u; u += THREADS) {
                    right[(u % 8u) * RIGHT + u / 8u] = dout4(query + u / 8u, p.t, head, start + 4u * (u % 8u));
                }
                workgroupBarrier();
                scores(lid, quads(start, p.d), &dp);
            }
            let delta = vec4<f32>(t0.y, t1.y, t2.y, t3.y);
            s[0] *= dp[0] - delta;
            s[1] *= dp[1] - delta;
            s[2] *= dp[2] - delta;
            s[3] *= dp[3] - delta;
            workgroupBarrier();
            put_weights(lid, &s);
            step_q(lid, 0u, query, head, &dk0);
            step_q(lid, 32u, query, head, &dk1);
#if !D64
            step_q(lid, 64u, query, head, &dk2);
            step_q(lid, 96u, query, head, &dk3);
#end
#if D256
            step_q(lid, 128u, query, head, &dk4);
            step_q(lid, 160u, query, head, &dk5);
            step_q(lid, 192u, query, head, &dk6);
            step_q(lid, 224u, query, head, &dk7);
#end
#end
        }
    }
#if !ONLY_DV
    finish_dk(lid, 0u, row, kv, p.scale, &dk0);
    finish_dk(lid, 32u, row, kv, p.scale, &dk1);
#if !D64
    finish_dk(lid, 64u, row, kv, p.scale, &dk2);
    finish_dk(lid, 96u, row, kv, p.scale, &dk3);
#end
#if D256
    finish_dk(lid, 128u, row, kv, p.scale, &dk4);
    finish_dk(lid, 160u, row, kv, p.scale, &dk5);
    finish_dk(lid, 192u, row, kv, p.scale, &dk6);
    finish_dk(lid, 224u, row, kv, p.scale, &dk7);
#end
#end
#if !ONLY_DK
    finish_dv(lid, 0u, row, kv, 1.0, &dv0);
    finish_dv(lid, 32u, row, kv, 1.0, &dv1);
#if !D64
    finish_dv(lid, 64u, row, kv, 1.0, &dv2);
    finish_dv(lid, 96u, row, kv, 1.0, &dv3);
#end
#if D256
    finish_dv(lid, 128u, row, kv, 1.0, &dv4);
    finish_dv(lid, 160u, row, kv, 1.0, &dv5);
    finish_dv(lid, 192u, row, kv, 1.0, &dv6);
    finish_dv(lid, 224u, row, kv, 1.0, &dv7);
#end
#end
}
