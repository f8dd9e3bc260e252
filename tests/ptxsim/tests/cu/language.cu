// What kernels may use of the language: calls, local arrays, constant tables, structs by value, the math library.
struct Pair { int a; float b; long long c; };
__constant__ float TABLE[4] = {1.0f, 2.0f, -3.0f, 0.5f};
__constant__ unsigned char BYTES[8] = {9, 8, 7, 6, 5, 4, 3, 200};
__device__ float OFFSETS[2][2] = {{0.25f, 0.5f}, {0.75f, 1.0f}};

__device__ __noinline__ float called(Pair p, float x) { return x > 0.0f ? p.b * expf(x) : (float)(p.c / p.a); }
__device__ __noinline__ int deeper(int n) { return n * 3 - 1; }
__device__ __noinline__ float2 chain(int n, float x) { return make_float2(called({deeper(n), x, 7}, 1.0f), x - deeper(n)); }

// out[i], i < 64, of one block: called functions, a local array indexed at run time, constants, 64-bit division.
extern "C" __global__ void calls(float* out, const Pair p, int n, unsigned long long d) {
  const int i = threadIdx.x;
  float local[16];
  for (int j = 0; j < 16; j++) local[j] = out[j] * j;
  __syncthreads();
  float y = local[(i * 7) & 15] + called(p, (float)(i - 8)) + TABLE[i & 3] + BYTES[i & 7] + OFFSETS[i >> 1 & 1][i & 1];
  y += (float)((d + i) / (unsigned long long)n) + (float)((d + i) % (unsigned long long)n);
  if (i & 1) { const float2 c = chain(i, y); y = c.x + c.y; }
  out[i] = y;
}

// out[12 * i + k]: the math library's k-th function of x[i].
extern "C" __global__ void math(float* out, const float* x) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float v = x[i];
  float* o = out + 12 * i;
  o[0] = expf(v); o[1] = logf(fabsf(v) + 0.1f); o[2] = sinf(v); o[3] = cosf(v * 1000.0f); o[4] = tanhf(v); o[5] = powf(fabsf(v), 1.7f);
  o[6] = rsqrtf(fabsf(v) + 1.0f); o[7] = erff(v); o[8] = (float)((double)v * v / 3.0 + sqrt(fabs((double)v))); o[9] = floorf(v) + rintf(v) + truncf(v);
  o[10] = __expf(v) + __logf(fabsf(v) + 1.0f) + __fdividef(v, 3.0f) + __fsqrt_rn(fabsf(v)); o[11] = 1.0f / (1.0f + exp2f(-v)) + fmodf(v, 0.7f);
}

// out[i]: collectives over the block's warps, integers only.
extern "C" __global__ void collectives(unsigned* out) {
  const unsigned i = threadIdx.x, lane = i & 31;
  unsigned r = __match_any_sync(~0u, lane % 5) * 3u + __reduce_add_sync(~0u, lane) + __reduce_max_sync(~0u, lane ^ 21);
  r += __popc(__activemask()) + __ffs(i) + __clz(i) + __brev(i) + __byte_perm(i, 0x12345678u, 0x4210 + lane);
  int whole; r += __match_all_sync(~0u, 7u, &whole) + whole + __any_sync(~0u, lane == 3) + __all_sync(~0u, lane < 32);
  if (lane < 16) r += __shfl_sync(0xffffu, i, lane ^ 5, 16); else r += __ballot_sync(0xffff0000u, i & 1);
  r += __syncthreads_count(i % 3 == 0) + 10 * __syncthreads_or(i == 70) + 20 * __syncthreads_and(i < 1000);
  r += __dp4a((int)(i * 0x01030507u), 0x11223344, 5) + __funnelshift_l(i, ~i, 7) + __umulhi(i * 77777777u, 99999999u);
  switch (lane) { case 0: r ^= 3; break; case 1: r += 5; break; case 2: r *= 7; break; case 3: r -= 11; break; case 4: r ^= 1000; break; case 5: r *= 3; break; case 6: r += r >> 3; break; case 7: r = ~r; break; }
  out[i] = r;
}
