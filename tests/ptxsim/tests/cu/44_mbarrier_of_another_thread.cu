// launch: grid 1, block 128, n 4096, hopper; finds: Race Uninitialised
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  __shared__ __align__(8) u64 bar;
  if (threadIdx.x == 0) init(&bar, 128);
#ifndef BUG  // nothing orders the arrivals after the initialisation
  __syncthreads();
#endif
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bar)) : "memory");  // FOUND
  wait(&bar, 0);
  out[threadIdx.x] = in[threadIdx.x];
}
