// Runs of elements through registers: 16 bytes an access where rows are aligned, one element at a time where not.
#pragma once
#include "types.cuh"

// Elements of T that one 16-byte access moves: every thread takes such a run, neighbours neighbouring runs.
template <class T> struct Lanes { static const u32 N = 16 / sizeof(T); };

__device__ __forceinline__ size_t length(u32 low, u32 high) { return ((u64)high << 32) | low; }

// v = x[0..N]; one element, or N·sizeof(T) is 8 or a multiple of 16 and x is aligned to it or to 16.
template <u32 N, class T> __device__ __forceinline__ void load(float (&v)[N], const T* x) {
    constexpr u32 BYTES = N * sizeof(T);
    if constexpr (N == 1) {
        v[0] = to_f32(*x);
    } else if constexpr (BYTES % 16 == 0) {
        constexpr u32 EACH = 16 / sizeof(T);
#pragma unroll
        for (u32 i = 0; i < N / EACH; i++) {
            uint4 raw = ((const uint4*)x)[i];
            T part[EACH];
            memcpy(part, &raw, 16);
#pragma unroll
            for (u32 k = 0; k < EACH; k++) v[i * EACH + k] = to_f32(part[k]);
        }
    } else {
        static_assert(BYTES == 8, "8 bytes, or 16 at a time");
        uint2 raw = *(const uint2*)x;
        T part[N];
        memcpy(part, &raw, 8);
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = to_f32(part[k]);
    }
}
// y[0..N] = v, as above.
template <u32 N, class T> __device__ __forceinline__ void store(T* y, const float (&v)[N]) {
    constexpr u32 BYTES = N * sizeof(T);
    static_assert(N == 1 || BYTES == 8 || BYTES % 16 == 0, "8 bytes, or 16 at a time");
    T part[N];
#pragma unroll
    for (u32 k = 0; k < N; k++) part[k] = from_f32<T>(v[k]);
    if constexpr (N == 1) {
        *y = part[0];
    } else if constexpr (BYTES == 8) {
        uint2 raw;
        memcpy(&raw, part, 8);
        *(uint2*)y = raw;
    } else {
#pragma unroll
        for (u32 i = 0; i < BYTES / 16; i++) {
            uint4 raw;
            memcpy(&raw, (const char*)part + 16 * i, 16);
            ((uint4*)y)[i] = raw;
        }
    }
}

// The first `count` of N elements; the others count as 0, and are not touched. `aligned`: x may be accessed 16 bytes
// at a time.
template <u32 N, class T>
__device__ __forceinline__ void load_some(float (&v)[N], const T* x, u32 count, bool aligned) {
    if (aligned && count >= N) {
        load(v, x);
    } else {
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = k < count ? to_f32(x[k]) : 0.0f;
    }
}
template <u32 N, class T>
__device__ __forceinline__ void store_some(T* y, const float (&v)[N], u32 count, bool aligned) {
    if (aligned && count >= N) {
        store(y, v);
    } else {
#pragma unroll
        for (u32 k = 0; k < N; k++)
            if (k < count) y[k] = from_f32<T>(v[k]);
    }
}

// What is left of n elements from element i on, at most N.
__device__ __forceinline__ u32 left(size_t i, size_t n, u32 most) {
    return i >= n ? 0 : n - i < most ? (u32)(n - i) : most;
}
