// launch: grid 1, block 32, n 128; finds: Race
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ __align__(16) float tile[128];
  const int i = threadIdx.x;
  for (int k = 0; k < 4; k++) tile[4 * i + k] = in[4 * i + k];
#ifndef BUG  // each lane wrote the row whose address it gives, but other lanes get its elements
  __syncwarp();
#endif
  unsigned r[4];
  const unsigned row = (unsigned)__cvta_generic_to_shared(tile + 4 * i);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"  // FOUND
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
  for (int k = 0; k < 4; k++) out[32 * k + i] = __uint_as_float(r[k]);
}
