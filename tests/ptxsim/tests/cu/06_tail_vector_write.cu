// launch: grid 1, block 32, n 126; finds: OutOfBounds
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  const int i = 4 * threadIdx.x;
#ifdef BUG  // the last vector ends past the buffer
  const bool whole = i < n;
#else
  const bool whole = i + 4 <= n;
#endif
  if (whole) {
    *reinterpret_cast<float4*>(out + i) = make_float4(i, i + 1, i + 2, i + 3);  // FOUND
  } else {
    for (int k = i; k < n; k++) out[k] = k;
  }
}
