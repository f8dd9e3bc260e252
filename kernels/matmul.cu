// c[m,n] = alpha·op(a)·op(b) (+ acc), op transposing where TA, TB say so (src/ops/matmul.rs), and with DROPOUT
// c = alpha·dropout(a)·bᵀ.
//
// With TA the sum runs over tokens: a and b are activations, c the gradient of a weight and f32. Without, a and c are
// activations and b is a parameter. Products with few tiles and a long sum are split along k over blockIdx.z: `part`
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

// lda: elements from row to row of a. k_step: what one split sums over. factor: times alpha, if not null.
GEMM_KERNEL matmul(Out* c, const void* a, const void* b, const Out* acc, const u32* rng, const float* factor,
                   float* part, u32 m, u32 n, u32 k, u32 lda, u32 k_step, float alpha, u32 site, u32 threshold,
                   float keep_scale, u32 begin) {
    extern __shared__ __align__(16) u8 smem[];
    Place at = place(m, n, begin);
    if (at.none) return;
    u32 k0 = blockIdx.z * k_step, k1 = min(k, k0 + k_step);
    Rows<Right> right(b, TB ? n : k, TB ? k : n, TB ? k : n);
    Sums sums;
    clear(sums);
#if DROPOUT
    DroppedRows left(Rows<act>(a, m, k, lda), dropout(rng, site, threshold, keep_scale));
#else
    Rows<act> left(a, TA ? k : m, TA ? m : k, lda);
#endif
    accumulate<!TA, TB>(sums, smem, left, right, at.m, at.n, k0, k1);
    if (part != nullptr) {
        finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
            i += at.m, j += at.n;
            if (i < m) store2(part + ((size_t)blockIdx.z * m + i) * n, j, n, v, w);
        });
        return;
    }
    if (factor != nullptr) alpha *= *factor;
    finish(sums, smem, [&](u32 i, u32 j, float& v, float& w) {
        i += at.m, j += at.n;
        if (i >= m) return;
        v *= alpha, w *= alpha;
        if (acc != nullptr) {
            const Out* from = acc + (size_t)i * n;
            if (j < n) v += to_f32(from[j]);
            if (j + 1 < n) w += to_f32(from[j + 1]);
        }
        store2(c + (size_t)i * n, j, n, v, w);
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
