// launch: grid 3, block 32, n 96; finds: Race
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  out[i] = in[i];
#ifdef BUG  // every block stores its total in the same place
  if (threadIdx.x == 0) out[0] = in[i];  // FOUND
#endif
}
