// sm_90a: mbarriers, tensor copies (TMA), registers of warpgroups. Names are PTX's.
#pragma once
#include "async.cuh"

// Threads of a warpgroup.
constexpr int GROUP = 128;

// A tensor map, as the driver encodes it: passed by value, never read here.
struct __align__(64) Map { u64 opaque[16]; };

__device__ __forceinline__ void mbarrier_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// Arrives, and has the phase wait for so many bytes of copies.
__device__ __forceinline__ void mbarrier_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// Until the phase of this parity is over.
__device__ __forceinline__ void mbarrier_wait(u64* bar, u32 parity) {
    asm volatile("{ .reg .pred over;\n"
                 "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra AGAIN; }" ::"r"(shared_address(bar)), "r"(parity)
                 : "memory");
}
// What this thread wrote to shared memory, and barriers it made, are there for copies and wgmma.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The box at column x and row y of a map, to `to`; its bytes count at `bar`.
__device__ __forceinline__ void tensor_load(void* to, const Map* map, u64* bar, u32 x, u32 y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(to)), "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
                 : "memory");
}

// All threads of the warpgroups that name barrier `ID`, `THREADS` of them; 0 is that of the block. Lanes that have gone apart meet
// first: bar.sync is for whole warps.
template <int ID, int THREADS> __device__ __forceinline__ void named_sync() {
    __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

// Registers of a thread of this warpgroup from here on.
template <int N> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
