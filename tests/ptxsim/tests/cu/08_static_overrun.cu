// launch: grid 1, block 64, n 64; finds: OutOfBounds
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float first[33];
  __shared__ float second[33];
  const int i = threadIdx.x;
#ifdef BUG  // two warps fill an array for one
  first[i] = in[i];  // FOUND
#else
  if (i < 33) first[i] = in[i];
#endif
  if (i < 33) second[i] = in[63 - i];
  __syncthreads();
  out[i] = first[i & 31] + second[i & 31];
}
