// launch: grid 1, block 32, n 512; finds: AsyncInFlight
__device__ __forceinline__ void copy16(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ __align__(16) float tile[2][128];
  const int i = threadIdx.x;
  copy16(tile[0] + 4 * i, in + 4 * i);
  commit();
  for (int t = 0; t < 4; t++) {
    if (t < 3) copy16(tile[t + 1 & 1] + 4 * i, in + 128 * (t + 1) + 4 * i);
    commit();
#ifdef BUG  // leaves the group that is read next under way
    wait<2>();
#else
    wait<1>();
#endif
    __syncthreads();
    for (int k = 0; k < 4; k++) out[128 * t + i + 32 * k] = tile[t & 1][127 - i - 32 * k];  // FOUND
    __syncthreads();
  }
}
