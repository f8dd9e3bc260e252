// Attention, the gradient of the table of biases (src/ops/attention.rs): dbias[r,h] = Σ ds_ts over the queries t and the
// keys s that t sees at the distance of row r. As dp − δ = dout_t·(v_s − out_t), a pair needs no other. A block has a row
// and a head; its warps take queries in turn, lanes take features, and each adds up in order. A launch
// may be a part of the rows, the first of them number `begin`.
#include "common/reduce.cuh"
#include "common/visible.cuh"

constexpr int WARPS = 8;
// Features of a lane: heads have 256 at most.
constexpr int EACH = 8;

// This lane's features of a row of one head; zeros from d on.
__device__ __forceinline__ void features(float (&to)[EACH], const act* row, u32 d) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        u32 f = threadIdx.x % 32 + 32 * i;
        to[i] = f < d ? to_f32(row[f]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    attention_dbias(float* dbias, const act* q, const act* k, const act* v, const int* key_range, const float* bias,
                    const int* q_pos, const act* out, const float* lse, const act* dout, u32 tokens, u32 keys, u32 d,
                    u32 heads, u32 kv_heads, float scale, u32 causal, u32 window, u32 farthest,
                    u32 begin) {
    __shared__ float smem[32];
    u32 row = begin + blockIdx.x, head = blockIdx.y, kv = head / (heads / kv_heads);
    size_t stride = (size_t)heads * d, kv_stride = (size_t)kv_heads * d;
    float of_row = bias[(size_t)row * heads + head], sum = 0.0f;
    for (u32 t = threadIdx.x / 32; t < tokens; t += WARPS) {
        uint2 seen = visible(t, key_range, keys, causal, window);
        // The key at the distance of this row; the outermost rows have all that are farther too.
        int key = (int)seen.x + q_pos[t] + (int)row - (int)farthest, from = seen.x, to = seen.y;
        if (row > 0) from = max(from, key);
        if (row < 2 * farthest) to = min(to, key + 1);
        if (from >= to) continue;
        float of_q[EACH], of_out[EACH], of_dout[EACH], known = lse[(size_t)head * tokens + t];
        size_t at = t * stride + (size_t)head * d;
        features(of_q, q + at, d);
        features(of_out, out + at, d);
        features(of_dout, dout + at, d);
        for (int s = from; s < to; s++) {
            size_t at = s * kv_stride + (size_t)kv * d;
            float of_k[EACH], of_v[EACH], score = 0.0f, slope = 0.0f;
            features(of_k, k + at, d);
            features(of_v, v + at, d);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                score = fmaf(of_q[i], of_k[i], score);
                slope = fmaf(of_dout[i], of_v[i] - of_out[i], slope);
            }
            score = fmaf(warp_sum(score), scale, of_row);
            sum = fmaf(expf(score - known), warp_sum(slope), sum);
        }
    }
    float total = block_sum(threadIdx.x % 32 == 0 ? sum : 0.0f, smem);
    if (threadIdx.x == 0) dbias[(size_t)row * heads + head] = total;
}
