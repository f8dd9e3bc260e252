// Columns of a table by index (src/ops/embed/columns.rs): y = scale·table[:, ids]ᵀ and the table's gradient. Neighbours
// of a column lie a whole row apart, so each is an access of its own; what is written or read beside them is in runs.
#include "common/ids.cuh"

static const u32 N = 4;

// A thread writes 16 bytes of y, n elements of rank a token. Ids outside the table give zeros.
extern "C" __global__ void __launch_bounds__(256) embed_cols(float* y, const int* ids, const float* table, u32 low,
                                                             u32 high, u32 rank, u32 columns, float scale) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    size_t token = i / rank;
    u32 r = (u32)(i - token * rank), id = (u32)ids[token];  // a negative id is a large number, beyond every table
    float v[N];
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        if (k > 0 && k < count && ++r == rank) {
            r = 0;
            id = (u32)ids[++token];
        }
        v[k] = k < count && id < columns ? scale * table[(size_t)r * columns + id] : 0.0f;
    }
    store_some(y + i, v, count, true);
}

// dw[:, v] += scale·Σ dy[n] over the n with ids[n] = v, in ascending order. A block for each token, and strip of the rank
// by blockIdx.z.
extern "C" __global__ void __launch_bounds__(ID_THREADS) embed_cols_dw(float* dw, const int* ids, const float* dy,
                                                                       u32 tokens, u32 rank, u32 columns, float scale) {
    u32 token = block_number();
    if (token >= tokens) return;
    u32 id = (u32)ids[token];
    if (id >= columns) return;  // negative ones too
    u32 r = (blockIdx.z * ID_THREADS + threadIdx.x) * N;
    float sum[N];
    if (!sum_of_id(sum, ids, dy, tokens, token, r, rank)) return;
#pragma unroll
    for (u32 k = 0; k < N; k++)
        if (r + k < rank) dw[(size_t)(r + k) * columns + id] += scale * sum[k];
}
