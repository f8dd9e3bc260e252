// launch: grid 1, block 128, n 4096, hopper; finds: Race Uninitialised
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  __shared__ __align__(1024) u32 tile[2048];
  for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = ((const u32*)in)[i];
  proxy_fence();
#ifndef BUG  // the warps of a warpgroup do not wait for each other's writes by themselves
  __syncthreads();
#endif
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  hold(d);
  mma_fence();
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"  // FOUND
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(descriptor(tile)), "l"(descriptor(tile)));
  mma_commit();
  mma_wait<0>();
  put(out, d);
}
