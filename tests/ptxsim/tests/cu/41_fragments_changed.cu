// launch: grid 1, block 128, n 4096, hopper; finds: AsyncInFlight Unfenced
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ __align__(8) u64 bar;
  bring(tile, from, &bar);
  wait(&bar, 0);
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  u32 a[4];
  for (int i = 0; i < 4; i++) a[i] = 0x3f803f80u + threadIdx.x;
  hold(d);
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
  mma_fence();
  mma(d, a, descriptor(tile));
  mma_commit();
#ifndef BUG  // the product still reads its registers of A
  mma_wait<0>();
#endif
  asm volatile("xor.b32 %0, %0, 1;" : "+r"(a[0])::"memory");  // FOUND
  mma_fence();
  mma(d, a, descriptor(tile));
  mma_commit();
  mma_wait<0>();
  put(out, d);
}
