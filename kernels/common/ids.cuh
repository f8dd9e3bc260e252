// Sums of the rows of tokens that have an id in common: each by one block, in the order of the tokens.
#pragma once
#include "vector.cuh"

// Threads of a block that calls this; so many ids are asked at a time.
static const u32 ID_THREADS = 256;

// sum = Σ dy[n, col..col+N] over the n with ids[n] = ids[token], in ascending order. A block for each token asks all ids
// which are its token's; the block of the first such token sums their rows, and for the others this is false: so each
// id has one writer. All threads of the block call this with the same token.
template <u32 N>
__device__ __forceinline__ bool sum_of_id(float (&sum)[N], const int* ids, const float* dy, u32 tokens, u32 token,
                                          u32 col, u32 cols) {
    __shared__ u32 found[ID_THREADS / 32];  // bit s % 32 of word s / 32: token `base + s` has the id
    int id = ids[token];
    u32 count = left(col, cols, N);
    bool aligned = cols % N == 0;
#pragma unroll
    for (u32 k = 0; k < N; k++) sum[k] = 0.0f;
    for (u32 base = 0; base < tokens; base += ID_THREADS) {
        u32 s = base + threadIdx.x;
        u32 same = __ballot_sync(0xffffffffu, s < tokens && ids[s < tokens ? s : 0] == id);
        __syncthreads();  // whoever still reads the last chunk's
        if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = same;
        __syncthreads();
        for (u32 word = 0; word < ID_THREADS / 32; word++) {
            for (u32 bits = found[word]; bits != 0; bits &= bits - 1) {
                u32 other = base + word * 32 + __ffs((int)bits) - 1;
                if (other < token) return false;  // not the first: the whole block sees it
                float v[N];
                load_some(v, dy + (size_t)other * cols + col, count, aligned);
#pragma unroll
                for (u32 k = 0; k < N; k++) sum[k] += v[k];
            }
        }
    }
    return true;
}
