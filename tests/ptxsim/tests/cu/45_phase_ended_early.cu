// launch: grid 1, block 128, n 4096, hopper; finds: Race Uninitialised
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  __shared__ __align__(8) u64 bar;
  __shared__ float values[128];
#ifdef BUG  // a quarter of the threads ends the phase
  if (threadIdx.x == 0) init(&bar, 32);
#else
  if (threadIdx.x == 0) init(&bar, 128);
#endif
  __syncthreads();
  values[threadIdx.x] = in[threadIdx.x];  // FOUND
  arrive(&bar);
  wait(&bar, 0);
  out[threadIdx.x] = values[127 - threadIdx.x];  // FOUND
}
