// linear.cu's y for a few tokens: a warp reads a row of W once, in order, and multiplies all tokens by it. Decoding is bound
// by the memory that W lies in, so nothing is read twice and there is no tile.
#include "common/reduce.cuh"
#include "common/source.cuh"
#include "common/wide.cuh"

// Up to this many tokens.
constexpr int FEW = 8;

// One warp a row of W; TOKENS of the FEW are there.
template <int TOKENS, class S>
__device__ __forceinline__ void few(Out* y, const S& rows, const Rows<act>& tokens, const float* bias, const act* acc,
                                    const act* xa, const float* lb, u32 t, u32 n, u32 k, u32 r, float scale) {
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
        if (i < t && lane == 0) {
            size_t at = (size_t)i * n + row;
            y[at] = from_f32<Out>(sum + b + (acc != nullptr ? to_f32(acc[at]) : 0.0f));
        }
    }
}

// Four blocks on a multiprocessor leave a thread the registers for FEW sums and two chunks of a row.
extern "C" __global__ void __launch_bounds__(128, 4)
    linear_few(Out* y, const act* x, const void* w, const void* absmax, const float* nested, const float* offset,
               const float* bias, const act* acc, const act* xa, const float* lb, u32 t, u32 n, u32 k, u32 r, float scale) {
    Weight weight = {w, absmax, nested, offset};
    WEIGHT_ROWS(rows, weight, n, k);
    Rows<act> tokens(x, t, k, k);
    __syncthreads();  // the tables are there
    if (t == 1) {
        few<1>(y, rows, tokens, bias, acc, xa, lb, t, n, k, r, scale);
    } else if (t <= 4) {
        few<4>(y, rows, tokens, bias, acc, xa, lb, t, n, k, r, scale);
    } else {
        few<FEW>(y, rows, tokens, bias, acc, xa, lb, t, n, k, r, scale);
    }
}
