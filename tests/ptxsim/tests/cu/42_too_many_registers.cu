// launch: grid 1, block 384, n 4096, hopper; finds: Deadlock
#include "hopper.cuh"
extern "C" __global__ void kernel(const float* in, float* out, int n, const __grid_constant__ Map from, const __grid_constant__ Map to) {
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");  // FOUND
  } else {
#ifdef BUG  // 40 + 240 + 240 for a thread of each are more than 512
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");  // FOUND
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
  }
  out[threadIdx.x] = in[threadIdx.x];
}
