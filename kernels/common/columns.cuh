// Sums over the rows of a matrix, for each column, in two launches that shapes alone order:
// first partial[b][c] = Σ over the rows of block b, then y[c] = factor · Σ_b partial[b][c] (+ acc[c]).
#pragma once
#include "vector.cuh"

// A block of the first launch: 16 threads side by side (256 bytes of a row, whole sectors) in 16 lanes of rows, so that
// a thread sums a sixteenth of the block's rows and 16 such sums are added in order.
static const u32 COLUMN_THREADS = 16, COLUMN_LANES = 16;

// The sums of N columns a thread, `term(v, row, col, count, aligned)` being the terms of a row. Blocks over x are slabs of
// columns, over y blocks of `each` rows. blockDim.x is 256.
template <u32 N, class Term>
__device__ __forceinline__ void column_partials(float* partial, u32 rows, u32 cols, u32 each, Term term) {
    __shared__ float sums[COLUMN_LANES][COLUMN_THREADS * N + 1];  // + 1: lanes of a column in different banks
    u32 thread = threadIdx.x % COLUMN_THREADS, lane = threadIdx.x / COLUMN_THREADS;
    u32 slab = blockIdx.x * COLUMN_THREADS * N, col = slab + thread * N;
    u32 count = left(col, cols, N);
    bool aligned = cols % N == 0;
    u32 first = blockIdx.y * each, end = rows - first < each ? rows : first + each;
    float sum[N] = {};
    if (count > 0) {
        for (u32 row = first + lane; row < end; row += COLUMN_LANES) {
            float v[N];
            term(v, row, col, count, aligned);
#pragma unroll
            for (u32 k = 0; k < N; k++) sum[k] += v[k];
        }
    }
#pragma unroll
    for (u32 k = 0; k < N; k++) sums[lane][thread * N + k] = sum[k];
    __syncthreads();
    if (threadIdx.x < COLUMN_THREADS * N && slab + threadIdx.x < cols) {
        float total = 0.0f;
#pragma unroll
        for (u32 l = 0; l < COLUMN_LANES; l++) total += sums[l][threadIdx.x];
        partial[(size_t)blockIdx.y * cols + slab + threadIdx.x] = total;
    }
}

// The second launch: 32 columns a block, 8 lanes of partial sums each. blockDim.x is 256. acc may be y, or null.
__device__ __forceinline__ void column_totals(float* y, const float* partial, const float* acc, u32 blocks, u32 cols,
                                              float factor) {
    __shared__ float sums[8][32];
    u32 thread = threadIdx.x % 32, lane = threadIdx.x / 32;
    u32 col = block_number() * 32 + thread;
    float sum = 0.0f;
    if (col < cols)
        for (u32 b = lane; b < blocks; b += 8) sum += partial[(size_t)b * cols + col];
    sums[lane][thread] = sum;
    __syncthreads();
    if (lane == 0 && col < cols) {
        float total = 0.0f;
#pragma unroll
        for (u32 l = 0; l < 8; l++) total += sums[l][thread];
        y[col] = factor * total + (acc ? acc[col] : 0.0f);
    }
}
