// y[T,N] = x[T,K]·W[N,K]ᵀ (+ bias[N]) (+ scale·xa[T,R]·B[N,R]ᵀ), W decoded on its way to the arithmetic; xa = dropout(x)·Aᵀ
// was computed before (kernels/matmul.cu).
//
// The low-rank part comes first: R/BK steps of the same tile, whose sums are then scaled, and the steps over K add to
// them. So it costs R/K of the product, and y is written once.
#include "common/gemm.cuh"
#include "common/reduce.cuh"

// WIDE: y is f32, whatever activations are (logits).
#ifndef WIDE
#define WIDE 0
#endif
#if WIDE
typedef float Out;
#else
typedef act Out;
#endif

// ldy: elements from row to row of y.
GEMM_KERNEL linear(Out* y, const act* x, const void* w, const void* absmax, const float* nested, const float* offset,
                   const float* bias, const act* xa, const float* lb, u32 t, u32 n, u32 k, u32 r, u32 ldy,
                   float scale) {
    extern __shared__ __align__(16) u8 room[];
    Place at = place(t, n);
    if (at.none) return;
    Weight weight = {w, absmax, nested, offset};
    WEIGHT_ROWS(right, weight, n, k);
    Sums sums;
    clear(sums);
    if (r > 0) {
        accumulate<true, true>(sums, room, Rows<act>(xa, t, r, r), Rows<float>(lb, n, r, r), at.m, at.n, 0, r);
        each(sums, [&](u32, u32, float& v, float& w) { v *= scale, w *= scale; });
    }
    accumulate<true, true>(sums, room, Rows<act>(x, t, k, k), right, at.m, at.n, 0, k);
    each(sums, [&](u32 i, u32 j, float& v, float& w) {
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

// Up to this many tokens a warp reads a row of W once, in order, and multiplies all tokens by it: decoding is bound by
// the memory that W lies in.
constexpr int FEW = 8;

// One warp a row of W; TOKENS of the FEW are there.
template <int TOKENS, class S>
__device__ __forceinline__ void few(Out* y, const S& rows, const Rows<act>& tokens, const float* bias, const act* xa,
                                    const float* lb, u32 t, u32 n, u32 k, u32 r, float scale) {
    u32 row = block_number() * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n) return;
    float sums[TOKENS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) sums[i] = 0.0f;
    if (rows.whole && tokens.whole) {
        // Two chunks a turn: twice the bytes under way.
        for (u32 col = lane * CHUNK; col < k; col += 64 * CHUNK) {
            typename S::Raw raw[2];
            rows.fetch(raw[0], row, col);
            rows.fetch(raw[1], row, col + 32 * CHUNK);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 c = col + h * 32 * CHUNK;
                float v[CHUNK];
                rows.values(raw[h], row, c, v);
#pragma unroll
                for (int i = 0; i < TOKENS; i++) {
                    Rows<act>::Raw token;
                    tokens.fetch(token, i, c);
#pragma unroll
                    for (int j = 0; j < CHUNK; j++) sums[i] = fmaf(v[j], element(token, j), sums[i]);
                }
            }
        }
    } else {
        for (u32 col = lane; col < k; col += 32) {
            float v = rows.at(row, col);
#pragma unroll
            for (int i = 0; i < TOKENS; i++)
                if (i < t) sums[i] = fmaf(v, tokens.at(i, col), sums[i]);
        }
    }
    if (r > 0) {
        for (u32 p = lane; p < r; p += 32) {
            float b = scale * lb[(size_t)row * r + p];
#pragma unroll
            for (int i = 0; i < TOKENS; i++)
                if (i < t) sums[i] = fmaf(b, to_f32(xa[i * r + p]), sums[i]);
        }
    }
    float b = bias != nullptr ? bias[row] : 0.0f;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        float sum = warp_sum(sums[i]);
        if (i < t && lane == 0) y[(size_t)i * n + row] = from_f32<Out>(sum + b);
    }
}

// The same for at most FEW tokens.
extern "C" __global__ void __launch_bounds__(128, 6)
    linear_few(Out* y, const act* x, const void* w, const void* absmax, const float* nested, const float* offset,
               const float* bias, const act* xa, const float* lb, u32 t, u32 n, u32 k, u32 r, float scale) {
    Weight weight = {w, absmax, nested, offset};
    WEIGHT_ROWS(rows, weight, n, k);
    Rows<act> tokens(x, t, k, k);
    __syncthreads();  // the tables are there
    if (t == 1) {
        few<1>(y, rows, tokens, bias, xa, lb, t, n, k, r, scale);
    } else if (t <= 4) {
        few<4>(y, rows, tokens, bias, xa, lb, t, n, k, r, scale);
    } else {
        few<FEW>(y, rows, tokens, bias, xa, lb, t, n, k, r, scale);
    }
}
