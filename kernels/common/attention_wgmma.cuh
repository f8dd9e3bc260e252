// What the attention kernels by wgmma share: heads of HEAD_DIM, 64 or 128 features, activations in bf16.
//
// A block is three warpgroups and has a tile of ROWS rows of one head (queries; for dk and dv keys). One thread of the first
// warpgroup keeps a ring of tiles of columns (the other side) filled by tensor copies. The other two have 64 rows each: a product of
// rows and columns over features has both in shared memory, and one of weights and columns, over columns, has the weights in registers,
// where the first has left its sums. Tiles are blocks of 64 features, one after the other, each as many rows as the tile.
#pragma once
#include "exp2.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "visible.cuh"
#include "wgmma.cuh"

constexpr int ROWS = 128, THREADS = 3 * GROUP, WARPS = THREADS / 32, SLABS = HEAD_DIM / 64;
constexpr int USERS = THREADS / GROUP - 1;
constexpr int ROW_BYTES = HEAD_DIM * 2;
#define ATTENTION_KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)

template <int COLS> using Scores = typename Wgmma<COLS>::Sums;
// Weights as operands of wgmma, for each 16 columns.
template <int COLS> using Weights = u32[COLS / 16][4];
typedef Wgmma<HEAD_DIM>::Sums Sums;

// The columns that any of a block's rows meets (x, to before y) and those that all do (z, to before w). `smem` holds WARPS;
// span_of(row) is the columns of a row.
template <class S> __device__ __forceinline__ uint4 reach(uint4* smem, u32 first, u32 end, S span_of) {
    // Each warpgroup for itself.
    u32 row = first + threadIdx.x % ROWS;
    uint4 r = make_uint4(0xffffffffu, 0, 0, 0xffffffffu);
    if (row < end) {
        uint2 span = span_of(row);
        r = span.x < span.y ? make_uint4(span.x, span.y, span.x, span.y) : make_uint4(0xffffffffu, 0, 0, 0);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        r.x = min(r.x, __shfl_xor_sync(0xffffffffu, r.x, step));
        r.y = max(r.y, __shfl_xor_sync(0xffffffffu, r.y, step));
        r.z = max(r.z, __shfl_xor_sync(0xffffffffu, r.z, step));
        r.w = min(r.w, __shfl_xor_sync(0xffffffffu, r.w, step));
    }
    if (threadIdx.x % 32 == 0) smem[threadIdx.x / 32] = r;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < GROUP / 32; i++) {
        uint4 o = smem[threadIdx.x / GROUP * (GROUP / 32) + i];
        r = make_uint4(min(r.x, o.x), max(r.y, o.y), max(r.z, o.z), min(r.w, o.w));
    }
    return r.x < r.y ? r : make_uint4(0, 0, 0, 0);
}

// Which rows a thread of a multiplying warpgroup has: two, 8 apart, from `first` on in their operand, and the columns that they meet
// (the first, how many). Of its sums, 4n + 2h + e is row h and column 8n + 2t + e.
struct Lane {
    u32 group = threadIdx.x / GROUP - 1, t = threadIdx.x % 4, row;
    uint2 span[2];
    template <class S> __device__ __forceinline__ Lane(u32 first, u32 end, S span_of) {
        row = first + group * 64 + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint2 s = row + 8 * h < end ? span_of(row + 8 * h) : make_uint2(0, 0);
            span[h] = make_uint2(s.x, s.x < s.y ? s.y - s.x : 0);
        }
    }
    // Weights of columns from `column` on that a row does not meet become `none`.
    template <int COLS> __device__ __forceinline__ void mask(float (&s)[COLS / 2], u32 column, float none) const {
#pragma unroll
        for (int i = 0; i < COLS / 2; i++) {
            u32 at = column + i / 4 * 8 + 2 * t + i % 2;
            uint2 met = span[i / 2 % 2];
            s[i] = at - met.x < met.y ? s[i] : none;
        }
    }
};

// One thread: N rows of a head from `row` on, `column` its first feature.
template <int N> __device__ __forceinline__ void copy(u8* to, const Map* map, u64* bar, u32 column, u32 row) {
#pragma unroll
    for (int i = 0; i < SLABS; i++) tensor_load(to + i * N * 128, map, bar, column + 64 * i, row);
}

// A warpgroup: s = rows · columnsᵀ, begun as one group. `rows`: where its 64 rows of a tile of ROWS are.
template <int COLS> __device__ __forceinline__ void scores(Scores<COLS>& s, u32 rows, u32 columns) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
        u64 a = descriptor_at<true, 0>(rows + i / 4 * ROWS * 128, i % 4 * 16);
        u64 b = descriptor_at<true, 0>(columns + i / 4 * COLS * 128, i % 4 * 16);
        if (i == 0) {
            Wgmma<COLS>::template shared<false, true, true>(s, a, b);
        } else {
            Wgmma<COLS>::template shared<true, true, true>(s, a, b);
        }
    }
    wgmma_commit();
}

// A warpgroup: o += weights · columns, begun as one group.
template <int COLS> __device__ __forceinline__ void weigh(Sums& o, const Weights<COLS>& p, u32 columns) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < COLS / 16; i++)
        Wgmma<HEAD_DIM>::fragments<true, false>(o, p[i], descriptor_at<false, COLS>(columns, 16 * i));
    wgmma_commit();
}

// Sums of the first product as the left operand of the second.
template <int COLS> __device__ __forceinline__ void pack(Weights<COLS>& p, const float (&s)[COLS / 2]) {
#pragma unroll
    for (int i = 0; i < COLS / 4; i++) p[i / 4][i % 4] = Tensor<bf16>::pack(s[2 * i], s[2 * i + 1]);
}

// Row h of a thread's sums, times its factor; `to`: the row of an operand.
__device__ __forceinline__ void store_row(act* to, const Sums& o, int h, float factor) {
    u32 t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
        *(u32*)(to + 8 * n + 2 * t) = Tensor<act>::pack(o[4 * n + 2 * h] * factor, o[4 * n + 2 * h + 1] * factor);
}

__device__ __forceinline__ void clear(Sums& o) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) o[i] = 0.0f;
}
