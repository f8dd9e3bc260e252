// attention_bwd.cu's dq, and dk and dv, by wgmma, for sm_90a and bf16: heads of 64 or 128, no bias. `stats` and the equations are
// attention_bwd.cu's, whose attention_delta runs first.
//
//   attention_dq_wgmma   a block has queries of one head, goes over tiles of keys and values:  dq += ds k
//   attention_dkv_wgmma  a block has keys of one head, goes over the group's heads and their tiles of queries and dout, holding the
//                        transposed scores:                                                    dv += pᵀ dout, dk += dsᵀ q
// The last product of a tile runs beside the first ones of the next. A launch may be a part of the tiles, the first of them number
// `begin`.
#include "common/attention_wgmma.cuh"

constexpr int COLS = 64, LEFT_BYTES = ROWS * ROW_BYTES, TILE_BYTES = COLS * ROW_BYTES, STAGES = 4;
// A stage has two tiles: keys and values, or queries and dout.
typedef Ring<STAGES, 2 * TILE_BYTES> Tiles;

// One thread: the block's rows of two operands, side by side.
__device__ __forceinline__ void bring_left(u8* to, u64* there, const Map* a, const Map* b, u32 column, u32 row) {
    mbarrier_expect(there, 2 * LEFT_BYTES);
    copy<ROWS>(to, a, there, column, row);
    copy<ROWS>(to + LEFT_BYTES, b, there, column, row);
}
// One thread: the next stage.
__device__ __forceinline__ void bring(Tiles& ring, const Map* a, const Map* b, u32 column, u32 row) {
    ring.wait_free();
    mbarrier_expect(ring.filled(), 2 * TILE_BYTES);
    copy<COLS>(ring.now(), a, ring.filled(), column, row);
    copy<COLS>(ring.now() + TILE_BYTES, b, ring.filled(), column, row);
    ring.next();
}

ATTENTION_KERNEL attention_dq_wgmma(act* dq, const act* q, const act* k, const act* v, const act* dout, const float2* stats,
                                    const int* key_range, const __grid_constant__ Map map_q, const __grid_constant__ Map map_k,
                                    const __grid_constant__ Map map_v, const __grid_constant__ Map map_dout, u32 tokens, u32 keys,
                                    u32 d, u32 heads, u32 kv_heads, float scale, u32 causal, u32 window, u32 begin) {
    extern __shared__ __align__(1024) u8 smem[];
    __shared__ __align__(8) u64 bars[2 * STAGES + 1];
    __shared__ uint4 ranges[WARPS];
    Tiles ring(smem + 2 * LEFT_BYTES, bars);
    u64* left_there = bars + 2 * STAGES;
    if (threadIdx.x == 0) mbarrier_init(left_there, 1);
    ring.begin(1, USERS);

    // Late queries see the most keys if causal: they go first.
    u32 tile = begin + blockIdx.y, first = (causal ? (tokens + ROWS - 1) / ROWS - 1 - tile : tile) * ROWS;
    u32 head = blockIdx.x, kv = head / (heads / kv_heads);
    auto span_of = [&](u32 row) { return visible(row, key_range, keys, causal, window); };
    uint4 seen = reach(ranges, first, tokens, span_of);
    if (threadIdx.x < GROUP) {
        fewer_registers<24>();
        if (threadIdx.x != 0 || seen.x == seen.y) return;
        bring_left(smem, left_there, &map_q, &map_dout, head * d, first);
        for (u32 key = seen.x; key < seen.y; key += COLS) bring(ring, &map_k, &map_v, kv * d, key);
        return;
    }
    more_registers<240>();

    Lane l(first, tokens, span_of);
    float2 stat[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 row = l.row + 8 * h;
        stat[h] = row < tokens ? stats[(size_t)head * tokens + row] : make_float2(INFINITY, 0.0f);
    }
    float scale2 = scale * LOG2_E;
    Sums o;
    clear(o);
    if (seen.x < seen.y) {
        u32 queries = shared_address(smem) + l.group * 64 * 128, douts = queries + LEFT_BYTES, last = 0;
        Scores<COLS> s, dp;
        Weights<COLS> ds;
        mbarrier_wait(left_there, 0);
        for (u32 key = seen.x; key < seen.y; key += COLS) {
            ring.wait_filled();
            u32 tile_k = shared_address(ring.now()), tile_v = tile_k + TILE_BYTES;
            scores<COLS>(s, queries, tile_k);
            scores<COLS>(dp, douts, tile_v);
            wgmma_wait<1>();
            // So is the last product of the tile before.
            if (key > seen.x) ring.free(last);
#pragma unroll
            for (int i = 0; i < COLS / 2; i++) s[i] = exp2_fast(fmaf(s[i], scale2, -stat[i / 2 % 2].x));
            if (key < seen.z || key + COLS > seen.w) l.mask<COLS>(s, key, 0.0f);
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < COLS / 2; i++) s[i] *= dp[i] - stat[i / 2 % 2].y;
            pack<COLS>(ds, s);
            weigh<COLS>(o, ds, tile_k);
            last = ring.stage;
            ring.next();
        }
        wgmma_wait<0>();
        ring.free(last);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 token = l.row + 8 * h;
        if (token < tokens) store_row(dq + ((size_t)token * heads + head) * d, o, h, scale);
    }
}

// The second warp of the first warpgroup: what `stats` says of the queries of each tile.
__device__ __forceinline__ void bring_stats(Tiles ring, float2 (*to)[COLS], const float2* stats, uint4 seen, u32 head, u32 last,
                                            u32 tokens) {
    for (; head < last; head++) {
        for (u32 query = seen.x; query < seen.y; query += COLS) {
            ring.wait_free();
            for (u32 i = threadIdx.x % 32; i < COLS; i += 32)
                to[ring.stage][i] = query + i < tokens ? stats[(size_t)head * tokens + query + i] : make_float2(INFINITY, 0.0f);
            __syncwarp();
            if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.filled());
            ring.next();
        }
    }
}

ATTENTION_KERNEL attention_dkv_wgmma(act* dk, act* dv, const act* q, const act* k, const act* v, const act* dout,
                                     const float2* stats, const int* query_range, const __grid_constant__ Map map_q,
                                     const __grid_constant__ Map map_k, const __grid_constant__ Map map_v,
                                     const __grid_constant__ Map map_dout, u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads,
                                     float scale, u32 causal, u32 window, u32 begin) {
    extern __shared__ __align__(1024) u8 smem[];
    __shared__ __align__(8) u64 bars[2 * STAGES + 1];
    __shared__ uint4 ranges[WARPS];
    __shared__ __align__(16) float2 tile_stats[STAGES][COLS];
    Tiles ring(smem + 2 * LEFT_BYTES, bars);
    u64* left_there = bars + 2 * STAGES;
    if (threadIdx.x == 0) mbarrier_init(left_there, 1);
    // Copies and numbers fill a stage; the warps free it, since each reads the numbers by itself.
    ring.begin(2, USERS * GROUP / 32);

    u32 first = (begin + blockIdx.y) * ROWS, kv = blockIdx.x, head = kv * (heads / kv_heads), end = head + heads / kv_heads;
    auto span_of = [&](u32 row) { return seeing(row, query_range, tokens, causal, window); };
    uint4 seen = reach(ranges, first, keys, span_of);
    if (threadIdx.x < GROUP) {
        fewer_registers<24>();
        if (seen.x == seen.y) return;
        if (threadIdx.x / 32 == 1) bring_stats(ring, tile_stats, stats, seen, head, end, tokens);
        if (threadIdx.x != 0) return;
        bring_left(smem, left_there, &map_k, &map_v, kv * d, first);
        for (; head < end; head++) {
            for (u32 query = seen.x; query < seen.y; query += COLS) bring(ring, &map_q, &map_dout, head * d, query);
        }
        return;
    }
    more_registers<240>();

    Lane l(first, keys, span_of);
    float scale2 = scale * LOG2_E;
    Sums ok, ov;
    clear(ok);
    clear(ov);
    if (seen.x < seen.y) {
        u32 left_k = shared_address(smem) + l.group * 64 * 128, left_v = left_k + LEFT_BYTES, last = STAGES;
        mbarrier_wait(left_there, 0);
        for (; head < end; head++) {
            for (u32 query = seen.x; query < seen.y; query += COLS) {
                Scores<COLS> s, dp;
                Weights<COLS> p, ds;
                ring.wait_filled();
                u32 tile_q = shared_address(ring.now()), tile_out = tile_q + TILE_BYTES;
                const float2* stat = tile_stats[ring.stage] + 2 * l.t;
                // Both at once, beside the products of the tile before, would take more registers than there are.
                scores<COLS>(s, left_k, tile_q);
                wgmma_wait<0>();
                if (last < STAGES) ring.free_by_warp(last);
                scores<COLS>(dp, left_v, tile_out);
#pragma unroll
                for (int i = 0; i < COLS / 2; i++) s[i] = exp2_fast(fmaf(s[i], scale2, -stat[i / 4 * 8 + i % 2].x));
                if (query < seen.z || query + COLS > seen.w) l.mask<COLS>(s, query, 0.0f);
                pack<COLS>(p, s);
                weigh<COLS>(ov, p, tile_out);
                wgmma_wait<1>();
#pragma unroll
                for (int i = 0; i < COLS / 2; i++) s[i] *= dp[i] - stat[i / 4 * 8 + i % 2].y;
                pack<COLS>(ds, s);
                weigh<COLS>(ok, ds, tile_q);
                last = ring.stage;
                ring.next();
            }
        }
        wgmma_wait<0>();
        ring.free_by_warp(last);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 key = l.row + 8 * h;
        if (key >= keys) continue;
        size_t at = ((size_t)key * kv_heads + kv) * d;
        store_row(dk + at, ok, h, scale);
        store_row(dv + at, ov, h, 1.0f);
    }
}
