// The maximum and the sum behind a softmax, over a block.
#pragma once
#include "reduce.cuh"

// Logits that a thread reads at a time.
static const int SOFTMAX_EACH = 4;

// top = max x, total = Σ e^(x − top).
struct Softmax { float top, total; };

// Of n logits, `step` apart; all threads of the block call this and get the result. One reading: a sum is rescaled when
// its maximum rises.
__device__ __forceinline__ Softmax softmax_of(const float* x, u32 n, size_t step, float* smem) {
    float most = -INFINITY, sum = 0.0f, v[SOFTMAX_EACH];
    for (u32 i = threadIdx.x; i < n; i += SOFTMAX_EACH * blockDim.x) {
        float high = most;
#pragma unroll
        for (int j = 0; j < SOFTMAX_EACH; j++) {
            u32 at = i + j * blockDim.x;
            v[j] = at < n ? x[at * step] : -INFINITY;
            high = fmaxf(high, v[j]);
        }
        if (high > most) {
            sum *= expf(most - high);
            most = high;
        }
#pragma unroll
        for (int j = 0; j < SOFTMAX_EACH; j++) sum += expf(v[j] - most);
    }
    float top = block_max(most, smem);
    float total = block_sum(sum == 0.0f ? 0.0f : sum * expf(most - top), smem);
    return {top, total};
}
