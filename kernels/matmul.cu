// c[m,n] = alpha·op(a)·op(b) (+ acc), op transposing where TA, TB say so (src/ops/matmul.rs), and with DROPOUT
// c = alpha·dropout(a)·bᵀ.
//
// With TA the sum runs over tokens: a and b are activations, c the gradient of a weight and f32. Without, a and c are
// activations and b is a parameter. A gradient that is thin along n is computed as its transpose and `turned` when it is stored,
// so that those of both factors of a low-rank part are one kernel. Products with few tiles and a long sum are split along k over blockIdx.z: `part`
// then takes each split's sums, [splits, m, n], and matmul_sum adds them up in order.
#include "common/gemm.cuh"

#ifndef TA
#define TA 0
#endif
#ifndef TB
#define TB 0
#endif
#ifndef DROPOUT
#define DROPOUT 0
#endif
#if TA
typedef float Out;
typedef act Right;
#else
typedef act Out;
typedef float Right;
#endif

// lda: elements from row to row of a. k_step: what one split sums over. factor: times alpha, if not null. begin: the first of
// the tiles that are a launch's, if it is a part of a product.
struct Problem {
    Out* c;
    const void *a, *b;
    const Out* acc;
    const u32* rng;
    const float* factor;
    float* part;
    u32 m, n, k, lda, k_step;
    float alpha;
    u32 site, threshold;
    float keep_scale;
    u32 turned, begin;
};
#define POINTERS(i)                                                                                                \
    Out *c##i, const void *a##i, const void *b##i, const Out *acc##i, const u32 *rng##i, const float *factor##i,   \
        float *part##i
#define WORDS(i)                                                                                                   \
    u32 m##i, u32 n##i, u32 k##i, u32 lda##i, u32 k_step##i, float alpha##i, u32 site##i, u32 threshold##i,        \
        float keep_scale##i, u32 turned##i, u32 begin##i
#define PROBLEM(i)                                                                                                 \
    Problem { c##i, a##i, b##i, acc##i, rng##i, factor##i, part##i, m##i, n##i, k##i, lda##i, k_step##i, alpha##i, \
              site##i, threshold##i, keep_scale##i, turned##i, begin##i }

GEMM_KERNEL matmul(SIX(POINTERS), SIX(WORDS), u32 blocks0, u32 blocks1, u32 blocks2, u32 blocks3, u32 blocks4) {
    extern __shared__ __align__(16) u8 smem[];
    Turn mine = turn(block_number(), blocks0, blocks1, blocks2, blocks3, blocks4);
    const Problem p = mine.pick(SIX(PROBLEM));
    Place at = place<BM, BN>(p.m, p.n, p.begin + mine.block);
    if (at.none) return;
    u32 first = blockIdx.z * p.k_step, end = min(p.k, first + p.k_step);
    Rows<Right> right(p.b, TB ? p.n : p.k, TB ? p.k : p.n, TB ? p.k : p.n);
    Sums sums;
    clear(sums);
#if DROPOUT
    DroppedRows left(Rows<act>(p.a, p.m, p.k, p.lda), dropout(p.rng, p.site, p.threshold, p.keep_scale));
#else
    Rows<act> left(p.a, TA ? p.k : p.m, TA ? p.m : p.k, p.lda);
#endif
    accumulate<!TA, TB>(sums, smem, left, right, at.m, at.n, first, end);
    if (p.part != nullptr) {
        finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
            i += at.m, j += at.n;
            if (i < p.m) store2(p.part + ((size_t)blockIdx.z * p.m + i) * p.n, j, p.n, v, w);
        });
        return;
    }
    float alpha = p.factor != nullptr ? p.alpha * *p.factor : p.alpha;
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i >= p.m) return;
        v *= alpha, w *= alpha;
#if TA
        if (p.turned != 0) {
            size_t to = (size_t)j * p.m + i;
            if (j < p.n) p.c[to] = p.acc != nullptr ? v + p.acc[to] : v;
            if (j + 1 < p.n) p.c[to + p.m] = p.acc != nullptr ? w + p.acc[to + p.m] : w;
            return;
        }
#endif
        if (p.acc != nullptr) {
            const Out* from = p.acc + (size_t)i * p.n;
            if (j < p.n) v += to_f32(from[j]);
            if (j + 1 < p.n) w += to_f32(from[j + 1]);
        }
        store2(p.c + (size_t)i * p.n, j, p.n, v, w);
    });
}

// c[i] = alpha·Σ_s part[s, i] (+ acc[i]), s in order.
extern "C" __global__ void matmul_sum(Out* c, const float* part, const Out* acc, u32 count_low, u32 count_high,
                                      u32 splits, float alpha) {
    size_t count = (size_t)count_high << 32 | count_low, i = thread_number();
    if (i >= count) return;
    float sum = 0.0f;
    for (u32 s = 0; s < splits; s++) sum += part[s * count + i];
    sum *= alpha;
    if (acc != nullptr) sum += to_f32(acc[i]);
    c[i] = from_f32<Out>(sum);
}
