// launch: grid 1, block 128, n 128; finds: Race Uninitialised
__constant__ float CODE[16] = {-1.0f, -0.7f, -0.5f, -0.4f, -0.3f, -0.2f, -0.1f, 0.0f, 0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 1.0f};
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float table[16];
  const int i = threadIdx.x;
  if (i < 16) table[i] = CODE[i];
#ifndef BUG
  __syncthreads();
#endif
  out[i] = table[(i * 7) & 15] * in[i];  // FOUND
}
