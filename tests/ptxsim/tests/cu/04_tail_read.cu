// launch: grid 2, block 64, n 100; finds: OutOfBounds
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BUG  // the last block's threads past the end read too
  const float v = in[i];  // FOUND
#else
  const float v = i < n ? in[i] : 0.0f;
#endif
  // A use that the compiler cannot move under the condition.
  const float w = __shfl_xor_sync(0xffffffffu, v, 1);
  if (i < n) out[i] = v + w;
}
