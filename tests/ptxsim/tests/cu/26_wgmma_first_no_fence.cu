// launch: grid 1, block 128, n 4096, hopper; finds: Unfenced
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  bring(tile, from, &bar);
  wait(&bar, 0);
#ifndef BUG  // the accumulators are not read, and still the first product needs a fence
  mma_fence();
#endif
  float d[4];
  asm volatile("{ .reg .pred no; setp.ne.u32 no, 0, 0;\n"  // FOUND
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, no, 1, 1, 0, 0; }"  // FOUND
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "l"(descriptor(tile)), "l"(descriptor(tile)));
  mma_commit();
  mma_wait<0>();
  put(out, d);
}
