// Sums and maxima over a warp and over a block, in an order that shapes fix: the same bits every time.
#pragma once
#include "types.cuh"

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Every thread of the block gets the sum. blockDim.x is a multiple of 32, at most 1024; `smem` holds 32 floats.
__device__ __forceinline__ float block_sum(float x, float* smem) {
    x = warp_sum(x);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // whoever still reads the last result
    if (lane == 0) smem[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? smem[lane] : 0.0f);
}
__device__ __forceinline__ float block_max(float x, float* smem) {
    x = warp_max(x);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // whoever still reads the last result
    if (lane == 0) smem[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? smem[lane] : -INFINITY);
}
