// launch: grid 4, block 32, n 128; finds: Race Uninitialised
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  out[i] = in[i];  // FOUND
#ifdef BUG  // no order between blocks
  if (i >= 32) out[i] += out[i - 32];  // FOUND
#endif
}
