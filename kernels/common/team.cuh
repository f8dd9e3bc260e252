// A team of threads for each row of a matrix of activations: a warp, or the whole block for long rows. A row of aligned
// length that fits stays in the team's registers between the passes over it.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

// 16-byte runs of a row that a thread keeps: 64 bytes in flight a thread, registers for two such operands.
static const u32 RUNS = 4;
static const u32 N = Lanes<act>::N;

struct Team {
    u32 size, lane, row;
    float* smem;

    // The sum over the team; a team of one warp needs no barrier. All threads of the block call this.
    __device__ __forceinline__ float sum(float x) const { return size == 32 ? warp_sum(x) : block_sum(x, smem); }
};
// `size` is 32 or blockDim.x.
__device__ __forceinline__ Team team_of(u32 size, float* smem) {
    Team t = {size, threadIdx.x % size, block_number() * (blockDim.x / size) + threadIdx.x / size, smem};
    return t;
}
__device__ __forceinline__ bool fits(u32 cols, u32 size) { return cols % N == 0 && cols <= size * RUNS * N; }
__device__ __forceinline__ void widen(float (&v)[N], const uint4& raw) {
    act part[N];
    memcpy(part, &raw, 16);
#pragma unroll
    for (u32 k = 0; k < N; k++) v[k] = to_f32(part[k]);
}
