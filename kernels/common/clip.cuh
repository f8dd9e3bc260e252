// What optimizers do about the gradient's norm: clipping as PyTorch's clip_grad_norm_, and skipping a step.
#pragma once
#include "types.cuh"

// Whether the sum of squares is infinite or no number: nothing changes then.
__device__ __forceinline__ bool skipped(float sumsq) {
    return (__float_as_uint(sumsq) & 0x7f800000u) == 0x7f800000u;
}
// What gradients are multiplied by: min(1, largest / (√sumsq + 1e-6)).
__device__ __forceinline__ float clip_factor(float sumsq, float largest) {
    return largest > 0.0f ? fminf(largest / (sqrtf(sumsq) + 1e-6f), 1.0f) : 1.0f;
}
