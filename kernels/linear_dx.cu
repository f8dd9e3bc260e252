// The gradient of a linear layer's input: dx[T,K] = factor·(dy[T,N]·W[N,K] + mask∘(dyb[T,R]·A[R,K])), mask being the
// forward pass's dropout factors.
//
// The low-rank part comes first, because the mask is on it only; the steps over N then add to the masked sums. W is
// decoded in the order in which it is stored, and ldmatrix turns it around.
#include "common/gemm.cuh"

// ldy: elements from row to row of dy. rng and factor may be null: nothing is dropped, 1.
GEMM_KERNEL linear_dx(act* dx, const act* dy, const void* w, const void* absmax, const float* nested,
                      const float* offset, const act* dyb, const float* la, const u32* rng, const float* factor, u32 t,
                      u32 n, u32 k, u32 r, u32 ldy, u32 site, u32 threshold, float keep_scale,
                      u32 begin) {
    extern __shared__ __align__(16) u8 smem[];
    Place at = place(t, k, begin);
    if (at.none) return;
    Weight weight = {w, absmax, nested, offset};
    WEIGHT_ROWS(right, weight, n, k);
    Sums sums;
    clear(sums);
    if (r > 0) {
        accumulate<true, false>(sums, smem, Rows<act>(dyb, t, r, r), Rows<float>(la, r, k, k), at.m, at.n, 0, r);
        if (rng != nullptr) {
            Dropout drop = dropout(rng, site, threshold, keep_scale);
            each(sums, [&](u32 i, u32 j, float& v, float& w) {
                drop.pair((size_t)(at.m + i) * k + at.n + j, v, w);
            });
        }
    }
    accumulate<true, false>(sums, smem, Rows<act>(dy, t, n, ldy), right, at.m, at.n, 0, n);
    float f = factor != nullptr ? *factor : 1.0f;
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i < t) store2(dx + (size_t)i * k, j, k, v * f, w * f);
    });
}
