// Words, 16-bit floats, and the type that activations are kept in, without CUDA's headers: NVRTC alone compiles every
// kernel of this folder.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITY __int_as_float(0x7f800000)

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

// What activations are kept in: -DACT=0 f32, 1 bf16, 2 f16. Sums and everything trained are f32 throughout.
#ifndef ACT
#define ACT 0
#endif
#if ACT == 1
typedef bf16 act;
#elif ACT == 2
typedef f16 act;
#else
typedef float act;
#endif

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <class T> struct From;
template <> struct From<float> {
    static __device__ __forceinline__ float f32(float x) { return x; }
};
template <> struct From<f16> {
    static __device__ __forceinline__ f16 f32(float x) {
        f16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
    }
};
template <> struct From<bf16> {
    // To the nearest, ties to even; by hand before sm_80, which has no instruction for it.
    static __device__ __forceinline__ bf16 f32(float x) {
        bf16 y;
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
        u32 bits = __float_as_uint(x);
        y.bits = x != x ? 0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
        return y;
    }
};

// x rounded to T: `from_f32<act>(x)`.
template <class T> __device__ __forceinline__ T from_f32(float x) { return From<T>::f32(x); }

// The number of this thread in a grid over x and y, which long operands need (`launch::grid` makes it).
__device__ __forceinline__ size_t thread_number() {
    return ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ u32 block_number() { return blockIdx.y * gridDim.x + blockIdx.x; }
