// Rows of a table by index: y = scale·table[ids] (src/ops/embed.rs). A block a token; ids outside the table give zeros.
#include "common/vector.cuh"
#include "common/weight.cuh"

#if W == 1
typedef bf16 Stored;
#elif W == 2
typedef f16 Stored;
#else
typedef float Stored;
#endif

// Four columns a thread: a 16-byte store.
static const u32 N = 4;

extern "C" __global__ void __launch_bounds__(256) embed(float* y, const int* ids, const Stored* table, u32 tokens,
                                                        u32 cols, u32 rows, float scale) {
    u32 token = block_number();
    if (token >= tokens) return;
    u32 id = (u32)ids[token];  // a negative id is a large number, beyond every table
    bool aligned = cols % N == 0, known = id < rows;
    y += (size_t)token * cols;
    table += known ? (size_t)id * cols : 0;
    for (u32 i = threadIdx.x * N; i < cols; i += blockDim.x * N) {
        u32 count = left(i, cols, N);
        float v[N];
        load_some(v, table + i, known ? count : 0, aligned);
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] *= scale;
        store_some(y + i, v, count, aligned);
    }
}
