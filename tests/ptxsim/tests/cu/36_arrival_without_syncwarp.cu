// launch: grid 1, block 64, n 4096, hopper; finds: Race
#include "hopper.cuh"
// One warp reads what the other warp's first thread has brought, twice.
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 full, empty;
  if (threadIdx.x == 0) {
    init(&full, 1);
    init(&empty, 1);
    proxy_fence();
  }
  __syncthreads();
  if (threadIdx.x == 32) {
    for (int k = 0; k < 2; k++) {
      wait(&empty, k & 1 ^ 1);
      expect(&full, 8192);
      asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"  // FOUND
                   ::"r"(shared_address(tile)), "l"(&from), "r"(shared_address(&full)), "r"(32 * k), "r"(0) : "memory");
    }
  }
  if (threadIdx.x >= 32) return;
  for (int k = 0; k < 2; k++) {
    wait(&full, k & 1);
    for (int i = threadIdx.x; i < 2048; i += 32) out[2048 * k + i] = __uint_as_float(((u32*)tile)[i]);
#ifndef BUG  // the first lane tells of its own reads only
    __syncwarp();
#endif
    if (threadIdx.x == 0) arrive(&empty);
  }
}
