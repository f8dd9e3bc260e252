// Copies from global to shared memory that run beside the arithmetic (cp.async, sm_80 on). Before sm_80 the same names
// copy at once, through registers.
#pragma once
#include "types.cuh"

// Where a pointer into shared memory points, as PTX's shared instructions want it.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes, both sides on a multiple of 16; zeros where not `inside`, and then `from` is not read (it must still be a
// pointer into the operand).
__device__ __forceinline__ void copy16(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
#else
    *(uint4*)to = inside ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

// Closes the group of the copies that this thread began since the last group.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the N newest groups of this thread are under way; the other threads' copies are there after the
// barrier that follows.
template <int N> __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
