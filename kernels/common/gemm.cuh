// The tile engine of every dense product, c[m,n] = Σ_k a[m,k]·b[k,n]: a block of threads owns BM × BN of c and keeps its
// sums in registers, in f32; BK of k at a time goes through shared memory, in a ring of STAGES.
//
// ACT = 0: fused multiply-adds of f32, a TM × TN patch a thread.
// ACT = 1, 2: tensor cores. What is in 16 bits already is copied past the registers (cp.async); everything else is
// fetched, while the last tile is multiplied, into registers and converted on its way to shared memory. Rows in shared
// memory are pieces of 16 bytes, their places exclusive-ored with the row, so that neither ldmatrix nor the stores meet
// in a bank.
//
// TILE chooses the shape: 0 128 × 128 (sm_80 on: before, registers spill), 1 64 × 64 (too few tiles of the first kind to
// fill a card), 2 64 × 16 and 3 16 × 64 (a low-rank factor's side).
//
// A thin tile (2, 3) has few sums and a long k, and takes as long as its operands take to arrive. So a stage is SLICES times
// as deep, to have as many bytes under way as a large tile has; each warp multiplies its own slice of it into sums of the whole
// tile, and in the end the warps' sums are added in order (`finish`).
#pragma once
#include "batch.cuh"
#include "place.cuh"
#include "source.cuh"

#ifndef TILE
#define TILE 1
#endif
constexpr int BM = TILE == 0 ? 128 : TILE == 3 ? 16 : 64;
constexpr int BN = TILE == 0 ? 128 : TILE == 2 ? 16 : 64;

constexpr int SLICES = TILE >= 2 ? 4 : 1;

#if ACT == 0
constexpr int DEPTH = 16;
constexpr int STAGES = 2;
// 8 × 8 has the most arithmetic for each value read of shared memory that registers allow.
constexpr int TM = TILE == 3 ? 4 : 8, TN = TILE == 0 || TILE == 3 ? 8 : 4;
constexpr int THREADS = SLICES * BM * BN / (TM * TN);
// One column longer than a multiple of 16 bytes: the stores that transpose spread over the banks.
constexpr int PAD = 4;
constexpr int BK = SLICES * DEPTH;
constexpr int A_BYTES = BK * (BM + PAD) * 4, B_BYTES = BK * (BN + PAD) * 4;
typedef float Sums[TM][TN];
#else
constexpr int DEPTH = 32, BK = SLICES * DEPTH;
#if __CUDA_ARCH__ >= 800
// Two blocks of the large tile fit the shared memory of every card since sm_80; the others have room for one more.
constexpr int STAGES = TILE == 0 ? 3 : 4;
#else
constexpr int STAGES = 2;
#endif
// 2 × 2 warps of 64 × 64 or 32 × 32; a warp of a thin tile has all of it.
constexpr int WARPS_M = SLICES == 1 ? 2 : 1, WARPS_N = WARPS_M;
constexpr int THREADS = 128;
constexpr int MI = BM / WARPS_M / 16, NI = BN / WARPS_N / 8;
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;
typedef float Sums[MI][NI][4];
#endif
constexpr int RING = STAGES * (A_BYTES + B_BYTES);
// So that a card's registers hold two blocks of the large tile (one where f32 operands meet weights to be decoded), four of the middle
// one, and as many of a thin one as its ring leaves room for in shared memory.
constexpr int RESIDENT = TILE == 1 ? 4 : TILE == 0 && ACT == 0 && W >= 1 ? 1 : 2;
#define GEMM_KERNEL_OF(RESIDENT) extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
#define GEMM_KERNEL GEMM_KERNEL_OF(RESIDENT)

// Where piece `piece` of row `row` lies in a tile of rows of PIECES pieces.
template <int PIECES> __device__ __forceinline__ u32 slot(u32 row, u32 piece) {
    u32 turn = PIECES >= 8 ? row & 7 : row / (8 / PIECES) & (PIECES - 1);
    return (row * PIECES + (piece ^ turn)) * 16;
}

// Brings tiles of SIDE along m (or n) and BK along k of source S to shared memory; ALONG_K: its rows run along k.
template <bool ALONG_K, int SIDE, class S> struct Loader {
    static constexpr int ROWS = ALONG_K ? SIDE : BK, PIECES = (ALONG_K ? BK : SIDE) / CHUNK, COUNT = ROWS * PIECES;
    static constexpr int EACH = (COUNT + THREADS - 1) / THREADS;
    struct Empty {};
    template <bool NONE, class R> struct Held { typedef R Raw; };
    template <class R> struct Held<true, R> { typedef Empty Raw; };
    typename Held<S::ASYNC, typename S::Raw>::Raw raw[EACH];

    static __device__ __forceinline__ void put(u8* tile, u32 row, u32 piece, const Piece& v) {
#if ACT == 0
        float* to = (float*)tile;
        if (ALONG_K) {
            to += piece * CHUNK * (SIDE + PAD) + row;
            to[0] = v.x, to[SIDE + PAD] = v.y, to[2 * (SIDE + PAD)] = v.z, to[3 * (SIDE + PAD)] = v.w;
        } else {
            *(Piece*)(to + row * (SIDE + PAD) + piece * CHUNK) = v;
        }
#else
        *(Piece*)(tile + slot<PIECES>(row, piece)) = v;
#endif
    }
    // A matrix whose rows are not aligned: element by element, at once.
    static __device__ __forceinline__ void crawl(const S& s, u8* tile, u32 row0, u32 col0) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < COUNT; i += THREADS) {
            u32 row = i / PIECES, piece = i % PIECES;
            float v[CHUNK];
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                u32 r = row0 + row, c = col0 + piece * CHUNK + j;
                v[j] = s.inside(r, c) ? s.at(r, c) : 0.0f;
            }
            put(tile, row, piece, pack(v));
        }
    }
    __device__ __forceinline__ void begin(const S& s, u8* tile, u32 mn, u32 k) {
        u32 row0 = ALONG_K ? mn : k, col0 = ALONG_K ? k : mn;
        if (!s.whole) return crawl(s, tile, row0, col0);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            u32 number = threadIdx.x + i * THREADS, row = number / PIECES, piece = number % PIECES;
            if (COUNT % THREADS != 0 && number >= COUNT) break;
            if constexpr (S::ASYNC) {
                u32 r = row0 + row, c = col0 + piece * CHUNK;
                copy16(tile + slot<PIECES>(row, piece), s.where(r, c), s.inside(r, c));
            } else {
                s.fetch(raw[i], row0 + row, col0 + piece * CHUNK);
            }
        }
    }
    __device__ __forceinline__ void finish(const S& s, u8* tile, u32 mn, u32 k) {
        if constexpr (!S::ASYNC) {
            u32 row0 = ALONG_K ? mn : k, col0 = ALONG_K ? k : mn;
            if (!s.whole) return;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                u32 number = threadIdx.x + i * THREADS, row = number / PIECES, piece = number % PIECES;
                if (COUNT % THREADS != 0 && number >= COUNT) break;
                put(tile, row, piece, s.piece(raw[i], row0 + row, col0 + piece * CHUNK));
            }
        }
    }
};

// Adds the product of two tiles in shared memory.
template <bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply(Sums& sums, const u8* a, const u8* b) {
    u32 member = threadIdx.x % (THREADS / SLICES), slice = threadIdx.x / (THREADS / SLICES) * DEPTH;
#if ACT == 0
    constexpr int TX = BN / TN, GROUP = TN < 4 ? TN : 4;
    const float* pa = (const float*)a + slice * (BM + PAD) + member / TX * TM;
    const float* pb = (const float*)b + slice * (BN + PAD) + member % TX * GROUP;
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        float x[TM], y[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) x[i] = pa[k * (BM + PAD) + i];
#pragma unroll
        for (int j = 0; j < TN; j++) y[j] = pb[k * (BN + PAD) + j / GROUP * (TX * GROUP) + j % GROUP];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
#else
    u32 warp = member / 32, lane = member % 32;
    u32 m0 = warp / WARPS_N * (16 * MI), n0 = warp % WARPS_N * (8 * NI);
    constexpr int K_PIECES = BK / 8, M_PIECES = BM / 8, N_PIECES = BN / 8;
#pragma unroll
    for (int step = 0; step < DEPTH; step += 16) {
        u32 k = slice + step;
        u32 x[MI][4], y[NI / 2][4];
#pragma unroll
        for (int i = 0; i < MI; i++) {
            u32 m = m0 + 16 * i;
            if (A_ALONG_K) {
                ldmatrix4(x[i], a + slot<K_PIECES>(m + lane % 16, k / 8 + lane / 16));
            } else {
                ldmatrix4_trans(x[i], a + slot<M_PIECES>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
            }
        }
#pragma unroll
        for (int j = 0; j < NI / 2; j++) {
            u32 n = n0 + 16 * j;
            if (B_ALONG_K) {
                ldmatrix4(y[j], b + slot<K_PIECES>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
            } else {
                ldmatrix4_trans(y[j], b + slot<N_PIECES>(k + lane % 16, n / 8 + lane / 16));
            }
        }
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
                Tensor<act>::mma(sums[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
#endif
}

// sums += a[m0.., k0..k1]·b[k0..k1, n0..]; k1 is where a source ends or a multiple of BK beyond k0. All threads of the
// block call it; `smem` holds RING bytes.
template <bool A_ALONG_K, bool B_ALONG_K, class A, class B>
__device__ __forceinline__ void accumulate(Sums& sums, u8* smem, const A& a, const B& b, u32 m0, u32 n0, u32 k0,
                                           u32 k1) {
    Loader<A_ALONG_K, BM, A> load_a;
    Loader<B_ALONG_K, BN, B> load_b;
    u8* smem_b = smem + STAGES * A_BYTES;
    u32 steps = (k1 - k0 + BK - 1) / BK;
    __syncthreads();  // tables are there; whoever still reads tiles is done
    // Stages that are under way before the first is waited for: the registers beside the large tile hold one, as they do of a
    // deep stage.
    constexpr int AHEAD = TILE == 1 ? STAGES - 1 : 1;
#pragma unroll
    for (int first = 0; first < STAGES - 1; first += AHEAD) {
        Loader<A_ALONG_K, BM, A> first_a[AHEAD];
        Loader<B_ALONG_K, BN, B> first_b[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int s = first + i;
            if (s < steps) {
                first_a[i].begin(a, smem + s * A_BYTES, m0, k0 + s * BK);
                first_b[i].begin(b, smem_b + s * B_BYTES, n0, k0 + s * BK);
            }
            copy_commit();
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int s = first + i;
            if (s < steps) {
                first_a[i].finish(a, smem + s * A_BYTES, m0, k0 + s * BK);
                first_b[i].finish(b, smem_b + s * B_BYTES, n0, k0 + s * BK);
            }
        }
    }
    u32 now = 0, free = STAGES - 1;
    for (u32 step = 0; step < steps; step++) {
        // The tile of this step is there; that of the last one is read by nobody any more, and takes the next.
        copy_wait<STAGES - 2>();
        __syncthreads();
        u32 k = k0 + (step + STAGES - 1) * BK;
        bool more = step + STAGES - 1 < steps;
        u8 *to_a = smem + free * A_BYTES, *to_b = smem_b + free * B_BYTES;
        if (more) {
            load_a.begin(a, to_a, m0, k);
            load_b.begin(b, to_b, n0, k);
        }
        copy_commit();
        multiply<A_ALONG_K, B_ALONG_K>(sums, smem + now * A_BYTES, smem_b + now * B_BYTES);
        if (more) {
            load_a.finish(a, to_a, m0, k);
            load_b.finish(b, to_b, n0, k);
        }
        free = now;
        now = now + 1 == STAGES ? 0 : now + 1;
    }
    copy_wait<0>();
}

// f(m, n, v0, v1) for each pair of sums that this thread has, of columns n (even) and n+1 of row m of the tile. Of a thin tile
// they are those of its slice.
template <class F> __device__ __forceinline__ void each(Sums& sums, F f) {
    u32 member = threadIdx.x % (THREADS / SLICES);
#if ACT == 0
    constexpr int TX = BN / TN, GROUP = TN < 4 ? TN : 4;
    u32 m = member / TX * TM, n = member % TX * GROUP;
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 2) f(m + i, n + j / GROUP * (TX * GROUP) + j % GROUP, sums[i][j], sums[i][j + 1]);
#else
    u32 warp = member / 32, lane = member % 32;
    u32 m = warp / WARPS_N * (16 * MI) + lane / 4, n = warp % WARPS_N * (8 * NI) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int j = 0; j < NI; j++)
                f(m + 16 * i + 8 * h, n + 8 * j, sums[i][j][2 * h], sums[i][j][2 * h + 1]);
#endif
}

// The same with the sums of all slices, each pair by one thread; the last use of `sums`. `smem` is the ring of `accumulate`.
template <class F> __device__ __forceinline__ void finish(Sums& sums, u8* smem, F f) {
    if constexpr (SLICES == 1) {
        each(sums, f);
    } else {
        static_assert(SLICES * BM * BN * 4 <= RING, "the sums of a tile's slices take the place of its ring");
        float* slices = (float*)smem;
        float* own = slices + threadIdx.x / (THREADS / SLICES) * (BM * BN);
        __syncthreads();  // whoever still reads tiles is done
        each(sums, [&](u32 m, u32 n, float& v, float& w) { *(float2*)(own + m * BN + n) = make_float2(v, w); });
        __syncthreads();
        for (u32 i = threadIdx.x; i < BM * BN / 2; i += THREADS) {
            float v = 0.0f, w = 0.0f;
#pragma unroll
            for (int s = 0; s < SLICES; s++) {
                float2 sum = *(const float2*)(slices + s * (BM * BN) + 2 * i);
                v += sum.x, w += sum.y;
            }
            f(i / (BN / 2), i % (BN / 2) * 2, v, w);
        }
    }
}

__device__ __forceinline__ void clear(Sums& sums) {
    each(sums, [](u32, u32, float& v, float& w) { v = w = 0.0f; });
}

// Elements col and col+1 of a row that begins at `row` and has `cols`.
__device__ __forceinline__ void store2(float* row, u32 col, u32 cols, float v, float w) {
    if (cols % 2 == 0) {
        if (col < cols) *(float2*)(row + col) = make_float2(v, w);
    } else {
        if (col < cols) row[col] = v;
        if (col + 1 < cols) row[col + 1] = w;
    }
}
template <class T> __device__ __forceinline__ void store2(T* row, u32 col, u32 cols, float v, float w) {
    if (cols % 2 == 0) {
        if (col < cols) *(u32*)(row + col) = Tensor<T>::pack(v, w);
    } else {
        if (col < cols) row[col] = from_f32<T>(v);
        if (col + 1 < cols) row[col + 1] = from_f32<T>(w);
    }
}
