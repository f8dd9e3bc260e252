// Columns of a matrix taken out, and the gradient that puts them back (src/ops/slice.rs). A block a row; a thread takes
// 16 bytes where rows and the slice are aligned.
#include "common/vector.cuh"

static const u32 N = Lanes<act>::N;

// y = `count` columns of x from `start` on. `from` and `to`: the columns of y.
extern "C" __global__ void __launch_bounds__(256) slice_cols(act* y, const act* x, u32 rows, u32 of, u32 start,
                                                             u32 count, u32 from, u32 to) {
    u32 row = block_number();
    if (row >= rows) return;
    x += (size_t)row * of + start;
    y += (size_t)row * count;
    bool whole = count % N == 0, aligned = of % N == 0 && start % N == 0;
    for (u32 i = from + threadIdx.x * N; i < to; i += blockDim.x * N) {
        u32 some = left(i, to, N);
        float v[N];
        load_some(v, x + i, some, aligned);
        store_some(y + i, v, some, whole);
    }
}

// dx = zeros with dy in the columns from `start` on (+ acc, which may be dx). `from` and `to`: the columns of dx that are
// written.
extern "C" __global__ void __launch_bounds__(256) slice_cols_dx(act* dx, const act* dy, const act* acc, u32 rows, u32 of,
                                                                u32 start, u32 count, u32 from, u32 to) {
    u32 row = block_number();
    if (row >= rows) return;
    dx += (size_t)row * of;
    dy += (size_t)row * count;
    if (acc) acc += (size_t)row * of;
    bool whole = of % N == 0 && from % N == 0, aligned = count % N == 0 && (start - from) % N == 0;
    for (u32 i = from + threadIdx.x * N; i < to; i += blockDim.x * N) {
        u32 some = left(i, to, N);
        float v[N], d[N];
        if (acc) {
            load_some(v, acc + i, some, whole);
        } else {
#pragma unroll
            for (u32 k = 0; k < N; k++) v[k] = 0.0f;
        }
        if (aligned && i >= start && i + N <= start + count) {
            load(d, dy + (i - start));
        } else {
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                u32 col = i + k;
                d[k] = k < some && col >= start && col < start + count ? to_f32(dy[col - start]) : 0.0f;
            }
        }
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] += d[k];
        store_some(dx + i, v, some, whole);
    }
}
