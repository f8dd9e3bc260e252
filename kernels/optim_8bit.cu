// AdamW and Lion with their state in 8 bits, blocks of 256 (src/ops/optim/eight_bit.rs has the equations and what
// `hyper` holds): a warp a block, eight elements a lane, so that absmax needs no barrier. The outputs may be the inputs.
#include "common/clip.cuh"
#include "common/dynamic.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

static const u32 N = 8;
static const u32 WARPS = 8;
static const u32 THREADS = 32 * WARPS;

// The warp's block of state: eight codes a lane, and absmax.
template <class Map> struct State {
    uint2 codes;
    float absmax;

    // Lane 0 alone reads absmax, since it may write there.
    __device__ __forceinline__ State(const uint2* codes_in, const float* absmax_in, u32 block, u32 lane) {
        codes = codes_in[(size_t)block * 32 + lane];
        absmax = __shfl_sync(0xffffffffu, lane == 0 ? absmax_in[block] : 0.0f, 0);
    }
    __device__ __forceinline__ void decode(float (&x)[N]) const {
#pragma unroll
        for (u32 k = 0; k < N; k++) x[k] = Map::value(((k < 4 ? codes.x : codes.y) >> (8 * (k % 4))) & 255) * absmax;
    }
    __device__ __forceinline__ void encode(const float (&x)[N]) {
        float top = 0.0f;
#pragma unroll
        for (u32 k = 0; k < N; k++) top = fmaxf(top, fabsf(x[k]));
        absmax = warp_max(top);
        // A block of zeros is divided by one.
        float by = absmax > 0.0f ? absmax : 1.0f;
        codes = make_uint2(0, 0);
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            u32 code = dynamic_code<Map>(x[k] / by) << (8 * (k % 4));
            if (k < 4) codes.x |= code;
            else codes.y |= code;
        }
    }
    __device__ __forceinline__ void write(uint2* codes_out, float* absmax_out, u32 block, u32 lane) const {
        codes_out[(size_t)block * 32 + lane] = codes;
        if (lane == 0) absmax_out[block] = absmax;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_8bit(float* p_out, uint2* m_out, float* ma_out, uint2* v_out, float* va_out, const float* p, const float* g,
               const uint2* m, const float* ma, const uint2* v, const float* va, const float* sumsq, const float* hyper,
               u32 blocks) {
    u32 block = block_number() * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (block >= blocks) return;
    size_t i = (size_t)block * 256 + lane * N;
    float lr = hyper[0], rate1 = hyper[1], rate2 = hyper[2], eps = hyper[3];
    float keep = 1.0f - lr * hyper[4], step = lr / hyper[5], root = sqrtf(hyper[6]);
    float clip = clip_factor(*sumsq, hyper[7]);
    State<Signed> first(m, ma, block, lane);
    State<Unsigned> second(v, va, block, lane);
    float pi[N];
    load(pi, p + i);
    if (!skipped(*sumsq)) {
        float gi[N], mi[N], vi[N];
        load(gi, g + i);
        first.decode(mi);
        second.decode(vi);
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            float d = clip * gi[k];
            mi[k] += rate1 * (d - mi[k]);
            vi[k] += rate2 * (d * d - vi[k]);
            pi[k] = pi[k] * keep - step * (mi[k] / (sqrtf(vi[k]) / root + eps));
        }
        first.encode(mi);
        second.encode(vi);
    }
    store(p_out + i, pi);
    first.write(m_out, ma_out, block, lane);
    second.write(v_out, va_out, block, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    lion_8bit(float* p_out, uint2* m_out, float* ma_out, const float* p, const float* g, const uint2* m,
              const float* ma, const float* sumsq, const float* hyper, u32 blocks) {
    u32 block = block_number() * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (block >= blocks) return;
    size_t i = (size_t)block * 256 + lane * N;
    float lr = hyper[0], rate1 = hyper[1], rate2 = hyper[2], keep = 1.0f - lr * hyper[4];
    float clip = clip_factor(*sumsq, hyper[7]);
    State<Signed> state(m, ma, block, lane);
    float pi[N];
    load(pi, p + i);
    if (!skipped(*sumsq)) {
        float gi[N], mi[N];
        load(gi, g + i);
        state.decode(mi);
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            float d = clip * gi[k], toward = mi[k] + rate1 * (d - mi[k]);
            float sign = toward > 0.0f ? 1.0f : toward < 0.0f ? -1.0f : 0.0f;
            pi[k] = pi[k] * keep - lr * sign;
            mi[k] += rate2 * (d - mi[k]);
        }
        state.encode(mi);
    }
    store(p_out + i, pi);
    state.write(m_out, ma_out, block, lane);
}
