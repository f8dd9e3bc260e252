// y[T,N] = x[T,K]·W[N,K]ᵀ (+ bias[N]) (+ scale·xa[T,R]·B[N,R]ᵀ), W decoded on its way to the arithmetic; xa = dropout(x)·Aᵀ
// was computed before (kernels/matmul.cu).
//
// The low-rank part comes first: R/BK steps of the same tile, whose sums are then scaled, and the steps over K add to
// them. So it costs R/K of the product, and y is written once.
#include "common/gemm.cuh"
#include "common/wide.cuh"

// ldy: elements from row to row of y.
GEMM_KERNEL linear(Out* y, const act* x, const void* w, const void* absmax, const float* nested, const float* offset,
                   const float* bias, const act* xa, const float* lb, u32 t, u32 n, u32 k, u32 r, u32 ldy,
                   float scale, u32 begin) {
    extern __shared__ __align__(16) u8 smem[];
    Place at = place(t, n, begin);
    if (at.none) return;
    Weight weight = {w, absmax, nested, offset};
    WEIGHT_ROWS(right, weight, n, k);
    Sums sums;
    clear(sums);
    if (r > 0) {
        accumulate<true, true>(sums, smem, Rows<act>(xa, t, r, r), Rows<float>(lb, n, r, r), at.m, at.n, 0, r);
        each(sums, [&](u32, u32, float& v, float& w) { v *= scale, w *= scale; });
    }
    accumulate<true, true>(sums, smem, Rows<act>(x, t, k, k), right, at.m, at.n, 0, k);
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i >= t) return;
        if (bias != nullptr) {
            if (j < n) v += bias[j];
            if (j + 1 < n) w += bias[j + 1];
        }
        Out* row = y + (size_t)i * ldy;
        if (ldy % 2 == 0 && j + 1 < n) {
            store2(row, j, ldy, v, w);
        } else {
            if (j < n) row[j] = from_f32<Out>(v);
            if (j + 1 < n) row[j + 1] = from_f32<Out>(w);
        }
    });
}
