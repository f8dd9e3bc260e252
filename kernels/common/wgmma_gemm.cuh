// The wgmma engine of dense products, c[m,n] = left[m,r]·right[r,n] + Σ_k a[m,k]·b[k,n], for sm_90a: bf16 operands, sums in f32.
//
// A block is three warpgroups. One thread of the first keeps a ring filled by tensor copies: BM × BK of a, BK × BN of b. The other
// two multiply 64 rows each; when a stage's products are done, one thread of each frees it. Blocks take the launch's tiles in turns
// (the grid is what the card holds), so that the copies of a tile run beside the end of the last one.
//
// TILE chooses BN, and with it how many stages the same shared memory has: 0 256, 1 128 (too few tiles of the first kind to fill a
// card). A sum is the same in either.
//
// A low-rank part comes first, as more k: its operands are not bf16 in memory, so all of the first warpgroup brings them, to stages of
// the same layout. An operand whose rows run along k has k in columns and is K-major, else MN-major (wgmma.cuh).
#pragma once
#include "batch.cuh"
#include "mma.cuh"
#include "place.cuh"
#include "ring.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

#ifndef TILE
#define TILE 0
#endif
constexpr int BM = 128, BN = TILE == 0 ? 256 : 128, BK = 64, STAGES = TILE == 0 ? 4 : 6;
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;
typedef Ring<STAGES, A_BYTES + B_BYTES> Stages;
typedef Wgmma<BN> Multiply;
typedef Multiply::Sums Sums;
constexpr int MULTIPLIERS = 2, THREADS = (1 + MULTIPLIERS) * GROUP;
#define WGMMA_KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)

// What a kernel's problems have in common. Boxes of the maps are 64 columns by BM and BN rows where rows run along k, else BK rows.
struct Job {
    const Map *a, *b;
    const bf16* left;
    const float* right;
    u32 m, n, k, r;
};
// A tile of a launch: its problem, and the tile's first row and column there.
template <class P> struct Tile {
    P problem;
    Place at;
    __device__ __forceinline__ Tile(const P& problem, u32 number) : problem(problem), at(place<BM, BN>(problem.m, problem.n, number)) {}
};

// One thread: SIDE × BK of an operand, from (mn, k) on.
template <bool ALONG_K, int SIDE> __device__ __forceinline__ void copy(u8* to, const Map* map, u64* bar, u32 mn, u32 k) {
    if (ALONG_K) {
        tensor_load(to, map, bar, k, mn);
    } else {
#pragma unroll
        for (int j = 0; j < SIDE; j += 64) tensor_load(to + j * BK * 2, map, bar, mn + j, k);
    }
}

// The first warpgroup: ROWS × `pieces` pieces of eight elements of a matrix of rows × cols, from (row0, col0) on, as bf16 to a tile or
// a block of 64 columns of one; zeros outside.
template <int ROWS, class T>
__device__ __forceinline__ void bring(u8* tile, const T* p, u32 row0, u32 col0, u32 rows, u32 cols, u32 pieces) {
    for (u32 i = threadIdx.x; i < ROWS * pieces; i += GROUP) {
        u32 row = i / pieces, piece = i % pieces, r = row0 + row, col = col0 + piece * 8;
        float v[8];
        load_some(v, p + (size_t)r * cols + col, r < rows ? left(col, cols, 8) : 0, cols % 8 == 0);
        *(uint4*)(tile + swizzled(row, piece)) = make_uint4(Tensor<bf16>::pack(v[0], v[1]), Tensor<bf16>::pack(v[2], v[3]),
                                                            Tensor<bf16>::pack(v[4], v[5]), Tensor<bf16>::pack(v[6], v[7]));
    }
}

// The first warpgroup: the operands of the low-rank part from column r0 on, in whole steps of 16.
template <bool B_ALONG_K> __device__ __forceinline__ void bring_low(u8* stage, const Job& job, Place at, u32 r0) {
    u32 depth = min((job.r - r0 + 15) / 16 * 16, BK);
    bring<BM>(stage, job.left, at.m, r0, job.m, job.r, depth / 8);
    u8* to = stage + A_BYTES;
    if (B_ALONG_K) {
        bring<BN>(to, job.right, at.n, r0, job.n, job.r, depth / 8);
    } else {
        for (int j = 0; j < BN; j += 64) bring<BK>(to + j * BK * 2, job.right, r0, at.n + j, job.r, job.n, 8);
    }
}

// The first warpgroup: brings all that this block's tiles need. find(number) is the tile of a number.
template <bool A_ALONG_K, bool B_ALONG_K, class F> __device__ __forceinline__ void fill(Stages ring, F find) {
    for (u32 number = blockIdx.x;; number += gridDim.x) {
        auto tile = find(number);
        const Job& job = tile.problem;
        Place at = tile.at;
        if (at.none) return;
        for (u32 r0 = 0; r0 < job.r; r0 += BK, ring.next()) {
            // The thread that copies has waited for the last stage: the phase of this one is no other's of the same parity.
            named_sync<1, GROUP>();
            ring.wait_free();
            bring_low<B_ALONG_K>(ring.now(), job, at, r0);
            proxy_fence();
            named_sync<1, GROUP>();
            if (threadIdx.x == 0) mbarrier_arrive(ring.filled());
        }
        for (u32 k = 0; k < job.k; k += BK, ring.next()) {
            if (threadIdx.x != 0) continue;
            ring.wait_free();
            mbarrier_expect(ring.filled(), A_BYTES + B_BYTES);
            copy<A_ALONG_K, BM>(ring.now(), job.a, ring.filled(), at.m, k);
            copy<B_ALONG_K, BN>(ring.now() + A_BYTES, job.b, ring.filled(), at.n, k);
        }
    }
}

// A warpgroup's part of a stage: 64 rows of a, and b.
template <bool A_ALONG_K> __device__ __forceinline__ u32 rows_at(const Stages& ring, u32 row) {
    // Where a is MN-major, 64 rows of c are a block of columns of it.
    static_assert(BM / 64 == MULTIPLIERS, "a warpgroup has 64 rows");
    return shared_address(ring.now()) + (A_ALONG_K ? row * 128 : row / 64 * (BK * 128));
}

// d += left·right, the first r of a tile's k.
template <bool B_ALONG_K> __device__ __forceinline__ void multiply_low(Sums& d, Stages& ring, u32 row, u32 r) {
    for (u32 r0 = 0; r0 < r; r0 += BK) {
        ring.wait_filled();
        u32 a = rows_at<true>(ring, row), b = shared_address(ring.now()) + A_BYTES;
        wgmma_fence();
        for (u32 k = 0; k < min(r - r0, BK); k += 16)
            Multiply::shared<true, true, B_ALONG_K>(d, descriptor_at<true, BK>(a, k), descriptor_at<B_ALONG_K, BK>(b, k));
        wgmma_commit();
        wgmma_wait<0>();
        ring.free(ring.stage);
        ring.next();
    }
}

// d += a·b, all of a tile's k.
template <bool A_ALONG_K, bool B_ALONG_K> __device__ __forceinline__ void multiply(Sums& d, Stages& ring, u32 row, u32 k) {
    u32 last = 0;
    for (u32 k0 = 0; k0 < k; k0 += BK) {
        ring.wait_filled();
        u32 a = rows_at<A_ALONG_K>(ring, row), b = shared_address(ring.now()) + A_BYTES;
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < BK; i += 16)
            Multiply::shared<true, A_ALONG_K, B_ALONG_K>(d, descriptor_at<A_ALONG_K, BK>(a, i), descriptor_at<B_ALONG_K, BK>(b, i));
        wgmma_commit();
        // The step before has been multiplied: its stage may be filled again.
        wgmma_wait<1>();
        if (k0 > 0) ring.free(last);
        last = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    ring.free(last);
}

// f(row, column, v, w) for each pair of this thread's sums, of columns (even) and column + 1 of its warpgroup's 64 rows.
template <class F> __device__ __forceinline__ void each(Sums& d, F f) {
    u32 t = threadIdx.x % GROUP, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
        f(row, 8 * j + column, d[4 * j], d[4 * j + 1]);
        f(row + 8, 8 * j + column, d[4 * j + 2], d[4 * j + 3]);
    }
}

// All products of a launch. find(number) is the tile of a number; low(problem, i, j, v, w) changes a pair of sums of the low-rank
// part, of row i and columns j (even) and j + 1; store(problem, i, j, v, w) takes a pair within m rows and n columns, an even number.
template <bool A_ALONG_K, bool B_ALONG_K, class F, class L, class S>
__device__ __forceinline__ void products(u8* smem, F find, L low, S store) {
    __shared__ __align__(8) u64 bars[2 * STAGES];
    Stages ring(smem, bars);
    ring.begin(1, MULTIPLIERS);
    if (threadIdx.x < GROUP) {
        fewer_registers<56>();
        return fill<A_ALONG_K, B_ALONG_K>(ring, find);
    }
    more_registers<224>();
    u32 row = (threadIdx.x / GROUP - 1) * 64;
    for (u32 number = blockIdx.x;; number += gridDim.x) {
        auto tile = find(number);
        const auto& p = tile.problem;
        if (tile.at.none) return;
        u32 m0 = tile.at.m + row, n0 = tile.at.n;
        Sums sums;
#pragma unroll
        for (int i = 0; i < BN / 2; i++) sums[i] = 0.0f;
        if (p.r > 0) {
            multiply_low<B_ALONG_K>(sums, ring, row, p.r);
            each(sums, [&](u32 i, u32 j, float& v, float& w) { low(p, m0 + i, n0 + j, v, w); });
        }
        multiply<A_ALONG_K, B_ALONG_K>(sums, ring, row, p.k);
        each(sums, [&](u32 i, u32 j, float& v, float& w) {
            i += m0, j += n0;
            if (i < p.m && j < p.n) store(p, i, j, v, w);
        });
    }
}

// Two neighbours of a row, the first at an even place.
__device__ __forceinline__ void store_pair(float* to, float v, float w) { *(float2*)to = make_float2(v, w); }
__device__ __forceinline__ void store_pair(bf16* to, float v, float w) { *(u32*)to = Tensor<bf16>::pack(v, w); }
__device__ __forceinline__ void add_pair(const float* from, float& v, float& w) {
    float2 pair = *(const float2*)from;
    v += pair.x, w += pair.y;
}
__device__ __forceinline__ void add_pair(const bf16* from, float& v, float& w) {
    u32 pair = *(const u32*)from;
    v += __uint_as_float(pair << 16), w += __uint_as_float(pair & 0xffff0000);
}
