// launch: grid 1, block 64, n 50; finds: DivergentBarrier
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  const int i = threadIdx.x;
#ifdef BUG
  if (i >= n) return;  // FOUND
  tile[i] = in[i];
#else
  tile[i] = i < n ? in[i] : 0.0f;
#endif
  __syncthreads();  // FOUND
  if (i < n) out[i] = tile[n - 1 - i];
}
