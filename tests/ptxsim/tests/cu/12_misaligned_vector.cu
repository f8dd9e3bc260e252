// launch: grid 1, block 16, n 128; finds: Misaligned
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x;
#ifdef BUG
  const float4 v = *reinterpret_cast<const float4*>(in + 4 * i + 1);  // FOUND
#else
  const float4 v = *reinterpret_cast<const float4*>(in + 4 * i + 4);
#endif
  out[i] = v.x + v.y + v.z + v.w;
}
