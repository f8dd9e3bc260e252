// Attention, backward (src/ops/attention.rs has the equations), after FlashAttention-2 (Dao 2023) but with dq apart from
// dk and dv, so that every sum has one owner and one order. `stats` holds for each head and query (lse in units of log2,
// δ). With these, p = 2^(scale·log2 e·s − lse) and ds = p (dp − δ) of a tile need no other tile; products dp begin their
// sums at −δ.
//
//   attention_delta  δ of each query and head; a warp each
//   attention_dq     a block has a tile of queries of one head, goes over keys:    dq += ds k
//   attention_dkv    a block has a tile of keys of one head, goes over the group's heads and their queries, holding the
//                    transposed scores:                                            dv += pᵀ dout, dk += dsᵀ q
// Heads beyond 128 leave no registers for both sums: attention_dk and attention_dv are launched instead.
//
// BIAS: common/attention_bias.cuh, whose kernel runs first.
// A launch may be a part of the tiles, the first of them number `begin`.
// STAGES: tiles of columns that are in shared memory at a time; with 2, one is copied while the other is used.
#include "common/attention.cuh"
#include "common/reduce.cuh"

// Up to here a block's queries are kept as fragments in registers, and keys take their place in shared memory.
constexpr bool KEEP = ACT != 0 && HEAD_DIM * BLOCKS <= 128;
constexpr int TILE = COLS * HEAD_DIM;
static_assert(COLS <= THREADS, "a thread brings a column's numbers");

extern "C" __global__ void __launch_bounds__(128)
    attention_delta(float2* stats, const act* out, const float* lse, const act* dout, u32 tokens, u32 d, u32 heads) {
    size_t n = thread_number() / 32;
    if (n >= (size_t)tokens * heads) return;
    u32 t = n / heads, head = n % heads, lane = threadIdx.x % 32;
    float delta = 0.0f;
    if (d % EACH == 0) {
        for (u32 f = lane * EACH; f < d; f += 32 * EACH) {
            uint4 a = *(const uint4*)(out + n * d + f), b = *(const uint4*)(dout + n * d + f);
#pragma unroll
            for (int i = 0; i < EACH; i++) delta += to_f32(((act*)&a)[i]) * to_f32(((act*)&b)[i]);
        }
    } else {
        for (u32 f = lane; f < d; f += 32) delta += to_f32(out[n * d + f]) * to_f32(dout[n * d + f]);
    }
    delta = warp_sum(delta);
    size_t at = (size_t)head * tokens + t;
    // Of a query that sees nothing every p is 0.
    float x = lse[at];
    if (lane == 0) stats[at] = make_float2(x == -INFINITY ? INFINITY : x * LOG2_E, delta);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_dq(act* dq, const act* q, const act* k, const act* v, const act* dout, const float2* stats, const int* key_range,
                 const float* columns, const int* middles, u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads, float scale,
                 u32 causal, u32 window, u32 farthest, u32 begin) {
    extern __shared__ uint4 smem[];
    act* queries = (act*)smem;
    act* douts = queries + ROWS * HEAD_DIM;
    // Keys and values of each stage.
    act* right = KEEP ? queries : douts + ROWS * HEAD_DIM;
    constexpr int WHOLE = (KEEP ? 0 : 2 * ROWS * HEAD_DIM) + 2 * STAGES * TILE;
    uint2* spans = (uint2*)(queries + (WHOLE > 2 * ROWS * HEAD_DIM ? WHOLE : 2 * ROWS * HEAD_DIM));
    int2* places = (int2*)((u32*)(spans + ROWS) + 4 * WARPS);
    Lane l;
    // Late queries see the most keys if causal: they go first.
    u32 tile = begin + blockIdx.y;
    u32 first = (causal ? (tokens + ROWS - 1) / ROWS - 1 - tile : tile) * ROWS;
    u32 head = blockIdx.x, kv = head / (heads / kv_heads);
    size_t stride = (size_t)heads * d, kv_stride = (size_t)kv_heads * d;
    Source ks = {k + (size_t)kv * d, kv_stride, 1, d}, vs = {v + (size_t)kv * d, kv_stride, 1, d};
    load<ROWS>(queries, {q + (size_t)head * d, stride, 1, d}, first, tokens);
    load<ROWS>(douts, {dout + (size_t)head * d, stride, 1, d}, first, tokens);
    copy_commit();

    bool inside = threadIdx.x < ROWS && first + threadIdx.x < tokens;
    uint2 span = inside ? visible(first + threadIdx.x, key_range, keys, causal, window) : make_uint2(0, 0);
    if (BIAS && threadIdx.x < ROWS) {
        places[threadIdx.x] = make_int2(inside ? middles[first + threadIdx.x] : 0, head * (2 * farthest + 1) + farthest);
    }
    uint4 reach = union_range(spans, (u32*)(spans + ROWS), inside, span.x, span.y);
    uint2 mine = meet_warp(spans);
    float lse[BLOCKS][2], delta[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) {
        u32 row = first + l.row + 8 * i + l.g;
        float2 stat = row < tokens ? stats[(size_t)head * tokens + row] : make_float2(INFINITY, 0.0f);
        lse[i / 2][i % 2] = stat.x, delta[i / 2][i % 2] = stat.y;
    }
    copy_wait<0>();
    __syncthreads();
    Side<KEEP> side(queries), side_out(douts);
    if (KEEP) __syncthreads();

    u32 key = reach.x;
    auto fetch = [&](int stage, u32 key) {
        load<COLS>(right + 2 * stage * TILE, ks, key, reach.y);
        load<COLS>(right + (2 * stage + 1) * TILE, vs, key, reach.y);
    };
    if (key < reach.y) fetch(0, key);
    copy_commit();
    float scale2 = scale * LOG2_E;
    Sums o;
    clear(o);
    for (int stage = 0; key < reach.y; key += COLS, stage = (stage + 1) % STAGES) {
        // The tile is there, and nobody reads the last one any more.
        copy_wait<0>();
        __syncthreads();
        if (STAGES == 2) {
            if (key + COLS < reach.y) fetch(stage ^ 1, key + COLS);
            copy_commit();
        }
        act *tile_k = right + 2 * stage * TILE, *tile_v = tile_k + TILE;
        if (key < mine.y && key + COLS > mine.x) {
            Scores s, dp;
            clear(s);
#pragma unroll
            for (int i = 0; i < BLOCKS * COLS / 2; i++) {
                dp[i / (COLS / 2)][i / 4 % (COLS / 8)][i % 4] = -delta[i / (COLS / 2)][i % 4 / 2];
            }
            scores(s, side, tile_k);
            if (BIAS) add_bias(s, places, columns, key, farthest);
            scores(dp, side_out, tile_v);
            bool whole = key >= reach.z && key + COLS <= reach.w;
#pragma unroll
            for (int i = 0; i < 2 * BLOCKS; i++) {
                int b = i / 2, h = i % 2;
#pragma unroll
                for (int n = 0; n < COLS / 4; n++) {
                    float& x = s[b][n / 2][n % 2 + 2 * h];
                    x = exp2_fast(fmaf(x, scale2, -lse[b][h])) * dp[b][n / 2][n % 2 + 2 * h];
                }
                if (whole) continue;
                uint2 span = spans[l.row + 8 * i + l.g];
#pragma unroll
                for (int n = 0; n < COLS / 4; n++) {
                    float& x = s[b][n / 2][n % 2 + 2 * h];
                    x = key + n / 2 * 8 + 2 * l.t + n % 2 - span.x < span.y ? x : 0.0f;
                }
            }
            pv_gemm(o, s, tile_k);
        }
        if (STAGES == 1) {
            __syncthreads();
            if (key + COLS < reach.y) fetch(0, key + COLS);
            copy_commit();
        }
    }
    __syncthreads();
    float factor[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) factor[i / 2][i % 2] = scale;
    put(queries, o, factor, {dq + (size_t)head * d, stride, 1, d}, first, tokens);
}

// dk, dv or both: which are not null is known when this is compiled.
template <bool DK, bool DV>
__device__ __forceinline__ void dkv(act* dk, act* dv, const act* q, const act* k, const act* v, const act* dout,
                                    const float2* stats, const int* query_range, const float* columns, const int* middles,
                                    u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads, float scale, u32 causal, u32 window,
                                    u32 farthest, u32 begin) {
    extern __shared__ uint4 smem[];
    act* left_k = (act*)smem;
    act* left_v = left_k + ROWS * HEAD_DIM;
    // Queries and dout of each stage, then what `stats` says of the queries.
    act* right = left_v + ROWS * HEAD_DIM;
    float2* right_stats = (float2*)(right + 2 * STAGES * TILE);
    uint2* spans = (uint2*)(right_stats + STAGES * COLS);
    int* right_middles = (int*)((u32*)(spans + ROWS) + 4 * WARPS);
    Lane l;
    u32 first = (begin + blockIdx.y) * ROWS, kv = blockIdx.x, group = heads / kv_heads;
    size_t stride = (size_t)heads * d, kv_stride = (size_t)kv_heads * d;
    load<ROWS>(left_k, {k + (size_t)kv * d, kv_stride, 1, d}, first, keys);
    if (DK) load<ROWS>(left_v, {v + (size_t)kv * d, kv_stride, 1, d}, first, keys);

    bool inside = threadIdx.x < ROWS && first + threadIdx.x < keys;
    uint2 span = inside ? seeing(first + threadIdx.x, query_range, tokens, causal, window) : make_uint2(0, 0);
    uint4 reach = union_range(spans, (u32*)(spans + ROWS), inside, span.x, span.y);
    uint2 mine = meet_warp(spans);
    auto fetch = [&](int stage, u32 head, u32 query) {
        act* tile = right + 2 * stage * TILE;
        load<COLS>(tile, {q + (size_t)head * d, stride, 1, d}, query, reach.y);
        load<COLS>(tile + TILE, {dout + (size_t)head * d, stride, 1, d}, query, reach.y);
        if (threadIdx.x >= COLS) return;
        float2* stat = right_stats + stage * COLS + threadIdx.x;
        int* middle = right_middles + stage * COLS + threadIdx.x;
        if (query + threadIdx.x < reach.y) {
            copy8(stat, stats + (size_t)head * tokens + query + threadIdx.x);
            if (BIAS) copy4(middle, middles + query + threadIdx.x);
        } else {
            *stat = make_float2(INFINITY, 0.0f);
            if (BIAS) *middle = 0;
        }
    };
    u32 head = kv * group, last = head + group, query = reach.x;
    if (query < reach.y) fetch(0, head, query);
    copy_commit();
    float scale2 = scale * LOG2_E;
    Sums ok, ov;
    if (DK) clear(ok);
    if (DV) clear(ov);
    Side<false> side_k(left_k), side_v(left_v);
    if (reach.x >= reach.y) head = last;
    for (int stage = 0; head < last; stage = (stage + 1) % STAGES) {
        u32 next = query + COLS < reach.y ? query + COLS : reach.x, next_head = next == reach.x ? head + 1 : head;
        // The tile is there, and nobody reads the last one any more.
        copy_wait<0>();
        __syncthreads();
        if (STAGES == 2) {
            if (next_head < last) fetch(stage ^ 1, next_head, next);
            copy_commit();
        }
        act *tile_q = right + 2 * stage * TILE, *tile_out = tile_q + TILE;
        float2* stat = right_stats + stage * COLS;
        if (query < mine.y && query + COLS > mine.x) {
            Scores s;
            clear(s);
            scores(s, side_k, tile_q);
            if (BIAS) add_bias(s, right_middles + stage * COLS, column(columns, head, farthest), first, farthest);
            bool whole = query >= reach.z && query + COLS <= reach.w;
#pragma unroll
            for (int n = 0; n < COLS / 4; n++) {
                float lse = stat[n / 2 * 8 + 2 * l.t + n % 2].x;
#pragma unroll
                for (int i = 0; i < 2 * BLOCKS; i++) {
                    float& x = s[i / 2][n / 2][n % 2 + i % 2 * 2];
                    x = exp2_fast(fmaf(x, scale2, -lse));
                }
            }
            if (!whole) {
#pragma unroll
                for (int i = 0; i < 2 * BLOCKS; i++) {
                    uint2 span = spans[l.row + 8 * i + l.g];
#pragma unroll
                    for (int n = 0; n < COLS / 4; n++) {
                        float& x = s[i / 2][n / 2][n % 2 + i % 2 * 2];
                        x = query + n / 2 * 8 + 2 * l.t + n % 2 - span.x < span.y ? x : 0.0f;
                    }
                }
            }
            if (DV) pv_gemm(ov, s, tile_out);
            if (DK) {
                Scores dp;
#pragma unroll
                for (int n = 0; n < COLS / 4; n++) {
                    float delta = stat[n / 2 * 8 + 2 * l.t + n % 2].y;
#pragma unroll
                    for (int i = 0; i < 2 * BLOCKS; i++) dp[i / 2][n / 2][n % 2 + i % 2 * 2] = -delta;
                }
                scores(dp, side_v, tile_out);
#pragma unroll
                for (int i = 0; i < BLOCKS * COLS / 2; i++) ((float*)s)[i] *= ((float*)dp)[i];
                pv_gemm(ok, s, tile_q);
            }
        }
        query = next, head = next_head;
        if (STAGES == 1) {
            __syncthreads();
            if (head < last) fetch(0, head, query);
            copy_commit();
        }
    }
    copy_wait<0>();
    __syncthreads();
    float factor[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) factor[i / 2][i % 2] = scale;
    if (DK) put(left_k, ok, factor, {dk + (size_t)kv * d, kv_stride, 1, d}, first, keys);
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) factor[i / 2][i % 2] = 1.0f;
    if (DV) put(left_v, ov, factor, {dv + (size_t)kv * d, kv_stride, 1, d}, first, keys);
}

#if HEAD_DIM <= 128
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_dkv(act* dk, act* dv, const act* q, const act* k, const act* v, const act* dout, const float2* stats,
                  const int* query_range, const float* columns, const int* middles, u32 tokens, u32 keys, u32 d, u32 heads,
                  u32 kv_heads, float scale, u32 causal, u32 window, u32 farthest, u32 begin) {
    dkv<true, true>(dk, dv, q, k, v, dout, stats, query_range, columns, middles, tokens, keys, d, heads, kv_heads, scale, causal,
                    window, farthest, begin);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_dk(act* dk, const act* q, const act* k, const act* v, const act* dout, const float2* stats,
                 const int* query_range, const float* columns, const int* middles, u32 tokens, u32 keys, u32 d, u32 heads,
                 u32 kv_heads, float scale, u32 causal, u32 window, u32 farthest, u32 begin) {
    dkv<true, false>(dk, nullptr, q, k, v, dout, stats, query_range, columns, middles, tokens, keys, d, heads, kv_heads, scale,
                     causal, window, farthest, begin);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_dv(act* dv, const act* q, const act* k, const act* dout, const float2* stats, const int* query_range,
                 const float* columns, const int* middles, u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads, float scale,
                 u32 causal, u32 window, u32 farthest, u32 begin) {
    dkv<false, true>(nullptr, dv, q, k, nullptr, dout, stats, query_range, columns, middles, tokens, keys, d, heads, kv_heads,
                     scale, causal, window, farthest, begin);
}
#endif
