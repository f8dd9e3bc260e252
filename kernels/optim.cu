// The optimizer (src/ops/optim.rs has the equations): sums of squares in two launches, AdamW with clipping, clearing. All
// operands are f32; a thread takes 16 bytes of each. Lengths come as two words.
#include "common/reduce.cuh"
#include "common/vector.cuh"

static const u32 N = 4;
// Elements of a partial sum, the same on every backend (`PIECE` in src/ops/optim.rs), by 256 threads.
static const u32 PIECE = 8192;
static const u32 THREADS = 256;

// partial[b] = Σ x² over piece b.
extern "C" __global__ void __launch_bounds__(THREADS) partial_sums(float* partial, const float* x, u32 low, u32 high) {
    __shared__ float smem[32];
    size_t n = length(low, high), start = (size_t)block_number() * PIECE;
    if (start >= n) return;
    float sums[N] = {};
#pragma unroll
    for (u32 i = threadIdx.x * N; i < PIECE; i += THREADS * N) {
        float v[N];
        load_some(v, x + start + i, left(start + i, n, N), true);
#pragma unroll
        for (u32 k = 0; k < N; k++) sums[k] += v[k] * v[k];
    }
    float sum = block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), smem);
    if (threadIdx.x == 0) partial[block_number()] = sum;
}
// y = Σ partial (+ acc), in one block. acc may be y, or null.
extern "C" __global__ void __launch_bounds__(1024) sum(float* y, const float* partial, const float* acc, u32 pieces) {
    __shared__ float smem[32];
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < pieces; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, smem);
    if (threadIdx.x == 0) *y = sum + (acc ? *acc : 0.0f);
}

// hyper = [lr, 1-β₁, 1-β₂, eps, weight decay, 1-β₁ᵗ, 1-β₂ᵗ, largest norm (≤ 0: no clipping)]; the outputs may be the
// inputs p, m and v. Where sumsq is not finite nothing changes.
extern "C" __global__ void __launch_bounds__(THREADS) adamw(float* p_out, float* m_out, float* v_out, const float* p,
                                                            const float* g, const float* m, const float* v,
                                                            const float* sumsq, const float* hyper, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float lr = hyper[0], rate1 = hyper[1], rate2 = hyper[2], eps = hyper[3], largest = hyper[7];
    float keep = 1.0f - lr * hyper[4], step = lr / hyper[5], root = sqrtf(hyper[6]);
    float squares = *sumsq;
    bool finite = (__float_as_uint(squares) & 0x7f800000u) != 0x7f800000u;
    float clip = largest > 0.0f ? fminf(largest / (sqrtf(squares) + 1e-6f), 1.0f) : 1.0f;
    float pi[N], gi[N], mi[N], vi[N];
    load_some(pi, p + i, count, true);
    load_some(gi, g + i, count, true);
    load_some(mi, m + i, count, true);
    load_some(vi, v + i, count, true);
    if (finite) {
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            float d = clip * gi[k];
            mi[k] += rate1 * (d - mi[k]);
            vi[k] += rate2 * (d * d - vi[k]);
            pi[k] = pi[k] * keep - step * (mi[k] / (sqrtf(vi[k]) / root + eps));
        }
    }
    store_some(p_out + i, pi, count, true);
    store_some(m_out + i, mi, count, true);
    store_some(v_out + i, vi, count, true);
}

extern "C" __global__ void __launch_bounds__(THREADS) zero(float* y, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    const float nothing[N] = {};
    store_some(y + i, nothing, left(i, n, N), true);
}
