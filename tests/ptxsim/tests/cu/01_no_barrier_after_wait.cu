// launch: grid 2, block 64, n 512; finds: Race Uninitialised AsyncInFlight
__device__ __forceinline__ void copy16(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ __align__(16) float tile[256];
  const int base = blockIdx.x * 256, i = threadIdx.x;
  copy16(tile + 4 * i, in + base + 4 * i);
  commit();
  wait<0>();
#ifndef BUG  // a thread waits for its own copies only
  __syncthreads();
#endif
  for (int k = 0; k < 4; k++) out[base + i + 64 * k] = tile[255 - i - 64 * k];  // FOUND
}
