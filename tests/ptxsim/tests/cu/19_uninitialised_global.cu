// launch: grid 1, block 32, n 32; finds: Uninitialised
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x;
#ifdef BUG  // adds to what was never set
  out[i] += in[i];  // FOUND
#else
  out[i] = in[i];
#endif
}
