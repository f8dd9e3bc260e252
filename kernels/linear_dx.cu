// The gradient of a linear layer's input: dx[T,K] = factor·(dy[T,N]·W[N,K] + mask∘(dyb[T,R]·A[R,K])), mask being the
// forward pass's dropout factors.
//
// The low-rank part comes first, because the mask is on it only; the steps over N then add to the masked sums. W is
// decoded in the order in which it is stored, and ldmatrix turns it around.
#include "common/gemm.cuh"

// ldy: elements from row to row of dy. rng and factor may be null: nothing is dropped, 1. begin: the first of the tiles that are
// a launch's, if it is a part of a product.
struct Problem {
    act* dx;
    const act* dy;
    Weight weight;
    const act* dyb;
    const float* la;
    const u32* rng;
    const float* factor;
    u32 t, n, k, r, ldy, site, threshold;
    float keep_scale;
    u32 begin;
};
#define POINTERS(i)                                                                                                \
    act *dx##i, const act *dy##i, const void *w##i, const void *absmax##i, const float *nested##i,                 \
        const float *offset##i, const act *dyb##i, const float *la##i, const u32 *rng##i, const float *factor##i
#define WORDS(i)                                                                                                   \
    u32 t##i, u32 n##i, u32 k##i, u32 r##i, u32 ldy##i, u32 site##i, u32 threshold##i, float keep_scale##i, u32 begin##i
#define PROBLEM(i)                                                                                                 \
    Problem { dx##i, dy##i, {w##i, absmax##i, nested##i, offset##i}, dyb##i, la##i, rng##i, factor##i, t##i, n##i, \
              k##i, r##i, ldy##i, site##i, threshold##i, keep_scale##i, begin##i }

// The large tile of f32 has no registers to spare for what the mask needs.
GEMM_KERNEL_OF(TILE == 0 && ACT == 0 ? 1 : RESIDENT) linear_dx(THREE(POINTERS), THREE(WORDS), u32 blocks0, u32 blocks1) {
    extern __shared__ __align__(16) u8 smem[];
    Turn mine = turn(block_number(), blocks0, blocks1);
    const Problem p = mine.pick(THREE(PROBLEM));
    Place at = place<BM, BN>(p.t, p.k, p.begin + mine.block);
    if (at.none) return;
    WEIGHT_ROWS(right, p.weight, p.n, p.k);
    Sums sums;
    clear(sums);
    if (p.r > 0) {
        Rows<act> dyb(p.dyb, p.t, p.r, p.r);
        Rows<float> la(p.la, p.r, p.k, p.k);
        accumulate<true, false>(sums, smem, dyb, la, at.m, at.n, 0, p.r);
        if (p.rng != nullptr) {
            Dropout drop = dropout(p.rng, p.site, p.threshold, p.keep_scale);
            each(sums, [&](u32 i, u32 j, float& v, float& w) {
                drop.pair((size_t)(at.m + i) * p.k + at.n + j, v, w);
            });
        }
    }
    accumulate<true, false>(sums, smem, Rows<act>(p.dy, p.t, p.n, p.ldy), right, at.m, at.n, 0, p.n);
    float f = p.factor != nullptr ? *p.factor : 1.0f;
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i < p.t) store2(p.dx + (size_t)i * p.k, j, p.k, v * f, w * f);
    });
}
