// launch: grid 1, block 128, n 4096, hopper; finds: Unfenced
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  __shared__ __align__(1024) float tile[2048];
  for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = in[i & 1023];
#ifndef BUG  // the store reads by another proxy than wrote
  proxy_fence();
#endif
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %1}], [%2];"  // FOUND
                 ::"l"(&to), "r"(0), "r"(shared_address(tile)) : "memory");
    store_commit();
    store_wait();
  }
}
