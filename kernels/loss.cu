// The cross entropy of a block of tokens from its logits, which become their own gradient (src/ops/loss.rs).
#include "common/softmax.cuh"

// Elements of a row that a thread writes at a time.
constexpr int EACH = 4;

// A block a token: losses[first + row] = logsumexp(logits[row]) − logits[row, label], and with `grad` logits := p − onehot
// in the type of activations, in the first bytes of the same row; 0 where the label is not in the vocabulary. The factor
// inv comes in where they are multiplied on: in f16 it would push small probabilities below the smallest number.
// ld: elements from row to row of logits; those behind the vocabulary become 0.
extern "C" __global__ void __launch_bounds__(1024) loss_softmax(float* logits, float* losses, const int* labels, u32 rows,
                                                                u32 vocabulary, u32 ld, u32 first, u32 grad) {
    __shared__ float smem[32];
    u32 row = block_number();
    if (row >= rows) return;
    const float* x = logits + (size_t)row * ld;
    act* y = (act*)(logits + (size_t)row * ld);
    int label = labels[first + row];
    if (label < 0 || label >= (int)vocabulary) {
        if (threadIdx.x == 0) losses[first + row] = 0.0f;
        if (grad)
            for (u32 i = threadIdx.x; i < ld; i += blockDim.x) y[i] = from_f32<act>(0.0f);
        return;
    }
    Softmax softmax = softmax_of(x, vocabulary, 1, smem);
    float top = softmax.top, total = softmax.total;
    if (threadIdx.x == 0) losses[first + row] = top - x[label] + logf(total);
    if (!grad) return;
    float inverse = 1.0f / total, v[EACH];
    for (u32 start = 0; start < ld; start += EACH * blockDim.x) {
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            u32 i = start + j * blockDim.x + threadIdx.x;
            v[j] = i < vocabulary ? expf(x[i] - top) * inverse : 0.0f;
            if (i == (u32)label) v[j] -= 1.0f;
        }
        // What is written lies where this turn or those before it have read.
        __syncthreads();
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            u32 i = start + j * blockDim.x + threadIdx.x;
            if (i < ld) y[i] = from_f32<act>(v[j]);
        }
    }
}

// loss = inv·Σ losses, in an order that the count fixes; one block.
extern "C" __global__ void __launch_bounds__(1024) loss_total(float* loss, const float* losses, const float* inv, u32 count) {
    __shared__ float smem[32];
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum, smem);
    if (threadIdx.x == 0) *loss = sum * *inv;
}
