// launch: grid 1, block 96, n 96; finds: Deadlock
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float tile[32];
  const int i = threadIdx.x;
  // Warp 0 makes, warp 1 takes; warp 2 has nothing to do with it.
#ifdef BUG
  const int count = 96;
#else
  const int count = 64;
#endif
  if (i < 32) {
    tile[i] = in[i];
    asm volatile("bar.arrive 1, %0;" ::"r"(count) : "memory");
  } else if (i < 64) {
    asm volatile("bar.sync 1, %0;" ::"r"(count) : "memory");  // FOUND
    out[i] = tile[63 - i];
  }
}
