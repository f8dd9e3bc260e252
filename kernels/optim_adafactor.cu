// Adafactor for all tensors of a flat stretch, in six launches (src/ops/optim/adafactor.rs has the equations and what
// `hyper` and the table hold): sums of rows, of columns; r, c and the mean of r; squares of updates by rows; step
// lengths; update. A warp takes a row, eight threads a column; who takes one finds its tensor in the table.
#include "common/clip.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

static const u32 THREADS = 256;
static const u32 WARPS = THREADS / 32;
// Columns of a block.
static const u32 COLS = 32;
// Elements of a thread in the update: 16 bytes.
static const u32 N = 4;

// A row of the table.
struct Tensor {
    u32 start, rows, cols, first_r, first_c;
};

// What every kernel is given. The outputs may be the inputs. `work` holds sums of rows, then of columns (from
// `at_cols`), then the mean of r (from `at_means`) and the step length (from `at_steps`) of each tensor.
#define OPERANDS                                                                                                      \
    float *p_out, float *r_out, float *c_out, const float *p, const float *g, const float *r, const float *c,         \
        float *work, const Tensor *table, const float *sumsq, const float *hyper, u32 low, u32 high, u32 tensors,     \
        u32 rows, u32 cols, u32 at_cols, u32 at_means, u32 at_steps

// The last tensor whose `key` is not above `index`.
__device__ __forceinline__ u32 tensor_of(const Tensor* table, u32 tensors, u32 Tensor::*key, u32 index) {
    u32 first = 0, end = tensors;
    while (end - first > 1) {
        u32 middle = (first + end) / 2;
        if (table[middle].*key <= index) first = middle;
        else end = middle;
    }
    return first;
}

extern "C" __global__ void __launch_bounds__(THREADS) row_sums(OPERANDS) {
    u32 i = block_number() * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= rows) return;
    Tensor t = table[tensor_of(table, tensors, &Tensor::first_r, i)];
    const float* row = g + t.start + (size_t)(i - t.first_r) * t.cols;
    float clip = clip_factor(*sumsq, hyper[7]), sum = 0.0f;
    for (u32 j = lane; j < t.cols; j += 32) {
        float d = clip * row[j];
        sum += d * d;
    }
    sum = warp_sum(sum);
    if (lane == 0) work[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) col_sums(OPERANDS) {
    __shared__ float smem[THREADS];
    // Neighbours take neighbouring columns.
    u32 j = block_number() * COLS + threadIdx.x % COLS, lane = threadIdx.x / COLS;
    float sum = 0.0f;
    if (j < cols) {
        Tensor t = table[tensor_of(table, tensors, &Tensor::first_c, j)];
        const float* col = g + t.start + (j - t.first_c);
        float clip = clip_factor(*sumsq, hyper[7]);
        for (u32 i = lane; i < t.rows; i += THREADS / COLS) {
            float d = clip * col[(size_t)i * t.cols];
            sum += d * d;
        }
    }
    smem[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && j < cols) {
        for (u32 other = 1; other < THREADS / COLS; other++) sum += smem[other * COLS + threadIdx.x];
        work[at_cols + j] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) factors(OPERANDS) {
    __shared__ float smem[32];
    u32 k = block_number();
    if (k >= tensors) return;
    Tensor t = table[k];
    bool skip = skipped(*sumsq);
    float rate = hyper[1], eps = hyper[2], sum = 0.0f;
    for (u32 i = t.first_r + threadIdx.x; i < t.first_r + t.rows; i += THREADS) {
        float old = r[i], now = skip ? old : old + rate * (work[i] / (float)t.cols + eps - old);
        r_out[i] = now;
        sum += now;
    }
    for (u32 j = t.first_c + threadIdx.x; j < t.first_c + t.cols; j += THREADS) {
        float old = c[j];
        c_out[j] = skip ? old : old + rate * (work[at_cols + j] / (float)t.rows + eps - old);
    }
    sum = block_sum(sum, smem);
    if (threadIdx.x == 0) work[at_means + k] = sum / (float)t.rows;
}

extern "C" __global__ void __launch_bounds__(THREADS) row_updates(OPERANDS) {
    u32 i = block_number() * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= rows) return;
    u32 k = tensor_of(table, tensors, &Tensor::first_r, i);
    Tensor t = table[k];
    const float* row = g + t.start + (size_t)(i - t.first_r) * t.cols;
    float clip = clip_factor(*sumsq, hyper[7]), sum = 0.0f;
    float by_row = 1.0f / sqrtf(r_out[i] / work[at_means + k]);
    for (u32 j = lane; j < t.cols; j += 32) {
        float u = clip * row[j] * (by_row * (1.0f / sqrtf(c_out[t.first_c + j])));
        sum += u * u;
    }
    sum = warp_sum(sum);
    if (lane == 0) work[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) step_lengths(OPERANDS) {
    __shared__ float smem[32];
    u32 k = block_number();
    if (k >= tensors) return;
    Tensor t = table[k];
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < t.rows; i += THREADS) sum += work[t.first_r + i];
    sum = block_sum(sum, smem);
    float rms = sqrtf(sum / ((float)t.rows * (float)t.cols));
    if (threadIdx.x == 0) work[at_steps + k] = hyper[0] / fmaxf(rms / hyper[3], 1.0f);
}

// Element by element, whatever the rows: what lies between tensors stays as it is. A tensor begins on a multiple of N.
extern "C" __global__ void __launch_bounds__(THREADS) update(OPERANDS) {
    size_t n = length(low, high), at = thread_number() * N;
    u32 count = left(at, n, N);
    if (count == 0) return;
    float pi[N], gi[N];
    load_some(pi, p + at, count, true);
    load_some(gi, g + at, count, true);
    u32 k = tensor_of(table, tensors, &Tensor::start, (u32)at);
    Tensor t = table[k];
    u32 within = (u32)at - t.start, size = t.rows * t.cols;
    if (!skipped(*sumsq) && within < size) {
        float clip = clip_factor(*sumsq, hyper[7]), keep = 1.0f - hyper[0] * hyper[4];
        float step = work[at_steps + k], mean = work[at_means + k];
        u32 i = within / t.cols, j = within % t.cols;
#pragma unroll
        for (u32 e = 0; e < N; e++) {
            if (e < count && within + e < size) {
                float by_row = 1.0f / sqrtf(r_out[t.first_r + i] / mean);
                float u = clip * gi[e] * (by_row * (1.0f / sqrtf(c_out[t.first_c + j])));
                pi[e] = pi[e] * keep - step * u;
                if (++j == t.cols) {
                    j = 0;
                    i++;
                }
            }
        }
    }
    store_some(p_out + at, pi, count, true);
}
