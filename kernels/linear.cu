// y[T,N] = x[T,K]·W[N,K]ᵀ (+ bias[N]) (+ acc[T,N]) (+ scale·xa[T,R]·B[N,R]ᵀ), W decoded on its way to the arithmetic; xa = dropout(x)·Aᵀ
// was computed before (kernels/matmul.cu).
//
// The low-rank part comes first: R/BK steps of the same tile, whose sums are then scaled, and the steps over K add to
// them. So it costs R/K of the product, and y is written once.
#include "common/gemm.cuh"
#include "common/wide.cuh"

// ldy: elements from row to row of y. begin: the first of the tiles that are a launch's, if it is a part of a product.
struct Problem {
    Out* y;
    const act* x;
    Weight weight;
    const float* bias;
    const act* acc;
    const act* xa;
    const float* lb;
    u32 t, n, k, r, ldy;
    float scale;
    u32 begin;
};
#define POINTERS(i)                                                                                                \
    Out *y##i, const act *x##i, const void *w##i, const void *absmax##i, const float *nested##i,                   \
        const float *offset##i, const float *bias##i, const act *acc##i, const act *xa##i, const float *lb##i
#define WORDS(i) u32 t##i, u32 n##i, u32 k##i, u32 r##i, u32 ldy##i, float scale##i, u32 begin##i
#define PROBLEM(i)                                                                                                 \
    Problem { y##i, x##i, {w##i, absmax##i, nested##i, offset##i}, bias##i, acc##i, xa##i, lb##i, t##i, n##i, k##i, r##i,  \
              ldy##i, scale##i, begin##i }

GEMM_KERNEL linear(THREE(POINTERS), THREE(WORDS), u32 blocks0, u32 blocks1) {
    extern __shared__ __align__(16) u8 smem[];
    Turn mine = turn(block_number(), blocks0, blocks1);
    const Problem p = mine.pick(THREE(PROBLEM));
    Place at = place<BM, BN>(p.t, p.n, p.begin + mine.block);
    if (at.none) return;
    WEIGHT_ROWS(right, p.weight, p.n, p.k);
    Sums sums;
    clear(sums);
    if (p.r > 0) {
        Rows<act> xa(p.xa, p.t, p.r, p.r);
        Rows<float> lb(p.lb, p.n, p.r, p.r);
        accumulate<true, true>(sums, smem, xa, lb, at.m, at.n, 0, p.r);
        each(sums, [&](u32, u32, float& v, float& w) { v *= p.scale, w *= p.scale; });
    }
    accumulate<true, true>(sums, smem, Rows<act>(p.x, p.t, p.k, p.k), right, at.m, at.n, 0, p.k);
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i >= p.t) return;
        if (p.bias != nullptr) {
            if (j < p.n) v += p.bias[j];
            if (j + 1 < p.n) w += p.bias[j + 1];
        }
        if (p.acc != nullptr) {
            const act* from = p.acc + (size_t)i * p.n;
            if (j < p.n) v += to_f32(from[j]);
            if (j + 1 < p.n) w += to_f32(from[j + 1]);
        }
        Out* row = p.y + (size_t)i * p.ldy;
        if (p.ldy % 2 == 0 && j + 1 < p.n) {
            store2(row, j, p.ldy, v, w);
        } else {
            if (j < p.n) row[j] = from_f32<Out>(v);
            if (j + 1 < p.n) row[j + 1] = from_f32<Out>(w);
        }
    });
}
