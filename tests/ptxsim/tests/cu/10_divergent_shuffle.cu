// launch: grid 1, block 64, n 64; finds: DivergentBarrier
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x, lane = i & 31;
  float v = in[i];
#ifdef BUG
  if (lane < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // FOUND
#else
  if (lane < 16) v = __shfl_xor_sync(0x0000ffffu, v, 1);
#endif
  out[i] = v;
}  // FOUND
