// Rows written by index (src/ops/embed.rs): the gradient of a table, and a cache of keys or values.
#include "common/vector.cuh"

// Four columns a thread: 16-byte accesses.
static const u32 N = 4;
static const u32 THREADS = 256;

// dw[v] += scale·Σ dy[n] over the n with ids[n] = v, in ascending order. A block for each token (and strip of columns, by
// blockIdx.z) asks all ids, 256 at a time, which are its token's; the block of the first such token sums their rows, the
// others leave. So each row of dw has one writer, and the order is the tokens'.
extern "C" __global__ void __launch_bounds__(THREADS) embed_dw(float* dw, const int* ids, const float* dy, u32 tokens,
                                                               u32 cols, u32 rows, float scale) {
    __shared__ u32 found[THREADS / 32];  // bit s % 32 of word s / 32: token `base + s` has the id
    u32 token = block_number();
    if (token >= tokens) return;
    u32 id = (u32)ids[token];
    if (id >= rows) return;  // negative ones too
    u32 col = (blockIdx.z * THREADS + threadIdx.x) * N, count = left(col, cols, N);
    bool aligned = cols % N == 0;
    float sum[N] = {};
    for (u32 base = 0; base < tokens; base += THREADS) {
        u32 s = base + threadIdx.x;
        u32 same = __ballot_sync(0xffffffffu, s < tokens && (u32)ids[s < tokens ? s : 0] == id);
        __syncthreads();  // whoever still reads the last chunk's
        if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = same;
        __syncthreads();
        for (u32 word = 0; word < THREADS / 32; word++) {
            for (u32 bits = found[word]; bits != 0; bits &= bits - 1) {
                u32 other = base + word * 32 + __ffs((int)bits) - 1;
                if (other < token) return;  // not the first: the whole block sees it
                float v[N];
                load_some(v, dy + (size_t)other * cols + col, count, aligned);
#pragma unroll
                for (u32 k = 0; k < N; k++) sum[k] += v[k];
            }
        }
    }
    if (count == 0) return;
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
