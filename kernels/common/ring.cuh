// A ring of STAGES stages of BYTES in shared memory, which one warpgroup fills and others use.
#pragma once
#include "hopper.cuh"

// Stage s is filled when full[s] ends a phase, and free when empty[s] does. A thread that fills waits for the phase of `empty` that
// is before the first of all, which is over at once.
template <int STAGES, int BYTES> struct Ring {
    u8* stages;
    u64 *full, *empty;
    u32 stage, phase;
    // `bars`: 2 * STAGES of them.
    __device__ __forceinline__ Ring(u8* smem, u64* bars) : stages(smem), full(bars), empty(bars + STAGES), stage(0), phase(0) {}
    // By all threads of the block. So many arrive at `full` and at `empty` of each stage.
    __device__ __forceinline__ void begin(u32 fillers, u32 users) {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; s++) mbarrier_init(full + s, fillers), mbarrier_init(empty + s, users);
            proxy_fence();
        }
        __syncthreads();
    }
    __device__ __forceinline__ u8* now() const { return stages + stage * BYTES; }
    __device__ __forceinline__ u64* filled() const { return full + stage; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ void wait_free() const { mbarrier_wait(empty + stage, phase ^ 1); }
    __device__ __forceinline__ void wait_filled() const { mbarrier_wait(full + stage, phase); }
    // A warpgroup has used stage s, by wgmma alone.
    __device__ __forceinline__ void free(u32 s) const {
        if (threadIdx.x % GROUP == 0) mbarrier_arrive(empty + s);
    }
    // A warp has used stage s, by wgmma or by reading.
    __device__ __forceinline__ void free_by_warp(u32 s) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + s);
    }
};
