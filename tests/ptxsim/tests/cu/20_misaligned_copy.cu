// launch: grid 1, block 32, n 128; finds: Misaligned
__device__ __forceinline__ void copy16(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ __align__(16) float tile[132];
  const int i = threadIdx.x;
#ifdef BUG  // 16 bytes need an address that is a multiple of 16
  copy16(tile + 4 * i + 1, in + 4 * i);  // FOUND
#else
  copy16(tile + 4 * i, in + 4 * i);
#endif
  commit();
  wait<0>();
  __syncwarp();
  out[i] = tile[4 * i + 2];
}
