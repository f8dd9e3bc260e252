// launch: grid 1, block 128, n 4096, hopper; finds: Unfenced
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  if (threadIdx.x == 0) {
    init(&bar, 1);
#ifndef BUG  // the copy counts at the mbarrier by another proxy than made it
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    expect(&bar, 8192);
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %3}], [%2];"  // FOUND
                 ::"r"(shared_address(tile)), "l"(&from), "r"(shared_address(&bar)), "r"(0) : "memory");
  }
  __syncthreads();
  wait(&bar, 0);
  for (int i = threadIdx.x; i < 2048; i += 128) out[i] = __uint_as_float(((u32*)tile)[i]);
}
