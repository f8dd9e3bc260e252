// launch: grid 1, block 64, n 64; finds: DivergentBarrier
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  const int i = threadIdx.x;
  tile[i] = in[i];
#ifdef BUG
  if (i < 32) __syncthreads();  // FOUND
#else
  __syncthreads();
#endif
  out[i] = 3.0f * tile[i];
}  // FOUND
