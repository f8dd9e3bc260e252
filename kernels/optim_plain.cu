// Optimizers with one f32 of state a parameter, or none: SGD and Lion (src/ops/optim/plain.rs has the equations and
// what `hyper` holds). A thread takes 16 bytes of each operand. The outputs may be the inputs.
#include "common/clip.cuh"
#include "common/vector.cuh"

static const u32 N = 4;
static const u32 THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) sgd(float* p_out, const float* p, const float* g,
                                                          const float* sumsq, const float* hyper, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float lr = hyper[0], decay = hyper[4], clip = clip_factor(*sumsq, hyper[7]);
    float pi[N], gi[N];
    load_some(pi, p + i, count, true);
    load_some(gi, g + i, count, true);
    if (!skipped(*sumsq)) {
#pragma unroll
        for (u32 k = 0; k < N; k++) pi[k] -= lr * (clip * gi[k] + decay * pi[k]);
    }
    store_some(p_out + i, pi, count, true);
}

extern "C" __global__ void __launch_bounds__(THREADS) sgd_momentum(float* p_out, float* b_out, const float* p,
                                                                   const float* g, const float* b, const float* sumsq,
                                                                   const float* hyper, u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float lr = hyper[0], momentum = hyper[1], gain = hyper[2], decay = hyper[4];
    bool nesterov = hyper[3] != 0.0f;
    float clip = clip_factor(*sumsq, hyper[7]);
    float pi[N], gi[N], bi[N];
    load_some(pi, p + i, count, true);
    load_some(gi, g + i, count, true);
    load_some(bi, b + i, count, true);
    if (!skipped(*sumsq)) {
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            float d = clip * gi[k] + decay * pi[k];
            bi[k] = momentum * bi[k] + gain * d;
            pi[k] -= lr * (nesterov ? d + momentum * bi[k] : bi[k]);
        }
    }
    store_some(p_out + i, pi, count, true);
    store_some(b_out + i, bi, count, true);
}

extern "C" __global__ void __launch_bounds__(THREADS) lion(float* p_out, float* m_out, const float* p, const float* g,
                                                           const float* m, const float* sumsq, const float* hyper,
                                                           u32 low, u32 high) {
    size_t n = length(low, high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float lr = hyper[0], rate1 = hyper[1], rate2 = hyper[2], keep = 1.0f - lr * hyper[4];
    float clip = clip_factor(*sumsq, hyper[7]);
    float pi[N], gi[N], mi[N];
    load_some(pi, p + i, count, true);
    load_some(gi, g + i, count, true);
    load_some(mi, m + i, count, true);
    if (!skipped(*sumsq)) {
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            float d = clip * gi[k], toward = mi[k] + rate1 * (d - mi[k]);
            float sign = toward > 0.0f ? 1.0f : toward < 0.0f ? -1.0f : 0.0f;
            pi[k] = pi[k] * keep - lr * sign;
            mi[k] += rate2 * (d - mi[k]);
        }
    }
    store_some(p_out + i, pi, count, true);
    store_some(m_out + i, mi, count, true);
}
