// y[n] = Σ_t x[t,n] (+ acc[n]): the gradient of a bias. A block sums 32 columns, its warps over every WARPS-th row, so
// that each reads 32 neighbours at a time; the warps' sums are then added in order.
#include "common/types.cuh"

constexpr u32 WARPS = 16;

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    sum_rows(float* y, const act* x, const float* acc, u32 rows, u32 cols) {
    __shared__ float smem[WARPS][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = block_number() * 32 + lane;
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
        for (u32 row = warp; row < rows; row += WARPS) sum += to_f32(x[(size_t)row * cols + col]);
    }
    smem[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && col < cols) {
        sum = 0.0f;
        for (u32 i = 0; i < WARPS; i++) sum += smem[i][lane];
        y[col] = acc != nullptr ? sum + acc[col] : sum;
    }
}
