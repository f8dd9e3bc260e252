// launch: grid 1, block 32, n 32; finds: Limit
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x;
  float v = in[i];
#ifdef BUG  // adds nothing to a large number, for ever
  while (v < 1e9f) v = v * 0.5f + (float)(i > 100);  // FOUND
#else
  while (v < 1e9f) v = v * 2.0f + 1.0f;
#endif
  out[i] = v;
}
