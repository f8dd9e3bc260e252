// bitsandbytes' 8-bit dynamic maps (Dettmers et al. 2022, arXiv:2110.02861; src/quant/dynamic.rs), computed instead of
// looked up: tables in shared memory would be read at scattered addresses. Within an ulp or two of the tables.
#pragma once
#include "weight.cuh"

// 10^(d-6), and its inverse.
__device__ __forceinline__ float decade(u32 d) {
    return d == 0 ? 1e-6f : d == 1 ? 1e-5f : d == 2 ? 1e-4f : d == 3 ? 1e-3f : d == 4 ? 1e-2f : d == 5 ? 1e-1f : 1.0f;
}
__device__ __forceinline__ float inverse_decade(u32 d) {
    return d == 0 ? 1e6f : d == 1 ? 1e5f : d == 2 ? 1e4f : d == 3 ? 1e3f : d == 4 ? 1e2f : d == 5 ? 1e1f : 1.0f;
}

// The place (2^(d + doubled) + k) of a ≥ 0 among the values of its decade d, as if the decades' ends were edges between
// values: right, or next to right.
__device__ __forceinline__ u32 dynamic_place(float a, u32 doubled) {
    u32 d = (a >= 1e-6f) + (a >= 1e-5f) + (a >= 1e-4f) + (a >= 1e-3f) + (a >= 1e-2f) + (a >= 1e-1f);
    int parts = 1 << (d + doubled);
    int k = (int)((a * inverse_decade(d) - 0.1f) * ((float)parts * (1.0f / 0.9f)));
    return (u32)(parts + min(max(k, 0), parts - 1));
}

// Codes 0 to 126 stand for the negatives of 254 to 128, 127 for 0, 255 for 1.
struct Signed {
    static __device__ __forceinline__ float value(u32 code) { return dynamic_value(code); }
    static __device__ __forceinline__ u32 guess(float x) {
        u32 j = dynamic_place(fabsf(x), 0);
        return x < 0.0f ? 127 - j : 127 + j;
    }
};
// Code 0 stands for 0, 255 for 1; decade d of seven has 2^(d+1) values.
struct Unsigned {
    static __device__ __forceinline__ float value(u32 code) {
        if (code == 0) return 0.0f;
        if (code == 255) return 1.0f;
        u32 j = code + 1;  // 2 to 255: the decade is its highest bit less one
        u32 top = 31 - __clz(j);
        float fraction = ((float)(j - (1u << top)) + 0.5f) * __uint_as_float((127 - top) << 23);
        return decade(top - 1) * (0.1f + 0.9f * fraction);
    }
    static __device__ __forceinline__ u32 guess(float x) { return dynamic_place(x, 1) - 1; }
};

// The code of the value nearest to x in [-1, 1], the lower of two: the guess, moved by one where x lies over an edge.
template <class Map> __device__ __forceinline__ u32 dynamic_code(float x) {
    u32 code = Map::guess(x);
    float value = Map::value(code);
    u32 higher = code < 255 && x > 0.5f * (value + Map::value(min(code + 1, 255u)));
    u32 lower = code > 0 && x <= 0.5f * (value + Map::value(max(code, 1u) - 1));
    return code + higher - lower;
}
