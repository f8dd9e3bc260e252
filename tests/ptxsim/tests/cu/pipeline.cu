// sm_90a: c (m x n, f32) = a b^T of bf16 by wgmma. A ring of stages: one thread of the first warpgroup fills them by TMA,
// two warpgroups multiply 64 rows each, and one thread of each frees a stage. Blocks take tiles in turns.
#include "hopper.cuh"
constexpr int STAGES = 3, TILE = 64 * 64 * 2, STAGE = 3 * TILE;
__device__ __forceinline__ void mma64(float (&d)[32], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
                 "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                 "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
               : "l"(a), "l"(b));
}
extern "C" __global__ void __launch_bounds__(384, 1)
product(float* c, const __grid_constant__ Map a, const __grid_constant__ Map b, int m, int n, int k) {
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      init(full + s, 1);
      init(empty + s, 2);
    }
#ifndef NO_PROXY_FENCE
    proxy_fence();
#endif
  }
  __syncthreads();
  const int rows = (m + 127) / 128, columns = (n + 63) / 64, steps = (k + 63) / 64;
  int s = 0, phase = 0;
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x != 0) return;
    for (int t = blockIdx.x; t < rows * columns; t += gridDim.x)
      for (int i = 0; i < steps; i++) {
        wait(empty + s, phase ^ 1);
        expect(full + s, STAGE);
        unsigned char* at = ring + s * STAGE;
        load(at, a, full + s, 64 * i, t % rows * 128);
        load(at + TILE, a, full + s, 64 * i, t % rows * 128 + 64);
        load(at + 2 * TILE, b, full + s, 64 * i, t / rows * 64);
        if (++s == STAGES) s = 0, phase ^= 1;
      }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  for (int t = blockIdx.x; t < rows * columns; t += gridDim.x) {
    float d[32];
    for (int j = 0; j < 32; j++) d[j] = 0.0f;
    int last = 0;
    for (int i = 0; i < steps; i++) {
      wait(full + s, phase);
      const unsigned char *left = ring + s * STAGE + (group - 1) * TILE, *right = ring + s * STAGE + 2 * TILE;
#ifndef NO_FENCE
      mma_fence();
#endif
      for (int kk = 0; kk < 4; kk++) mma64(d, descriptor(left + 32 * kk), descriptor(right + 32 * kk));
#ifndef NO_COMMIT
      mma_commit();
#endif
#ifndef NO_WAIT
      mma_wait<1>();
#endif
      // The step before has been multiplied: its stage may be filled again.
#ifdef FREES_ITS_OWN
      if (threadIdx.x % 128 == 0) arrive(empty + s);
#else
      if (i > 0 && threadIdx.x % 128 == 0) arrive(empty + last);
#endif
      last = s;
      if (++s == STAGES) s = 0, phase ^= 1;
    }
#ifndef NO_WAIT
    mma_wait<0>();
#endif
#ifndef FREES_ITS_OWN
    if (threadIdx.x % 128 == 0) arrive(empty + last);
#endif
    const int row = t % rows * 128 + 64 * (group - 1) + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    for (int j = 0; j < 32; j++) {
      const int r = row + 8 * (j / 2 % 2), column = t / rows * 64 + j / 4 * 8 + threadIdx.x % 4 * 2 + j % 2;
      if (r < m && column < n) c[(size_t)r * n + column] = d[j];
    }
  }
}
