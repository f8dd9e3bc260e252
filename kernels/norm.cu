// Root-mean-square normalization and its gradients (src/ops/norm.rs has the equations): a block a row.
#include "common/reduce.cuh"

// y = x·rstd·(offset + w), rstd = 1/√(mean(x²) + eps)
extern "C" __global__ void rms_norm(act* y, float* rstd, const act* x, const float* w, u32 rows, u32 cols, float eps,
                                    float offset) {
    __shared__ float room[32];
    u32 row = block_number();
    if (row >= rows) return;
    x += (size_t)row * cols;
    y += (size_t)row * cols;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
        float v = to_f32(x[i]);
        squares += v * v;
    }
    float s = 1.0f / sqrtf(block_sum(squares, room) / (float)cols + eps);
    if (threadIdx.x == 0) rstd[row] = s;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) y[i] = from_f32<act>(to_f32(x[i]) * s * (offset + w[i]));
}
