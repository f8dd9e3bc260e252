// launch: grid 1, block 128, n 4096, hopper; finds: AsyncInFlight Deadlock
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  bring(tile, from, &bar);
#ifdef BUG  // the phase before the first is over: this waits for nothing
  wait(&bar, 1);  // FOUND
#else
  wait(&bar, 0);
#endif
  for (int i = threadIdx.x; i < 2048; i += 128) out[i] = __uint_as_float(((u32*)tile)[i]);  // FOUND
}
