// Losses of logits in memory, and their gradients (src/ops/logit_loss.rs has the equations): a block for each row, or for
// each range of rows and column. What it adds to the loss goes into `losses`, which loss.cu sums. dx may be null; it may be
// x: a thread reads an element of x for the last time before it writes that element.
#include "common/softmax.cuh"

// The cross entropy of the n logits at x, `step` apart; dx = inv·(softmax − onehot). All threads of the block call this.
__device__ __forceinline__ float softmax_loss(float* dx, const float* x, u32 n, size_t step, u32 label,
                                              const float* inv, float* smem) {
    float at_label = x[label * step];
    Softmax softmax = softmax_of(x, n, step, smem);
    if (dx) {
        float inverse = 1.0f / softmax.total, factor = *inv;
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
            float p = expf(x[i * step] - softmax.top) * inverse;
            dx[i * step] = factor * (i == label ? p - 1.0f : p);
        }
    }
    return softmax.top - at_label + logf(softmax.total);
}

extern "C" __global__ void __launch_bounds__(1024) cross_entropy(float* dx, float* losses, const float* x,
                                                                 const int* labels, const float* inv, u32 rows,
                                                                 u32 cols) {
    __shared__ float smem[32];
    u32 row = block_number();
    if (row >= rows) return;
    size_t at = (size_t)row * cols;
    u32 label = (u32)labels[row];  // a negative label is a large number, beyond every column
    float loss = 0.0f;
    if (label < cols) loss = softmax_loss(dx ? dx + at : dx, x + at, cols, 1, label, inv, smem);
    else if (dx)
        for (u32 c = threadIdx.x; c < cols; c += blockDim.x) dx[at + c] = 0.0f;
    if (threadIdx.x == 0) losses[row] = loss;
}

// `pairs` of a range and a column. dx is 0 before.
extern "C" __global__ void __launch_bounds__(1024) range_cross_entropy(float* dx, float* losses, const float* x,
                                                                       const int* ranges, const int* labels,
                                                                       const float* inv, u32 rows, u32 pairs,
                                                                       u32 cols) {
    __shared__ float smem[32];
    u32 pair = block_number();
    if (pair >= pairs) return;
    u32 range = pair / cols;
    int first = ranges[2 * range], end = ranges[2 * range + 1], label = labels[pair];
    bool within = first >= 0 && end > first && end <= (int)rows;
    float loss = 0.0f;
    if (within && label >= 0 && label < end - first) {
        size_t at = (size_t)first * cols + pair % cols;
        loss = softmax_loss(dx ? dx + at : dx, x + at, end - first, cols, label, inv, smem);
    }
    if (threadIdx.x == 0) losses[pair] = loss;
}

// One row: losses = weight·Σ f(x, t), dx = inv·weight·slope. A row of weight 0 is not read.
template <class F>
__device__ __forceinline__ void elements(float* dx, float* losses, const float* x, const float* targets,
                                         const float* weight, const float* inv, u32 rows, u32 cols, F f) {
    __shared__ float smem[32];
    u32 row = block_number();
    if (row >= rows) return;
    size_t at = (size_t)row * cols;
    float w = weight[row], sum = 0.0f, factor = *inv * w;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        float slope = 0.0f;
        if (w != 0.0f) sum += f(x[at + c], targets[at + c], slope);
        if (dx) dx[at + c] = w != 0.0f ? factor * slope : 0.0f;
    }
    sum = block_sum(sum, smem);
    if (threadIdx.x == 0) losses[row] = w * sum;
}

extern "C" __global__ void __launch_bounds__(1024) bce_with_logits(float* dx, float* losses, const float* x,
                                                                   const float* targets, const float* weight,
                                                                   const float* inv, u32 rows, u32 cols) {
    elements(dx, losses, x, targets, weight, inv, rows, cols, [](float x, float t, float& slope) {
        float e = expf(-fabsf(x));
        slope = (x < 0.0f ? e : 1.0f) / (1.0f + e) - t;
        return fmaxf(x, 0.0f) - x * t + log1pf(e);
    });
}

extern "C" __global__ void __launch_bounds__(1024) mse(float* dx, float* losses, const float* x, const float* targets,
                                                       const float* weight, const float* inv, u32 rows, u32 cols) {
    elements(dx, losses, x, targets, weight, inv, rows, cols, [](float x, float t, float& slope) {
        slope = 2.0f * (x - t);
        return (x - t) * (x - t);
    });
}
