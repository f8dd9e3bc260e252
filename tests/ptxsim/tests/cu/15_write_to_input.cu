// launch: grid 1, block 32, n 32; finds: ReadOnly
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x;
#ifdef BUG
  const_cast<float*>(in)[i] = 1.0f;  // FOUND
#endif
  out[i] = in[i];
}
