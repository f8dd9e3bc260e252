// Tensor cores: d[16,8] += a[16,16]·b[16,8] of a warp, operands in 16 bits, sums in f32 (PTX ISA, mma.m16n8k16), and
// the loads that bring operands from shared memory into the order the instruction wants (ldmatrix).
//
// With g = lane / 4 and t = lane % 4 a thread holds
//   a[0] (row g,   columns 2t, 2t+1)   a[1] (row g+8, same)   a[2] (row g, columns 2t+8, 2t+9)   a[3] (row g+8, same)
//   b[0] (rows 2t, 2t+1, column g)     b[1] (rows 2t+8, 2t+9, column g)
//   d[0], d[1] (row g, columns 2t, 2t+1)   d[2], d[3] (row g+8, same)
#pragma once
#include "async.cuh"

template <class T> struct Tensor;
template <> struct Tensor<bf16> {
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        // Cards before sm_80 have no bf16 and are given f16.
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
    }
    // Two values rounded, the first in the low half.
    static __device__ __forceinline__ u32 pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
        u32 r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
#else
        return from_f32<bf16>(low).bits | (u32)from_f32<bf16>(high).bits << 16;
#endif
    }
};
template <> struct Tensor<f16> {
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
        // Two halves of eight columns of a: the registers are the same.
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b0));
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
    }
    static __device__ __forceinline__ u32 pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
        u32 r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
#else
        return from_f32<f16>(low).bits | (u32)from_f32<f16>(high).bits << 16;
#endif
    }
};

// Loads 8x8 blocks of 16-bit elements from shared memory: lanes 8i to 8i+7 give the addresses (multiples of 16) of the
// eight rows of block i, and r[i] of a thread is (row g, columns 2t, 2t+1) of it; with _trans (rows 2t, 2t+1, column g).
__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of two blocks; lanes 16 on give no address that counts.
__device__ __forceinline__ void ldmatrix2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
