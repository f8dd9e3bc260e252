// 4-bit NormalFloat in bitsandbytes' layout, to the bit what src/quant/nf4.rs makes: blocks of 64 with one absmax each, the
// absmax itself in 8 bits with double quantization, and decoding. Every rounding that bits depend on is spelled out, so that
// no product and sum are fused. Lengths come as two words.
#include "common/batch.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"
#include "common/weight.cuh"

static const u32 THREADS = 256;
// Elements a thread quantizes: a word of codes. Eight threads are a block of 64.
static const u32 EACH = 8;

// What lies between neighbouring levels: half their sum in f32.
__constant__ float NF4_THRESHOLDS[15] = {
    -0.8480963706970215f, -0.6106328964233398f, -0.4599952697753906f, -0.33967941999435425f, -0.23460739850997925f,
    -0.13791173696517944f, -0.045525018125772476f, 0.03979014977812767f, 0.120255246758461f, 0.2035212516784668f,
    0.2920137643814087f, 0.3893125355243683f, 0.5016634464263916f, 0.6427869200706482f, 0.8614784479141235f};

// absmax[b] = max |x|; the code of x is how many thresholds x·(1/absmax) is above. Behind an odd end lies the code of 0.
extern "C" __global__ void __launch_bounds__(THREADS) quantize(u8* codes, float* absmax, const float* x, u32 low,
                                                               u32 high) {
    size_t n = length(low, high), i = thread_number() * EACH;
    u32 count = left(i, n, EACH);  // no thread leaves before the maximum over eight of them
    float v[EACH], largest = 0.0f;
    load_some(v, x + i, count, true);
#pragma unroll
    for (u32 k = 0; k < EACH; k++) largest = fmaxf(largest, fabsf(v[k]));
#pragma unroll
    for (int step = 4; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    if (count == 0) return;
    if (i % 64 == 0) absmax[i / 64] = largest;
    float scale = 1.0f / fmaxf(largest, 1e-38f);
    u32 word = 0;
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        float s = v[k] * scale;
        u32 code = 0;
#pragma unroll
        for (u32 t = 0; t < 15; t++) code += s > NF4_THRESHOLDS[t] ? 1 : 0;
        word |= code << (8 * (k / 2) + (k % 2 == 0 ? 4 : 0));  // the first of two in the high half of a byte
    }
    if (count == EACH) {
        *(u32*)(codes + i / 2) = word;
    } else {
        for (u32 k = 0; k < (count + 1) / 2; k++) codes[i / 2 + k] = (u8)(word >> (8 * k));
    }
}

// The mean of all absmax, as torch sums a contiguous f32 tensor with AVX2 (aten/native/cpu/SumKernel.cpp, cascade sum;
// `torch_sum` in src/quant/nf4.rs): element i of each group of 32 adds to accumulator i. An accumulator adds up 2^power
// groups, such a sum is added to the next level and begins anew, and so on for four levels. Sums of the second level
// (2^(2·power) groups) thus depend on nothing before them: a warp makes one, a lane an accumulator.
extern "C" __global__ void __launch_bounds__(THREADS) mean_units(float* sums, const float* absmax, u32 units, u32 power) {
    u32 unit = block_number() * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, radix = 1u << power;
    if (unit >= units) return;
    const float* x = absmax + (size_t)unit * radix * radix * 32 + lane;
    float second = 0.0f;
    for (u32 c = 0; c < radix; c++) {
        float first = 0.0f;
        for (u32 g = 0; g < radix; g++) first += x[(c * radix + g) * 32];
        second += first;
    }
    sums[unit * 32 + lane] = second;
}

// The rest of the cascade, by one warp: two levels of units, the groups behind the last unit, the values behind the last
// group. offset = sum / blocks.
extern "C" __global__ void __launch_bounds__(32) mean(float* offset, const float* sums, const float* absmax, u32 units,
                                                      u32 power, u32 blocks) {
    u32 lane = threadIdx.x, radix = 1u << power;
    // Below eight values there is one lane of four accumulators, else eight of four.
    u32 lanes = blocks < 8 ? 1 : 8, width = 4 * lanes;
    u32 groups = blocks / width, rows = blocks / lanes, done = units * radix * radix;
    float levels[4] = {};
    for (u32 unit = 0; unit < units; unit++) {
        levels[2] += sums[unit * 32 + lane];
        if ((unit + 1) % radix == 0) {
            levels[3] += levels[2];
            levels[2] = 0.0f;
        }
    }
    if (lane < width) {
        for (u32 g = done; g < groups; g++) {
            levels[0] += absmax[g * width + lane];
            if ((g + 1) % radix == 0) {
                levels[1] += levels[0];
                levels[0] = 0.0f;
            }
        }
    }
    float total = levels[0];
#pragma unroll
    for (u32 level = 1; level < 4; level++) total += levels[level];
    // The first accumulator of a lane takes the rows behind the last group, then the other three.
    float others[3];
#pragma unroll
    for (u32 c = 0; c < 3; c++) others[c] = __shfl_sync(0xffffffffu, total, ((c + 1) * lanes + lane) % 32);
    if (lane < lanes)
        for (u32 r = 4 * groups; r < rows; r++) total += absmax[r * lanes + lane];
#pragma unroll
    for (u32 c = 0; c < 3; c++) total += others[c];
    // Then the values that fill no row, and the lanes in order.
    float sum = 0.0f;
    for (u32 i = rows * lanes; i < blocks; i++) sum += absmax[i];
    for (u32 l = 0; l < lanes; l++) sum += __shfl_sync(0xffffffffu, total, l);
    if (lane == 0) *offset = sum / (float)blocks;
}

// The nearest entry of the dynamic map, the lower of two, to the nearest of 2^16 equidistant values: bitsandbytes' table.
__device__ __forceinline__ u32 index_of(float v, const float* map) {
    v = fminf(fmaxf(v, -1.0f), 1.0f);
    u32 step = (u32)__fadd_rn(__fmul_rn(__fmul_rn(__fadd_rn(v, 1.0f), 0.5f), 65535.0f), 0.5f);
    float value = __fadd_rn(-1.0f, (float)(2 * step) / 65535.0f);
    u32 lo = 0, hi = 255;
    while (lo < hi) {
        u32 mid = (lo + hi) / 2;
        if (__fmul_rn(0.5f, __fadd_rn(map[mid], map[mid + 1])) < value) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

// A block quantizes 256 scales: nested = max |absmax - offset|, index = the map's nearest to (absmax - offset)/nested.
extern "C" __global__ void __launch_bounds__(THREADS) nested_blocks(u8* index, float* nested, const float* offset,
                                                                    const float* absmax, u32 blocks) {
    __shared__ float map[256];
    __shared__ float smem[32];
    u32 block = block_number();
    size_t i = (size_t)block * 256 + threadIdx.x;
    if ((size_t)block * 256 >= blocks) return;
    map[threadIdx.x] = dynamic_value(threadIdx.x);
    float v = i < blocks ? absmax[i] - *offset : 0.0f;
    float largest = block_max(fabsf(v), smem);  // its barriers also publish the map
    if (i < blocks) index[i] = largest > 0.0f ? (u8)index_of(v * (1.0f / largest), map) : 0;
    if (threadIdx.x == 0) nested[block] = largest;
}

// Elements that a block decodes: its 256 threads store 16 bytes at a time, side by side.
static const u32 TILE = 4096;

struct Problem {
    act* y;
    Weight w;
    u32 low, high;
};
#define POINTERS(i) \
    act *y##i, const void *codes##i, const void *absmax##i, const float *nested##i, const float *offset##i
#define WORDS(i) u32 low##i, u32 high##i
#define PROBLEM(i) \
    Problem { y##i, {codes##i, absmax##i, nested##i, offset##i}, low##i, high##i }

// y[i] = level[code]·absmax[i/64], in the type of activations: what products round a weight to as well.
extern "C" __global__ void __launch_bounds__(THREADS) dequantize(THREE(POINTERS), THREE(WORDS), u32 blocks0,
                                                                 u32 blocks1) {
    constexpr u32 N = Lanes<act>::N;
    // In shared memory, where 16 neighbouring words are in 16 banks: lanes with different codes do not wait.
    __shared__ float levels[16];
    __shared__ float scales[TILE / 64];
    Turn mine = turn(block_number(), blocks0, blocks1);
    const Problem p = mine.pick(THREE(PROBLEM));
    const u8* codes = (const u8*)p.w.data;
    size_t n = length(p.low, p.high), first = (size_t)mine.block * TILE;
    if (first >= n) return;
    if (threadIdx.x < 16) levels[threadIdx.x] = NF4_LEVELS[threadIdx.x];
    if (threadIdx.x < TILE / 64 && first + threadIdx.x * 64 < n)
        scales[threadIdx.x] = absmax_of(p.w, first + threadIdx.x * 64);
    __syncthreads();
#pragma unroll
    for (u32 r = 0; r < TILE / (N * THREADS); r++) {
        u32 at = (r * THREADS + threadIdx.x) * N;
        size_t i = first + at;
        u32 count = left(i, n, N);
        if (count == 0) continue;
        u32 pairs = 0;
        if (count == N) {
            pairs = N == 8 ? *(const u32*)(codes + i / 2) : *(const u16*)(codes + i / 2);
        } else {
            for (u32 k = 0; k < (count + 1) / 2; k++) pairs |= (u32)codes[i / 2 + k] << (8 * k);
        }
        float v[N], scale = scales[at / 64];
        // The first of two in the high half of a byte.
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = levels[pairs >> (8 * (k / 2) + (k % 2 == 0 ? 4 : 0)) & 15] * scale;
        store_some(p.y + i, v, count, true);
    }
}
