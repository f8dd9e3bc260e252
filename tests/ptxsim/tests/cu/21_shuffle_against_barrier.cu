// launch: grid 1, block 64, n 64; finds: DivergentBarrier
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x, lane = i & 31;
  float v = in[i];
#ifdef BUG  // half of a warp waits in the shuffle for the other half, which waits at the barrier
  if (lane < 16) {
    v = __shfl_xor_sync(0xffffffffu, v, 1);  // FOUND
  } else {
    __syncthreads();  // FOUND
    v *= 2.0f;
  }
#else
  if (lane < 16) {
    v = __shfl_xor_sync(0x0000ffffu, v, 1);
  } else {
    v *= 2.0f;
  }
  __syncthreads();
#endif
  out[i] = v;
}
