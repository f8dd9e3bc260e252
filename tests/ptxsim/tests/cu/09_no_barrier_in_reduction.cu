// launch: grid 2, block 128, n 256; finds: Race Uninitialised
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float part[4];
  const int i = threadIdx.x;
  float v = in[blockIdx.x * 128 + i];
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  if ((i & 31) == 0) part[i >> 5] = v;
#ifndef BUG
  __syncthreads();
#endif
  if (i == 0) out[blockIdx.x] = part[0] + part[1] + part[2] + part[3];  // FOUND
}
