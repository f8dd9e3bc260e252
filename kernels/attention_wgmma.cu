// attention.cu's algorithm by wgmma, for sm_90a and bf16, after FlashAttention-3 (Shah et al. 2024): heads of 64 or 128, no bias, many
// queries.
//
// While the scores of a tile of keys are made into weights, the values of the tile before are multiplied by theirs; and one
// warpgroup multiplies while the other takes exponentials. A tile may have keys after the last that is seen: their weights are 0,
// and their values numbers, since the device's memory is zeros until it is written. A launch may be a part of the tiles of queries,
// the first of them number `begin`.
#include "common/attention_wgmma.cuh"

constexpr int COLS = 128, QUERY_BYTES = ROWS * ROW_BYTES, TILE_BYTES = COLS * ROW_BYTES, STAGES = 4;
typedef Ring<STAGES, TILE_BYTES> Tiles;

// One thread: queries, then the tiles in the order in which they are used: keys 0, keys 1, values 0, keys 2, values 1, and so on.
__device__ __forceinline__ void fill(Tiles ring, u8* queries, u64* queries_there, const Map* q, const Map* k, const Map* v, u32 first,
                                     u32 key, u32 tiles, u32 column, u32 kv_column) {
    mbarrier_expect(queries_there, QUERY_BYTES);
    copy<ROWS>(queries, q, queries_there, column, first);
    auto bring = [&](const Map* map, u32 tile) {
        ring.wait_free();
        mbarrier_expect(ring.filled(), TILE_BYTES);
        copy<COLS>(ring.now(), map, ring.filled(), kv_column, key + tile * COLS);
        ring.next();
    };
    for (u32 tile = 0; tile <= tiles; tile++) {
        if (tile < tiles) bring(k, tile);
        if (tile > 0) bring(v, tile - 1);
    }
}

// The largest score of each of a thread's rows, and the sum of weights.
struct Maxima {
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
};

// Scores become weights; `rescale` is what sums up to here are to be multiplied by.
__device__ __forceinline__ void softmax(Scores<COLS>& s, Maxima& m, float (&rescale)[2], float scale2) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float now = m.top[h];
#pragma unroll
        for (int n = 0; n < COLS / 4; n++) now = fmaxf(now, s[n / 2 * 4 + n % 2 + 2 * h]);
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
        float base = now == -INFINITY ? 0.0f : now * scale2;
        rescale[h] = exp2_fast(fmaf(m.top[h], scale2, -base));
        m.top[h] = now;
        float total = m.sum[h] * rescale[h];
#pragma unroll
        for (int n = 0; n < COLS / 4; n++) {
            float& x = s[n / 2 * 4 + n % 2 + 2 * h];
            x = exp2_fast(fmaf(x, scale2, -base));
            total += x;
        }
        m.sum[h] = total;
    }
}

ATTENTION_KERNEL attention_wgmma(act* out, float* lse, const act* q, const act* k, const act* v, const int* key_range,
                                 const __grid_constant__ Map map_q, const __grid_constant__ Map map_k,
                                 const __grid_constant__ Map map_v, u32 tokens, u32 keys, u32 d, u32 heads, u32 kv_heads,
                                 float scale, u32 causal, u32 window, u32 begin) {
    extern __shared__ __align__(1024) u8 smem[];
    __shared__ __align__(8) u64 bars[2 * STAGES + 1];
    __shared__ uint4 ranges[WARPS];
    Tiles ring(smem + QUERY_BYTES, bars);
    u64* queries_there = bars + 2 * STAGES;
    if (threadIdx.x == 0) mbarrier_init(queries_there, 1);
    ring.begin(1, USERS);

    // Late queries see the most keys if causal: they go first.
    u32 tile = begin + blockIdx.y, first = (causal ? (tokens + ROWS - 1) / ROWS - 1 - tile : tile) * ROWS;
    u32 head = blockIdx.x, kv = head / (heads / kv_heads);
    auto span_of = [&](u32 row) { return visible(row, key_range, keys, causal, window); };
    uint4 seen = reach(ranges, first, tokens, span_of);
    u32 tiles = (seen.y - seen.x + COLS - 1) / COLS;
    if (threadIdx.x < GROUP) {
        fewer_registers<24>();
        if (threadIdx.x == 0 && tiles > 0)
            fill(ring, smem, queries_there, &map_q, &map_k, &map_v, first, seen.x, tiles, head * d, kv * d);
        return;
    }
    more_registers<240>();

    Lane l(first, tokens, span_of);
    Maxima m;
    float scale2 = scale * LOG2_E;
    Sums o;
    clear(o);
    if (tiles > 0) {
        u32 queries = shared_address(smem) + l.group * 64 * 128;
        Scores<COLS> s;
        Weights<COLS> p;
        float rescale[2];
        auto weights = [&](u32 tile) {
            u32 key = seen.x + tile * COLS;
            if (key < seen.z || key + COLS > seen.w) l.mask<COLS>(s, key, -INFINITY);
            softmax(s, m, rescale, scale2);
        };
        // The next tile of the ring, and its stage, to be freed.
        auto next = [&](u32& stage) {
            ring.wait_filled();
            u32 at = shared_address(ring.now());
            stage = ring.stage;
            ring.next();
            return at;
        };
        u32 of_keys, of_values;
        mbarrier_wait(queries_there, 0);
        scores<COLS>(s, queries, next(of_keys));
        wgmma_wait<0>();
        ring.free(of_keys);
        weights(0);
        pack<COLS>(p, s);
        for (u32 i = 1; i < tiles; i++) {
            scores<COLS>(s, queries, next(of_keys));
            weigh<COLS>(o, p, next(of_values));
            wgmma_wait<1>();
            ring.free(of_keys);
            weights(i);
            wgmma_wait<0>();
            ring.free(of_values);
#pragma unroll
            for (int j = 0; j < HEAD_DIM / 2; j++) o[j] *= rescale[j / 2 % 2];
            pack<COLS>(p, s);
        }
        weigh<COLS>(o, p, next(of_values));
        wgmma_wait<0>();
        ring.free(of_values);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = m.sum[h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        u32 token = l.row + 8 * h;
        if (token >= tokens) continue;
        store_row(out + ((size_t)token * heads + head) * d, o, h, total > 0.0f ? 1.0f / total : 0.0f);
        if (l.t == 0) lse[(size_t)head * tokens + token] = total > 0.0f ? LN_2 * (m.top[h] * scale2 + log2f(total)) : -INFINITY;
    }
}
