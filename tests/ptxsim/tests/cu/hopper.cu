// sm_90a: c (one 64 x 64 tile, raw accumulators) = a b^T by wgmma; tiles come by TMA, an mbarrier counts their bytes.
typedef unsigned int u32;
typedef unsigned long long u64;
struct __align__(64) Map { u64 opaque[16]; };
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// K-major, 128-byte swizzle, 1024 bytes from one group of 8 rows to the next.
__device__ __forceinline__ u64 descriptor(const void* p) {
  return ((u64)(shared_address(p) & 0x3ffff) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
__device__ __forceinline__ void tile(void* to, const Map& map, u64* bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(bar)), "r"(x), "r"(y) : "memory");
}
extern "C" __global__ void __launch_bounds__(128) product(float* c, const __grid_constant__ Map a, const __grid_constant__ Map b, int steps) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 bar;
  unsigned char *sa = memory, *sb = memory + 8192;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&bar)));
    asm volatile("fence.proxy.async;");
  }
  __syncthreads();
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0.0f;
  for (int k = 0; k < steps; k++) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)), "r"(16384));
      tile(sa, a, &bar, 64 * k, 0);
      tile(sb, b, &bar, 64 * k, 0);
    }
#ifndef BUG  // reads what has not come
    asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra DONE; bra AGAIN; DONE: }"
                 ::"r"(shared_address(&bar)), "r"(k & 1) : "memory");
#endif
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int kk = 0; kk < 4; kk++) {
      asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                   "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
                     "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                     "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                   : "l"(descriptor(sa + 32 * kk)), "l"(descriptor(sb + 32 * kk)));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    __syncthreads();
  }
  for (int i = 0; i < 32; i++) c[threadIdx.x * 32 + i] = d[i];
}
