// A bias by the distance of key and query, for the tiled kernels: -DBIAS=1 compiles it in. `columns` is the table, one head
// after the other, so that the threads of a warp, which have neighbouring distances of one head, read few lines of memory;
// and in units of unscaled scores. `middles` is the key at distance 0 of each query. attention_bias writes both.
#pragma once
#include "types.cuh"

#ifndef BIAS
#define BIAS 0
#endif

#if BIAS
extern "C" __global__ void __launch_bounds__(128)
    attention_bias(float* columns, int* middles, const float* bias, const int* q_pos, const int* key_range, u32 tokens,
                   u32 keys, u32 heads, u32 farthest, float scale) {
    size_t n = thread_number();
    u32 rows = 2 * farthest + 1;
    if (n < tokens) middles[n] = (int)min(max(key_range[2 * n], 0), keys) + q_pos[n];
    if (n < (size_t)rows * heads) columns[n] = bias[n % rows * heads + n / rows] / scale;
}
#endif

// The middle of a head's column.
__device__ __forceinline__ const float* column(const float* columns, u32 head, u32 farthest) {
    return columns + (size_t)head * (2 * farthest + 1) + farthest;
}

__device__ __forceinline__ float bias_at(const float* column, int distance, u32 farthest) {
    return column[max(min(distance, (int)farthest), -(int)farthest)];
}
