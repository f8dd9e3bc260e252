// Element by element (src/ops/elementwise.rs has the equations): a + b, x·s, act(x), act(gate)·up and their gradients,
// dropout, and a row added to all rows, or summed over them. A thread takes 16 bytes of each operand and reads them before it writes its
// results, so that an output may be an input. Lengths come as two words.
#include "common/columns.cuh"
#include "common/philox.cuh"
#include "common/row.cuh"

static const u32 N = Lanes<act>::N;

// The first of this thread's elements, and how many of n there are.
#define THIS_RUN(i, count)                      \
    size_t n = length(low, high);               \
    size_t i = thread_number() * N;             \
    u32 count = left(i, n, N);                  \
    if (count == 0) return;

extern "C" __global__ void __launch_bounds__(256) add(act* y, const act* a, const act* b, u32 low, u32 high) {
    THIS_RUN(i, count)
    float u[N], v[N];
    load_some(u, a + i, count, true);
    load_some(v, b + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) u[k] += v[k];
    store_some(y + i, u, count, true);
}

extern "C" __global__ void __launch_bounds__(256) scale(act* y, const act* x, const float* s, u32 low, u32 high) {
    THIS_RUN(i, count)
    float v[N], factor = *s;
    load_some(v, x + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) v[k] *= factor;
    store_some(y + i, v, count, true);
}

// Which activation, as the lowering numbers them: SiLU, GELU by its tanh approximation, GELU by erf, ReLU, tanh,
// x·σ(1.702 x).
static const u32 SILU = 0, GELU_TANH = 1, GELU = 2, RELU = 3, TANH = 4;

// act(x), and act'(x) into `slope`. `kind` is the same for all threads.
__device__ __forceinline__ float activate(u32 kind, float x, float& slope) {
    if (kind == SILU) {
        float s = 1.0f / (1.0f + expf(-x));
        slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    if (kind == GELU_TANH) {
        const float c = 0.7978845608028654f;  // √(2/π)
        // tanh is ±1 in f32 beyond 10, where the cube might overflow.
        float t = tanhf(fminf(fmaxf(c * (x + 0.044715f * x * x * x), -10.0f), 10.0f));
        slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * 0.044715f * x * x);
        return 0.5f * x * (1.0f + t);
    }
    if (kind == GELU) {
        float phi = 0.5f * (1.0f + erff(x * 0.7071067811865476f));
        slope = phi + x * 0.3989422804014327f * expf(-0.5f * x * x);
        return x * phi;
    }
    if (kind == RELU) {
        slope = x <= 0.0f ? 0.0f : 1.0f;
        return x < 0.0f ? 0.0f : x;
    }
    if (kind == TANH) {
        float t = tanhf(x);
        slope = 1.0f - t * t;
        return t;
    }
    float s = 1.0f / (1.0f + expf(-1.702f * x));
    slope = s * (1.0f + 1.702f * x * (1.0f - s));
    return x * s;
}

extern "C" __global__ void __launch_bounds__(256) activation(act* y, const act* x, u32 low, u32 high, u32 kind) {
    THIS_RUN(i, count)
    float v[N], slope;
    load_some(v, x + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) v[k] = activate(kind, v[k], slope);
    store_some(y + i, v, count, true);
}

// dx = dy·act'(x).
extern "C" __global__ void __launch_bounds__(256) activation_bwd(act* dx, const act* dy, const act* x, u32 low,
                                                                 u32 high, u32 kind) {
    THIS_RUN(i, count)
    float d[N], v[N];
    load_some(d, dy + i, count, true);
    load_some(v, x + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        float slope;
        activate(kind, v[k], slope);
        d[k] *= slope;
    }
    store_some(dx + i, d, count, true);
}

// h = act(gate)·up.
extern "C" __global__ void __launch_bounds__(256) gated_act(act* h, const act* gate, const act* up, u32 low, u32 high,
                                                            u32 kind) {
    THIS_RUN(i, count)
    float g[N], u[N], slope;
    load_some(g, gate + i, count, true);
    load_some(u, up + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) g[k] = activate(kind, g[k], slope) * u[k];
    store_some(h + i, g, count, true);
}

// dgate = dh·up·act'(gate), dup = dh·act(gate).
extern "C" __global__ void __launch_bounds__(256) gated_act_bwd(act* dgate, act* dup, const act* dh, const act* gate,
                                                                const act* up, u32 low, u32 high, u32 kind) {
    THIS_RUN(i, count)
    float d[N], g[N], u[N];
    load_some(d, dh + i, count, true);
    load_some(g, gate + i, count, true);
    load_some(u, up + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        float slope, a = activate(kind, g[k], slope);
        g[k] = d[k] * u[k] * slope;
        u[k] = d[k] * a;
    }
    store_some(dgate + i, g, count, true);
    store_some(dup + i, u, count, true);
}

// Runs start on multiples of four, so each four elements take one Philox block.
extern "C" __global__ void __launch_bounds__(256) dropout(act* y, const act* x, const u32* rng, u32 low, u32 high,
                                                          u32 site, u32 threshold, float keep_scale) {
    THIS_RUN(i, count)
    Dropout mask = dropout(rng, site, threshold, keep_scale);
    float v[N];
    load_some(v, x + i, count, true);
#pragma unroll
    for (u32 k = 0; k < N; k += 4) {
        float4 f = mask.factor4(i + k);
        v[k] *= f.x;
        v[k + 1] *= f.y;
        v[k + 2] *= f.z;
        v[k + 3] *= f.w;
    }
    store_some(y + i, v, count, true);
}

// y = x + f·v in each row.
extern "C" __global__ void __launch_bounds__(256) add_row(act* y, const act* x, const float* v, u32 rows, u32 cols,
                                                          u32 each, float factor) {
    with_row<N>(y, x, v, rows, cols, each, [=](float x, float v) { return x + factor * v; });
}

// dv = f·Σ_t dy (+ acc).
extern "C" __global__ void __launch_bounds__(256) add_row_dv(float* partial, const act* dy, u32 rows, u32 cols,
                                                             u32 each) {
    column_partials<N>(partial, rows, cols, each, [&](float (&v)[N], u32 row, u32 col, u32 count, bool aligned) {
        load_some(v, dy + (size_t)row * cols + col, count, aligned);
    });
}
extern "C" __global__ void __launch_bounds__(256) add_row_dv_sum(float* dv, const float* partial, const float* acc,
                                                                 u32 blocks, u32 cols, float factor) {
    column_totals(dv, partial, acc, blocks, cols, factor);
}
