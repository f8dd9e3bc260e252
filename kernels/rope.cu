// Rotary position embeddings (src/ops/rope.rs has the equation): in each head, features i and i + half are rotated by the
// angle of the token's position, features from 2·half on pass. A block a token, whose angles its heads share; y may be x:
// a thread alone reads and writes its pairs.
#include "common/batch.cuh"
#include "common/vector.cuh"

// N pairs a thread: 16 bytes of each half where heads are aligned, else one.
template <u32 N>
__device__ __forceinline__ void rotate(act* y, const act* x, const float* angles, u32 heads, u32 head_dim, u32 half,
                                       float sign) {
    u32 pairs = half / N, each = pairs + (head_dim - 2 * half) / N;
    for (u32 item = threadIdx.x; item < heads * each; item += blockDim.x) {
        u32 head = item / each, i = item % each;
        u32 at = head * head_dim + i * N;
        if (i < pairs) {
            float a[N], b[N], c[N], s[N], first[N], second[N];
            load(a, x + at);
            load(b, x + at + half);
            load(c, angles + i * N);
            load(s, angles + half + i * N);
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                s[k] *= sign;
                first[k] = a[k] * c[k] - b[k] * s[k];
                second[k] = b[k] * c[k] + a[k] * s[k];
            }
            store(y + at, first);
            store(y + at + half, second);
        } else {
            float v[N];
            load(v, x + at + half);
            store(y + at + half, v);
        }
    }
}

// `sign` is 1, or -1 backward. Positions outside the table take its nearest row.
struct Problem {
    act* y;
    const act* x;
    const float* table;
    const int* positions;
    u32 tokens, heads, head_dim, half, rows;
    float sign;
};
#define POINTERS(i) act *y##i, const act *x##i, const float *table##i, const int *positions##i
#define WORDS(i) u32 tokens##i, u32 heads##i, u32 head_dim##i, u32 half##i, u32 rows##i, float sign##i
#define PROBLEM(i) \
    Problem { y##i, x##i, table##i, positions##i, tokens##i, heads##i, head_dim##i, half##i, rows##i, sign##i }

extern "C" __global__ void __launch_bounds__(256) rope(THREE(POINTERS), THREE(WORDS), u32 blocks0, u32 blocks1) {
    constexpr u32 N = Lanes<act>::N;
    Turn mine = turn(block_number(), blocks0, blocks1);
    const Problem p = mine.pick(THREE(PROBLEM));
    u32 token = mine.block;
    if (token >= p.tokens) return;
    int position = p.positions[token];
    u32 row = position < 0 ? 0 : (u32)position < p.rows ? (u32)position : p.rows - 1;
    const float* angles = p.table + (size_t)row * 2 * p.half;
    size_t at = (size_t)token * p.heads * p.head_dim;
    if (p.half % N == 0 && p.head_dim % N == 0)
        rotate<N>(p.y + at, p.x + at, angles, p.heads, p.head_dim, p.half, p.sign);
    else
        rotate<1>(p.y + at, p.x + at, angles, p.heads, p.head_dim, p.half, p.sign);
}
