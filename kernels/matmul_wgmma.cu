// matmul.cu's gradient of a weight by wgmma, for sm_90a and bf16: c[m,n] = alpha·factor·Σ_k a[k,m]·b[k,n] (+ acc[m,n]), k being tokens,
// c and acc f32.
//
// The elements from row to row of a, and n, are multiples of 8.
#include "common/wgmma_gemm.cuh"

// factor may be null: 1. a and b are only what the maps are of.
struct Problem : Job {
    float* c;
    const float *acc, *factor;
    float alpha;
};
#define POINTERS(i) float *c##i, const act *a##i, const act *b##i, const float *acc##i, const float *factor##i
#define MAPS(i) const __grid_constant__ Map map_a##i, const __grid_constant__ Map map_b##i
#define WORDS(i) u32 m##i, u32 n##i, u32 k##i, float alpha##i
#define PROBLEM(i)                                                                                                         \
    Problem { {&map_a##i, &map_b##i, nullptr, nullptr, m##i, n##i, k##i, 0}, c##i, acc##i, factor##i, alpha##i }

WGMMA_KERNEL matmul_wgmma(THREE(POINTERS), THREE(MAPS), THREE(WORDS), u32 tiles0, u32 tiles1) {
    extern __shared__ __align__(1024) u8 smem[];
    auto find = [&](u32 number) {
        Turn mine = turn(number, tiles0, tiles1);
        return Tile<Problem>(mine.pick(THREE(PROBLEM)), mine.block);
    };
    auto low = [](const Problem&, u32, u32, float&, float&) {};
    products<false, false>(smem, find, low, [](const Problem& p, u32 i, u32 j, float& v, float& w) {
        float f = p.factor != nullptr ? p.alpha * *p.factor : p.alpha;
        v *= f, w *= f;
        size_t at = (size_t)i * p.n + j;
        if (p.acc != nullptr) add_pair(p.acc + at, v, w);
        store_pair(p.c + at, v, w);
    });
}
