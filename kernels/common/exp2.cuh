// Powers of two, for softmax: exponents are in units of log2.
#pragma once
#include "types.cuh"

// 2^x, within two ulp; 0 for −∞.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
constexpr float LOG2_E = 1.44269504088896f, LN_2 = 0.693147180559945f;
