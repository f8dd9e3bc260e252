// linear.cu's product by wgmma, for sm_90a and bf16:
// y[T,N] = x[T,K]·W[N,K]ᵀ (+ bias[N]) (+ acc[T,N]) (+ scale·xa[T,R]·B[N,R]ᵀ).
//
// K is a multiple of 8; N and ldy are even.
#include "common/wgmma_gemm.cuh"
#include "common/wide.cuh"

// ldy: elements from row to row of y. x and w are only what the maps are of.
struct Problem : Job {
    Out* y;
    const float* bias;
    const act* acc;
    u32 ldy;
    float scale;
};
#define POINTERS(i)                                                                                                \
    Out *y##i, const act *x##i, const bf16 *w##i, const float *bias##i, const act *acc##i, const act *xa##i, const float *lb##i
#define MAPS(i) const __grid_constant__ Map map_x##i, const __grid_constant__ Map map_w##i
#define WORDS(i) u32 t##i, u32 n##i, u32 k##i, u32 r##i, u32 ldy##i, float scale##i
#define PROBLEM(i)                                                                                                 \
    Problem { {&map_x##i, &map_w##i, xa##i, lb##i, t##i, n##i, k##i, r##i}, y##i, bias##i, acc##i, ldy##i, scale##i }

WGMMA_KERNEL linear_wgmma(THREE(POINTERS), THREE(MAPS), THREE(WORDS), u32 tiles0, u32 tiles1) {
    extern __shared__ __align__(1024) u8 smem[];
    auto find = [&](u32 number) {
        Turn mine = turn(number, tiles0, tiles1);
        return Tile<Problem>(mine.pick(THREE(PROBLEM)), mine.block);
    };
    auto low = [](const Problem& p, u32, u32, float& v, float& w) { v *= p.scale, w *= p.scale; };
    products<true, true>(smem, find, low, [](const Problem& p, u32 i, u32 j, float& v, float& w) {
        if (p.bias != nullptr) v += p.bias[j], w += p.bias[j + 1];
        if (p.acc != nullptr) add_pair(p.acc + (size_t)i * p.n + j, v, w);
        store_pair(p.y + (size_t)i * p.ldy + j, v, w);
    });
}
