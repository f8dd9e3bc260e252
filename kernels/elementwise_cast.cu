// The same numbers in another float type, to the nearest, ties to even (src/ops/elementwise/cast.rs). A thread takes eight
// elements: 16 bytes of 16-bit ones, twice that of f32.
#include "common/vector.cuh"

template <class To, class From> __device__ __forceinline__ void cast(To* y, const From* x, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * 8;
    u32 count = left(i, n, 8);
    if (count == 0) return;
    float v[8];
    load_some(v, x + i, count, true);
    store_some(y + i, v, count, true);
}

#define CAST(name, To, From)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) name(To* y, const From* x, u32 low, u32 high) {   \
        cast(y, x, low, high);                                                                          \
    }
CAST(cast_f32_bf16, bf16, float)
CAST(cast_f32_f16, f16, float)
CAST(cast_bf16_f32, float, bf16)
CAST(cast_bf16_f16, f16, bf16)
CAST(cast_f16_f32, float, f16)
CAST(cast_f16_bf16, bf16, f16)
