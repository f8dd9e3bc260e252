// launch: grid 1, block 128, n 4096, hopper; finds: Unfenced
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  bring(tile, from, &bar);
  wait(&bar, 0);
  float d[8];
  for (int i = 0; i < 8; i++) d[i] = 0.0f;
  float(&half)[4] = *(float(*)[4])d;
  asm volatile("" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])::"memory");
  mma_fence();
  mma(half, descriptor(tile), descriptor(tile));
#ifndef BUG  // only products of one shape follow each other on the same accumulators by themselves
  mma_fence();
#endif
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;"  // FOUND
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
               : "l"(descriptor(tile)), "l"(descriptor(tile)));
  mma_commit();
  mma_wait<0>();
  put(out, half);
}
