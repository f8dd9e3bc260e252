// Multiply-adds on what stays in registers (src/ops/probe.rs): y = x, then `rounds` times y = 0.75 y + 0.125. A thread takes 8
// elements, a block apart, whose rounds overlap.
#include "common/vector.cuh"

extern "C" __global__ void __launch_bounds__(256) multiply_add(float* y, const float* x, u32 low, u32 high, u32 rounds) {
    static const u32 EACH = 8;
    size_t n = length(low, high);
    size_t first = (size_t)block_number() * blockDim.x * EACH + threadIdx.x;
    float v[EACH];
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        size_t i = first + (size_t)k * blockDim.x;
        v[k] = i < n ? x[i] : 0.0f;
    }
    for (u32 r = 0; r < rounds; r++) {
#pragma unroll
        for (u32 k = 0; k < EACH; k++) v[k] = fmaf(v[k], 0.75f, 0.125f);
    }
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        size_t i = first + (size_t)k * blockDim.x;
        if (i < n) y[i] = v[k];
    }
}
