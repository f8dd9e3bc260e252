// launch: grid 1, block 128, n 4096, hopper; finds: AsyncInFlight
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  __shared__ __align__(1024) float tile[2048];
  for (int t = 0; t < 2; t++) {
    for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = in[i & 1023] + (float)t;  // FOUND
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      store(to, 0, 64 * t, tile);
      store_commit();
#ifndef BUG  // the next round writes the tile that the store reads
      store_wait();
#endif
    }
    __syncthreads();
  }
#ifdef BUG
  if (threadIdx.x == 0) store_wait();
#endif
}
