// A factor for each column, the same in all rows (src/ops/row_factor.rs): x∘v, x/v, and the gradient of v.
#include "common/columns.cuh"
#include "common/row.cuh"

static const u32 N = Lanes<act>::N;

extern "C" __global__ void __launch_bounds__(256) mul_row(act* y, const act* x, const float* v, u32 rows, u32 cols,
                                                          u32 each) {
    with_row<N>(y, x, v, rows, cols, each, [](float x, float v) { return x * v; });
}

extern "C" __global__ void __launch_bounds__(256) div_row(act* y, const act* x, const float* v, u32 rows, u32 cols,
                                                          u32 each) {
    with_row<N>(y, x, v, rows, cols, each, [](float x, float v) { return x / v; });
}

// dv = Σ_t dy∘x (+ acc).
extern "C" __global__ void __launch_bounds__(256) mul_row_dv(float* partial, const act* dy, const act* x, u32 rows,
                                                             u32 cols, u32 each) {
    column_partials<N>(partial, rows, cols, each, [&](float (&v)[N], u32 row, u32 col, u32 count, bool aligned) {
        size_t at = (size_t)row * cols + col;
        float u[N];
        load_some(v, dy + at, count, aligned);
        load_some(u, x + at, count, aligned);
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] *= u[k];
    });
}
extern "C" __global__ void __launch_bounds__(256) mul_row_dv_sum(float* dv, const float* partial, const float* acc,
                                                                 u32 blocks, u32 cols) {
    column_totals(dv, partial, acc, blocks, cols, 1.0f);
}
