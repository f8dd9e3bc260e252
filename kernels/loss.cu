// The cross entropy of a block of tokens from its logits, which become their own gradient (src/ops/loss.rs).
#include "common/reduce.cuh"

// A block a token: losses[first + row] = logsumexp(logits[row]) − logits[row, label], and logits := p − onehot; 0 where
// the label is not in the vocabulary. Their factor inv comes in where they are multiplied on: in f16 it would push small
// probabilities below the smallest number.
// ld: elements from row to row of logits; those behind the vocabulary become 0.
extern "C" __global__ void __launch_bounds__(1024)
    loss_softmax(act* logits, float* losses, const int* labels, u32 rows, u32 vocabulary, u32 ld, u32 first, u32 grad) {
    __shared__ float room[32];
    u32 row = block_number();
    if (row >= rows) return;
    act* x = logits + (size_t)row * ld;
    int label = labels[first + row];
    if (label < 0 || label >= (int)vocabulary) {
        if (threadIdx.x == 0) losses[first + row] = 0.0f;
        if (grad)
            for (u32 i = threadIdx.x; i < ld; i += blockDim.x) x[i] = from_f32<act>(0.0f);
        return;
    }
    // Maximum and sum in one reading: a sum is rescaled when its maximum rises.
    float most = -INFINITY, sum = 0.0f;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float v = to_f32(x[i]);
        if (v > most) {
            sum = sum * expf(most - v) + 1.0f;
            most = v;
        } else {
            sum += expf(v - most);
        }
    }
    float top = block_max(most, room);
    float total = block_sum(sum == 0.0f ? 0.0f : sum * expf(most - top), room);
    float at_label = to_f32(x[label]);
    __syncthreads();  // every thread has read its logit of the label before one overwrites it
    if (threadIdx.x == 0) losses[first + row] = top - at_label + logf(total);
    if (!grad) return;
    float inverse = 1.0f / total;
    for (u32 i = threadIdx.x; i < ld; i += blockDim.x) {
        float p = i < vocabulary ? expf(to_f32(x[i]) - top) * inverse : 0.0f;
        x[i] = from_f32<act>(i == (u32)label ? p - 1.0f : p);
    }
}

// loss = inv·Σ losses, in an order that the count fixes; one block.
extern "C" __global__ void __launch_bounds__(1024) loss_total(float* loss, const float* losses, const float* inv, u32 count) {
    __shared__ float room[32];
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *loss = sum * *inv;
}
