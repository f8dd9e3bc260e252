// Attention, forward (src/ops/attention.rs has the equations), after FlashAttention-2 (Dao 2023): a block has a tile of
// queries of one head and goes over the tiles of keys that any of them sees. With the scores s of a tile, in units of
// log2, each row's maximum m and its sum l are brought up to date,
//   m' = max(m, max s)   p = 2^(s − m')   l' = l 2^(m − m') + Σ p   o' = o 2^(m − m') + p v
// and in the end out = o / l, lse = ln 2 · (m + log2 l). Tiles that every row sees whole are not masked.
//
// Copies run beside the arithmetic: the tile of values arrives while scores are computed, the next tile of keys while
// values are summed, so that one buffer of each is enough.
//
// `pack` query heads that share keys may sit in one tile (row = token · pack + head), and the keys may be split over
// gridDim.z blocks: then each leaves o, m and l in `partial`, and `attention_merge` combines them. Both are for
// generation, where few queries meet many keys. A launch may be a part of the tiles, the first of them number `begin`.
//
// BIAS: common/attention_bias.cuh, whose kernel runs first.
#include "common/attention.cuh"

// Up to here queries are kept as fragments in registers; larger heads need those for sums.
constexpr bool KEEP = ACT != 0 && HEAD_DIM * BLOCKS <= 128;

// One part of the keys of a query and head: d sums, m, l.
__device__ __forceinline__ size_t part(u32 z, u32 head, u32 t, u32 heads, u32 tokens, u32 d) {
    return (((size_t)z * heads + head) * tokens + t) * (d + 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention(act* out, float* lse, const act* q, const act* k, const act* v, const int* key_range, const float* columns,
              const int* middles, float* partial, u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads, float scale,
              u32 causal, u32 window, u32 pack, u32 farthest, u32 begin) {
    extern __shared__ uint4 smem[];
    act* queries = (act*)smem;
    act* right_k = queries + ROWS * HEAD_DIM;
    act* right_v = right_k + COLS * HEAD_DIM;
    uint2* spans = (uint2*)(right_v + COLS * HEAD_DIM);
    int2* places = (int2*)((u32*)(spans + ROWS) + 4 * WARPS);
    Lane l;
    // Late queries see the most keys if causal: they go first.
    u32 end = tokens * pack, tile = begin + blockIdx.y;
    u32 first = (causal ? (end + ROWS - 1) / ROWS - 1 - tile : tile) * ROWS;
    u32 head = blockIdx.x * pack, kv = head / (heads / kv_heads);
    Source left = {q + (size_t)head * d, (size_t)heads * d, pack, d};
    Source ks = {k + (size_t)kv * d, (size_t)kv_heads * d, 1, d}, vs = {v + (size_t)kv * d, (size_t)kv_heads * d, 1, d};
    load<ROWS>(queries, left, first, end);

    u32 row = first + threadIdx.x;
    bool inside = threadIdx.x < ROWS && row < end;
    uint2 span = inside ? visible(row / pack, key_range, keys, causal, window) : make_uint2(0, 0);
    if (BIAS && threadIdx.x < ROWS) {
        int middle = inside ? middles[row / pack] : 0, of = head + (inside ? row % pack : 0);
        places[threadIdx.x] = make_int2(middle, of * (2 * farthest + 1) + farthest);
    }
    uint4 reach = union_range(spans, (u32*)(spans + ROWS), inside, span.x, span.y);
    uint2 mine = meet_warp(spans);
    u32 share = ((reach.y - reach.x + COLS - 1) / COLS + gridDim.z - 1) / gridDim.z * COLS;
    u32 key = reach.x + blockIdx.z * share, stop = min(key + share, reach.y);
    if (key < stop) load<COLS>(right_k, ks, key, stop);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    Side<KEEP> side(queries);

    float scale2 = scale * LOG2_E;
    float top[BLOCKS][2], sum[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) top[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0.0f;
    Sums o;
    clear(o);
    for (; key < stop; key += COLS) {
        // The keys are there, and nobody reads the last values any more.
        copy_wait<0>();
        __syncthreads();
        load<COLS>(right_v, vs, key, stop);
        copy_commit();
        bool met = key < mine.y && key + COLS > mine.x;
        Scores s;
        if (met) {
            clear(s);
            scores(s, side, right_k);
            if (BIAS) add_bias(s, places, columns, key, farthest);
        }
        copy_wait<0>();
        __syncthreads();
        if (key + COLS < stop) load<COLS>(right_k, ks, key + COLS, stop);
        copy_commit();
        if (!met) continue;
        bool whole = key >= reach.z && key + COLS <= reach.w;
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; i++) {
            int b = i / 2, h = i % 2;
            if (!whole) {
                uint2 span = spans[l.row + 8 * i + l.g];
#pragma unroll
                for (int n = 0; n < COLS / 4; n++) {
                    u32 at = key + n / 2 * 8 + 2 * l.t + n % 2;
                    float& x = s[b][n / 2][n % 2 + 2 * h];
                    x = at - span.x < span.y ? x : -INFINITY;
                }
            }
            float now = top[b][h];
#pragma unroll
            for (int n = 0; n < COLS / 4; n++) now = fmaxf(now, s[b][n / 2][n % 2 + 2 * h]);
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            float base = now == -INFINITY ? 0.0f : now * scale2;
            float rescale = exp2_fast(fmaf(top[b][h], scale2, -base));
            top[b][h] = now;
            float total = sum[b][h] * rescale;
#pragma unroll
            for (int n = 0; n < COLS / 4; n++) {
                float& x = s[b][n / 2][n % 2 + 2 * h];
                x = exp2_fast(fmaf(x, scale2, -base));
                total += x;
            }
            sum[b][h] = total;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                o[b][n][2 * h] *= rescale;
                o[b][n][2 * h + 1] *= rescale;
            }
        }
        pv_gemm(o, s, right_v);
    }

    float factor[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) {
        int b = i / 2, h = i % 2;
        float total = sum[b][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        factor[b][h] = total > 0.0f ? 1.0f / total : 0.0f;
        u32 row = first + l.row + 8 * i + l.g;
        if (row >= end) continue;
        u32 token = row / pack, of = head + row % pack;
        float best = top[b][h] * scale2;
        if (gridDim.z > 1) {
            float* to = partial + part(blockIdx.z, of, token, heads, tokens, d);
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 4; n++) {
                u32 f = feature(n / 2, n % 2);
                if (f < d) to[f] = o[b][n / 2][n % 2 + 2 * h];
            }
            if (l.t == 0) to[d] = best, to[d + 1] = total;
        } else if (l.t == 0) {
            lse[(size_t)of * tokens + token] = total > 0.0f ? LN_2 * (best + log2f(total)) : -INFINITY;
        }
    }
    if (gridDim.z == 1) put(queries, o, factor, {out + (size_t)head * d, (size_t)heads * d, pack, d}, first, end);
}

// The parts of a query and head, in order: a warp each.
extern "C" __global__ void __launch_bounds__(128)
    attention_merge(act* out, float* lse, const float* partial, u32 tokens, u32 d, u32 heads, u32 parts) {
    size_t n = thread_number() / 32;
    if (n >= (size_t)tokens * heads) return;
    u32 t = n / heads, head = n % heads, lane = threadIdx.x % 32;
    float top = -INFINITY, total = 0.0f;
    for (u32 z = 0; z < parts; z++) top = fmaxf(top, partial[part(z, head, t, heads, tokens, d) + d]);
    float base = top == -INFINITY ? 0.0f : top;
    for (u32 z = 0; z < parts; z++) {
        const float* from = partial + part(z, head, t, heads, tokens, d);
        total += exp2_fast(from[d] - base) * from[d + 1];
    }
    float factor = total > 0.0f ? 1.0f / total : 0.0f;
    for (u32 f = lane; f < d; f += 32) {
        float sum = 0.0f;
        for (u32 z = 0; z < parts; z++) {
            const float* from = partial + part(z, head, t, heads, tokens, d);
            sum += exp2_fast(from[d] - base) * from[f];
        }
        out[n * d + f] = from_f32<act>(sum * factor);
    }
    if (lane == 0) lse[(size_t)head * tokens + t] = total > 0.0f ? LN_2 * (base + log2f(total)) : -INFINITY;
}
