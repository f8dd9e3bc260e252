// launch: grid 1, block 256, n 4096, hopper; finds: Race AsyncInFlight
#include "hopper.cuh"
// One stage, filled by the second warpgroup's first thread, freed by the first thread of the first.
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 full, empty;
  if (threadIdx.x == 0) {
    init(&full, 1);
    init(&empty, 1);
    proxy_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128) {
      for (int k = 0; k < 3; k++) {
        wait(&empty, k & 1 ^ 1);
        expect(&full, 8192);
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"  // FOUND
                     ::"r"(shared_address(tile)), "l"(&from), "r"(shared_address(&full)), "r"(16 * k), "r"(0) : "memory");
      }
    }
    return;
  }
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  hold(d);
  for (int k = 0; k < 3; k++) {
    wait(&full, k & 1);
    mma_fence();
    mma(d, descriptor(tile), descriptor(tile));
    mma_commit();
#ifdef BUG  // the stage is filled again while the product reads it
    if (threadIdx.x == 0) arrive(&empty);
    mma_wait<0>();
#else
    mma_wait<0>();
    if (threadIdx.x == 0) arrive(&empty);
#endif
  }
  put(out, d);
}
