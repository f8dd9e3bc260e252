// What the attention kernels share (src/ops/attention.rs has the equations).
//
// A block of WARPS warps holds a tile of ROWS rows (queries; for dk and dv keys) against one tile after another of COLS
// columns (the other side). A warp has BLOCKS times 16 rows to itself. With g = lane / 4 and t = lane % 4 its scores lie
// as the tensor cores leave them: s[b][n][j] is row 16 b + g + 8 (j / 2), column 8 n + 2 t + j % 2; its sums over columns,
// o[b][n][j], are the same row and feature `feature(n, j)`. So each product of the algorithm is one of two: `scores`
// (rows times columns, over features) and `pv_gemm` (weights times columns' rows, over columns).
//
// Activations in 16 bits: both are mma instructions on fragments that ldmatrix brings, and weights never leave their
// registers. In f32: both are FMAs on pieces of four, a thread having two rows a block.
//
// HEAD_DIM: 32, 64, 96, 128, 192 or 256, at least the head's true size d; features from d on are zeros in the tiles.
#pragma once
#include "attention_bias.cuh"
#include "exp2.cuh"
#include "mma.cuh"
#include "visible.cuh"

constexpr int THREADS = 32 * WARPS;
constexpr int ROWS = 16 * BLOCKS * WARPS;
// Elements of a piece of 16 bytes, and pieces of a row.
constexpr int EACH = 16 / sizeof(act);
constexpr int PIECES = HEAD_DIM / EACH;
static_assert(HEAD_DIM % 32 == 0, "features go by 32");

typedef float Scores[BLOCKS][COLS / 8][4];
typedef float Sums[BLOCKS][HEAD_DIM / 8][4];

struct Lane {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    // The first row of this warp in the tile.
    int row = threadIdx.x / 32 * 16 * BLOCKS;
};

// 4 and 8 bytes from global to shared memory; see copy16.
__device__ __forceinline__ void copy4(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    *(u32*)to = *(const u32*)from;
#endif
}
__device__ __forceinline__ void copy8(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    *(uint2*)to = *(const uint2*)from;
#endif
}

// Piece c of row r of a tile. Within a row pieces change places so that those of one number in eight rows in sequence,
// and eight in sequence of one row, are in different banks.
__device__ __forceinline__ act* piece(act* tile, int r, int c) {
    int turn = PIECES % 8 == 0 ? r % 8 : r / 2 % 4;
    return tile + (r * PIECES + (c ^ turn)) * EACH;
}

// Rows of one head in an operand: row r is token r / pack and head r % pack from the one that `x` points to.
struct Source {
    const act* x;
    size_t stride;
    u32 pack, d;
    __device__ __forceinline__ const act* at(u32 row) const {
        if (pack == 1) return x + row * stride;
        return x + row / pack * stride + row % pack * d;
    }
};

// Copies the N rows from `first` on into a tile; zeros stand for rows from `end` on and features from d on.
template <int N> __device__ __forceinline__ void load(act* tile, Source from, u32 first, u32 end) {
    if (from.d % EACH == 0) {
        constexpr int STEP = THREADS / PIECES;
        if (THREADS % PIECES == 0 && N % STEP == 0 && from.pack == 1) {
            // A thread has the same piece of every STEP-th row: little to compute, few registers.
            u32 r = threadIdx.x / PIECES, c = threadIdx.x % PIECES;
            const act* at = from.x + (size_t)(first + r) * from.stride + c * EACH;
            bool some = c * EACH < from.d;
#pragma unroll
            for (int i = 0; i < N / STEP; i++, r += STEP, at += STEP * from.stride) {
                bool inside = some && first + r < end;
                copy16(piece(tile, r, c), inside ? at : from.x, inside);
            }
            return;
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < N * PIECES; i += THREADS) {
            u32 r = i / PIECES, c = i % PIECES;
            bool inside = first + r < end && c * EACH < from.d;
            copy16(piece(tile, r, c), inside ? from.at(first + r) + c * EACH : from.x, inside);
        }
        return;
    }
    // Rows do not begin on a multiple of 16 bytes.
#pragma unroll 1
    for (int i = threadIdx.x; i < N * HEAD_DIM; i += THREADS) {
        u32 r = i / HEAD_DIM, f = i % HEAD_DIM;
        bool inside = first + r < end && f < from.d;
        piece(tile, r, f / EACH)[f % EACH] = inside ? from.at(first + r)[f] : from_f32<act>(0.0f);
    }
}

// The columns that row `row` of the tile meets: `span.x` the first, `span.y` how many. `spans` holds them for all rows.
// Returned: the columns that any row meets (x, to before y) and those that all do (z, to before w). `smem` holds 4 WARPS.
__device__ __forceinline__ uint4 union_range(uint2* spans, u32* smem, bool inside, u32 lo, u32 hi) {
    Lane l;
    if (lo >= hi) lo = hi = 0;
    if (threadIdx.x < ROWS) spans[threadIdx.x] = make_uint2(lo, hi - lo);
    bool some = inside && lo < hi;
    u32 a = some ? lo : 0xffffffffu, b = some ? hi : 0, c = inside ? lo : 0, d = inside ? hi : 0xffffffffu;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        a = min(a, __shfl_xor_sync(0xffffffffu, a, step));
        b = max(b, __shfl_xor_sync(0xffffffffu, b, step));
        c = max(c, __shfl_xor_sync(0xffffffffu, c, step));
        d = min(d, __shfl_xor_sync(0xffffffffu, d, step));
    }
    if (l.lane == 0) ((uint4*)smem)[l.warp] = make_uint4(a, b, c, d);
    __syncthreads();
    uint4 r = ((uint4*)smem)[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) {
        uint4 o = ((uint4*)smem)[w];
        r = make_uint4(min(r.x, o.x), max(r.y, o.y), max(r.z, o.z), min(r.w, o.w));
    }
    return r.x < r.y ? r : make_uint4(0, 0, 0, 0);
}

// The columns that any of this warp's rows meets: tiles outside of them cost it nothing.
__device__ __forceinline__ uint2 meet_warp(const uint2* spans) {
    Lane l;
    uint2 span = spans[l.row + l.lane % (16 * BLOCKS)];
    u32 lo = span.y > 0 ? span.x : 0xffffffffu, hi = span.x + span.y;
#pragma unroll
    for (int step = 8 * BLOCKS; step > 0; step /= 2) {
        lo = min(lo, __shfl_xor_sync(0xffffffffu, lo, step));
        hi = max(hi, __shfl_xor_sync(0xffffffffu, hi, step));
    }
    return make_uint2(lo, hi);
}

// Adds to the scores of columns (keys) from `first` on the biases of rows whose key at distance 0 and head's column
// `places` gives, counted from `columns`.
__device__ __forceinline__ void add_bias(Scores& s, const int2* places, const float* columns, u32 first, u32 farthest) {
    Lane l;
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) {
        int2 place = places[l.row + 8 * i + l.g];
#pragma unroll
        for (int n = 0; n < COLS / 4; n++) {
            int distance = first + n / 2 * 8 + 2 * l.t + n % 2 - place.x;
            s[i / 2][n / 2][n % 2 + i % 2 * 2] += bias_at(columns + place.y, distance, farthest);
        }
    }
}

// The same where rows are keys, from `first` on, and columns queries of one head, whose keys at distance 0 are `middles`.
__device__ __forceinline__ void add_bias(Scores& s, const int* middles, const float* column, u32 first, u32 farthest) {
    Lane l;
#pragma unroll
    for (int n = 0; n < COLS / 4; n++) {
        int distance = first + l.row + l.g - middles[n / 2 * 8 + 2 * l.t + n % 2];
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; i++) {
            s[i / 2][n / 2][n % 2 + i % 2 * 2] += bias_at(column, distance + 8 * i, farthest);
        }
    }
}

template <class T> __device__ __forceinline__ void clear(T& x) {
#pragma unroll
    for (int i = 0; i < sizeof(T) / sizeof(float); i++) ((float*)x)[i] = 0.0f;
}

// The feature of o[b][n][j].
__device__ __forceinline__ int feature(int n, int j) {
    int t = threadIdx.x % 4;
    return ACT == 0 ? n / 2 * 16 + 4 * t + n % 2 * 2 + j % 2 : 8 * n + 2 * t + j % 2;
}

#if ACT == 0
// This warp's rows of a tile, as one side of a product.
template <bool KEEP> struct Side {
    act* tile;
    __device__ __forceinline__ Side(act* tile) : tile(tile) {}
};

__device__ __forceinline__ float dot(float sum, float4 a, float4 b) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// s += rows · columnsᵀ
template <bool KEEP> __device__ __forceinline__ void scores(Scores& s, const Side<KEEP>& rows, act* columns) {
    Lane l;
#pragma unroll 2
    for (int c = 0; c < PIECES; c++) {
        float4 a[BLOCKS][2];
#pragma unroll
        for (int b = 0; b < 2 * BLOCKS; b++) a[b / 2][b % 2] = *(float4*)piece(rows.tile, l.row + l.g + 8 * b, c);
#pragma unroll
        for (int n = 0; n < COLS / 4; n++) {
            float4 k = *(float4*)piece(columns, n / 2 * 8 + 2 * l.t + n % 2, c);
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                s[b][n / 2][n % 2] = dot(s[b][n / 2][n % 2], a[b][0], k);
                s[b][n / 2][n % 2 + 2] = dot(s[b][n / 2][n % 2 + 2], a[b][1], k);
            }
        }
    }
}

// o += w · columns. The weights of a column are in four lanes in sequence.
__device__ __forceinline__ void pv_gemm(Sums& o, Scores& w, act* columns) {
    Lane l;
#pragma unroll
    for (int n = 0; n < COLS / 8; n++) {
#pragma unroll 1
        for (int q = 0; q < 4; q++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float x[BLOCKS][2];
#pragma unroll
                for (int b = 0; b < 2 * BLOCKS; b++) {
                    x[b / 2][b % 2] = __shfl_sync(0xffffffffu, w[b / 2][n][b % 2 * 2 + j], l.lane - l.t + q);
                }
#pragma unroll
                for (int m = 0; m < HEAD_DIM / 16; m++) {
                    float4 v = *(float4*)piece(columns, 8 * n + 2 * q + j, 4 * m + l.t);
#pragma unroll
                    for (int b = 0; b < 2 * BLOCKS; b++) {
                        float y = x[b / 2][b % 2];
                        float(&low)[4] = o[b / 2][2 * m], (&high)[4] = o[b / 2][2 * m + 1];
                        low[b % 2 * 2] = fmaf(y, v.x, low[b % 2 * 2]);
                        low[b % 2 * 2 + 1] = fmaf(y, v.y, low[b % 2 * 2 + 1]);
                        high[b % 2 * 2] = fmaf(y, v.z, high[b % 2 * 2]);
                        high[b % 2 * 2 + 1] = fmaf(y, v.w, high[b % 2 * 2 + 1]);
                    }
                }
            }
        }
    }
}
#else
// This warp's rows of a tile, as one side of a product: read anew each time, or (KEEP) once, into registers.
template <bool KEEP> struct Side {
    act* tile;
    __device__ __forceinline__ Side(act* tile) : tile(tile) {}
    __device__ __forceinline__ void get(u32 (&a)[BLOCKS][4], int k) const {
        Lane l;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) ldmatrix4(a[b], piece(tile, l.row + 16 * b + l.lane % 16, 2 * k + l.lane / 16));
    }
};
template <> struct Side<true> {
    u32 kept[HEAD_DIM / 16][BLOCKS][4];
    __device__ __forceinline__ Side(act* tile) {
        Side<false> side(tile);
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) side.get(kept[k], k);
    }
    __device__ __forceinline__ void get(u32 (&a)[BLOCKS][4], int k) const {
#pragma unroll
        for (int i = 0; i < 4 * BLOCKS; i++) a[i / 4][i % 4] = kept[k][i / 4][i % 4];
    }
};

// Steps that are written out where rows are read from shared memory: with all of them so many loads are in flight that
// registers spill.
constexpr int UNROLL = BLOCKS == 2 ? 2 : 4;

// s += rows · columnsᵀ
template <bool KEEP> __device__ __forceinline__ void scores(Scores& s, const Side<KEEP>& rows, act* columns) {
    Lane l;
#pragma unroll KEEP ? HEAD_DIM / 16 : UNROLL
    for (int k = 0; k < HEAD_DIM / 16; k++) {
        u32 a[BLOCKS][4];
        rows.get(a, k);
#pragma unroll
        for (int n = 0; n < COLS / 16; n++) {
            u32 c[4];
            ldmatrix4(c, piece(columns, 16 * n + l.lane / 16 * 8 + l.lane % 8, 2 * k + l.lane / 8 % 2));
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                Tensor<act>::mma(s[b][2 * n], a[b], c[0], c[1]);
                Tensor<act>::mma(s[b][2 * n + 1], a[b], c[2], c[3]);
            }
        }
    }
}

// o += w · columns
__device__ __forceinline__ void pv_gemm(Sums& o, Scores& w, act* columns) {
    Lane l;
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
        u32 a[BLOCKS][4];
#pragma unroll
        for (int i = 0; i < 4 * BLOCKS; i++) {
            float* pair = &w[i / 4][2 * k + i % 4 / 2][i % 2 * 2];
            a[i / 4][i % 4] = Tensor<act>::pack(pair[0], pair[1]);
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            u32 c[4];
            ldmatrix4_trans(c, piece(columns, 16 * k + l.lane % 16, 2 * n + l.lane / 16));
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                Tensor<act>::mma(o[b][2 * n], a[b], c[0], c[1]);
                Tensor<act>::mma(o[b][2 * n + 1], a[b], c[2], c[3]);
            }
        }
    }
}
#endif

// Writes rows `first` on of the sums, each times its factor, to `to`, rows from `end` on left out. They go through this
// warp's rows of `tile`, which nobody else may be reading, so that whole pieces are written.
__device__ __forceinline__ void put(act* tile, Sums& o, const float (&factor)[BLOCKS][2], Source to, u32 first, u32 end) {
    Lane l;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; i++) {
        int b = i / 2, h = i % 2, row = l.row + 8 * i + l.g;
        float f = factor[b][h];
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            float x = o[b][n][2 * h] * f, y = o[b][n][2 * h + 1] * f;
            int at = feature(n, 0);
            act* place = piece(tile, row, at / EACH) + at % EACH;
#if ACT == 0
            *(float2*)place = make_float2(x, y);
#else
            *(u32*)place = Tensor<act>::pack(x, y);
#endif
        }
    }
    __syncwarp();
    bool aligned = to.d % EACH == 0;
#pragma unroll 4
    for (int i = l.lane; i < 16 * BLOCKS * PIECES; i += 32) {
        u32 row = l.row + i / PIECES, f = i % PIECES * EACH;
        if (first + row >= end || f >= to.d) continue;
        act* from = piece(tile, row, i % PIECES);
        act* place = (act*)to.at(first + row) + f;
        if (aligned) {
            *(uint4*)place = *(uint4*)from;
        } else {
            for (u32 e = 0; e < EACH && f + e < to.d; e++) place[e] = from[e];
        }
    }
}
