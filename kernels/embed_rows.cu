// Rows written by index (src/ops/embed.rs): the gradient of a table, and a cache of keys or values.
#include "common/ids.cuh"

// Four columns a thread: 16-byte accesses.
static const u32 N = 4;
static const u32 THREADS = 256;

// dw[v] += scale·Σ dy[n] over the n with ids[n] = v, in ascending order. A block for each token, and strip of columns by
// blockIdx.z.
extern "C" __global__ void __launch_bounds__(ID_THREADS) embed_dw(float* dw, const int* ids, const float* dy, u32 tokens,
                                                                  u32 cols, u32 rows, float scale) {
    u32 token = block_number();
    if (token >= tokens) return;
    u32 id = (u32)ids[token];
    if (id >= rows) return;  // negative ones too
    u32 col = (blockIdx.z * ID_THREADS + threadIdx.x) * N, count = left(col, cols, N);
    float sum[N];
    if (!sum_of_id(sum, ids, dy, tokens, token, col, cols) || count == 0) return;
    bool aligned = cols % N == 0;
    float before[N];
    float* at = dw + (size_t)id * cols + col;
    load_some(before, at, count, aligned);
#pragma unroll
    for (u32 k = 0; k < N; k++) before[k] += scale * sum[k];
    store_some(at, before, count, aligned);
}

// What later launches write into: n words, a copy of x, or zeros where x is null.
extern "C" __global__ void __launch_bounds__(THREADS) start(float* y, const float* x, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    float v[N];
    load_some(v, x + i, x ? count : 0, true);
    store_some(y + i, v, count, true);
}

template <class T> __device__ __forceinline__ void copy_row(u8* to, const u8* from, u32 bytes) {
    for (u32 i = threadIdx.x; i < bytes / sizeof(T); i += blockDim.x) ((T*)to)[i] = ((const T*)from)[i];
}
// cache[positions[n]] = x[n], rows of `bytes` bytes; positions outside the cache are skipped. A block a row.
extern "C" __global__ void __launch_bounds__(THREADS) cache_write(u8* cache, const u8* x, const int* positions,
                                                                  u32 tokens, u32 rows, u32 bytes) {
    u32 token = block_number();
    if (token >= tokens) return;
    u32 row = (u32)positions[token];
    if (row >= rows) return;
    cache += (size_t)row * bytes;
    x += (size_t)token * bytes;
    if (bytes % 16 == 0) copy_row<uint4>(cache, x, bytes);
    else if (bytes % 4 == 0) copy_row<u32>(cache, x, bytes);
    else copy_row<u16>(cache, x, bytes);
}
