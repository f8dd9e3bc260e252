// launch: grid 1, block 128, n 4096, hopper; finds: AsyncInFlight
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  bring(tile, from, &bar);
  wait(&bar, 0);
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  hold(d);
  mma_fence();
  mma(d, descriptor(tile), descriptor(tile));
#ifndef BUG  // a product in no group is never waited for
  mma_commit();
#endif
  mma_wait<0>();
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = d[i];  // FOUND
}
