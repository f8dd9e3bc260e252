// A row vector that meets each row of a matrix.
#pragma once
#include "vector.cuh"

// y = f(x, v) element by element in each row: a thread keeps its run of v and walks `each` rows, the blocks of one y.
// Blocks over x are runs of columns. y may be x: each run is read before the same thread writes it.
template <u32 N, class T, class F>
__device__ __forceinline__ void with_row(T* y, const T* x, const float* v, u32 rows, u32 cols, u32 each, F f) {
    u32 col = (blockIdx.x * blockDim.x + threadIdx.x) * N, count = left(col, cols, N);
    if (count == 0) return;
    bool aligned = cols % N == 0;
    u32 first = blockIdx.y * each, end = rows - first < each ? rows : first + each;
    float row[N];
    load_some(row, v + col, count, aligned);
    for (u32 t = first; t < end; t++) {
        size_t at = (size_t)t * cols + col;
        float u[N];
        load_some(u, x + at, count, aligned);
#pragma unroll
        for (u32 k = 0; k < N; k++) u[k] = f(u[k], row[k]);
        store_some(y + at, u, count, aligned);
    }
}
