// linear_dx.cu's product by wgmma, for sm_90a and bf16: dx[T,K] = factor·(dy[T,N]·W[N,K] + mask∘(dyb[T,R]·A[R,K])).
//
// K and the elements from row to row of dy are multiples of 8.
#include "common/philox.cuh"
#include "common/wgmma_gemm.cuh"

// rng and factor may be null: nothing is dropped, 1. dy and w are only what the maps are of.
struct Problem : Job {
    act* dx;
    const u32* rng;
    const float* factor;
    u32 site, threshold;
    float keep_scale;
};
#define POINTERS(i)                                                                                                \
    act *dx##i, const act *dy##i, const bf16 *w##i, const act *dyb##i, const float *la##i, const u32 *rng##i,      \
        const float *factor##i
#define MAPS(i) const __grid_constant__ Map map_dy##i, const __grid_constant__ Map map_w##i
#define WORDS(i) u32 t##i, u32 n##i, u32 k##i, u32 r##i, u32 site##i, u32 threshold##i, float keep_scale##i
#define PROBLEM(i)                                                                                                 \
    Problem { {&map_dy##i, &map_w##i, dyb##i, la##i, t##i, k##i, n##i, r##i}, dx##i, rng##i, factor##i, site##i,   \
              threshold##i, keep_scale##i }

WGMMA_KERNEL linear_dx_wgmma(THREE(POINTERS), THREE(MAPS), THREE(WORDS), u32 tiles0, u32 tiles1) {
    extern __shared__ __align__(1024) u8 smem[];
    auto find = [&](u32 number) {
        Turn mine = turn(number, tiles0, tiles1);
        return Tile<Problem>(mine.pick(THREE(PROBLEM)), mine.block);
    };
    auto low = [](const Problem& p, u32 i, u32 j, float& v, float& w) {
        if (p.rng == nullptr) return;
        dropout(p.rng, p.site, p.threshold, p.keep_scale).even_pair((size_t)i * p.n + j, v, w);
    };
    products<true, false>(smem, find, low, [](const Problem& p, u32 i, u32 j, float& v, float& w) {
        float f = p.factor != nullptr ? *p.factor : 1.0f;
        store_pair(p.dx + (size_t)i * p.n + j, v * f, w * f);
    });
}
