// The norms by which DoRA divides a weight: n_i = √Σ_k (w_ik + s·Σ_r b_ir·a_rk)² (src/ops/dora.rs).
//
// A block takes 16 rows and walks their columns in tiles of 512. For each tile, RANKS rows of A at a time lie in shared
// memory, where both teams of rows read them, and a thread computes 8 rows × 4 columns of s·B·A in registers: two reads of
// 16 bytes that all lanes share (B) and one of its own (A) for 32 multiplications. Meanwhile its part of W is under way,
// and is decoded when the product is there. W is read once, and the sum is never written.
#include "common/reduce.cuh"
#include "common/source.cuh"

static const u32 THREADS = 256;
// Rows of a thread: enough that arithmetic, not shared memory, takes the time.
static const u32 EACH = 8;
// Warps: 2 teams of rows, so that 4096 rows are 256 blocks, by 4 parts of a tile's columns.
static const u32 TEAMS = 2, PARTS = THREADS / 32 / TEAMS;
static const u32 ROWS = TEAMS * EACH, N = 4, COLS = PARTS * 32 * N;
// Rows of A in shared memory: 16 KiB, so that several blocks have room for theirs.
static const u32 RANKS = 8;

static_assert(ACT == 0, "a chunk of a weight is four elements");

struct Shared {
    float4 a[RANKS][COLS / N];
    float4 b[RANKS][ROWS / 4];  // s·b: a rank's 16 rows side by side
    float squares[ROWS][PARTS];
};

// The factors of the product that is added to the weight.
struct LowRank {
    Rows<float> a, b;
    float scale;
};

// Four neighbours of a matrix that is not `whole`, zeros outside.
template <class Source> __device__ __forceinline__ void gather(float (&v)[N], const Source& m, u32 row, u32 col) {
#pragma unroll
    for (u32 k = 0; k < N; k++) v[k] = m.inside(row, col + k) ? m.at(row, col + k) : 0.0f;
}

// sum[e] = this thread's part of Σ_k (w + s·B·A)², row `start` + EACH·team + e, for a weight that is `whole` (then A is,
// too) or not: one loop for both would keep the registers of both.
template <bool WHOLE, class Source>
__device__ __forceinline__ void sum_squares(float (&sum)[EACH], const Source& w, const LowRank& p, Shared& tile,
                                            u32 start) {
    u32 cols = w.cols, rank = p.a.rows;
    u32 team = threadIdx.x / 32 / PARTS, row = start + team * EACH, place = threadIdx.x % (32 * PARTS);
    for (u32 first = 0; first < cols; first += COLS) {
        u32 col = first + place * N;
        typename Source::Raw raw[EACH];
        if (WHOLE) {
#pragma unroll
            for (u32 e = 0; e < EACH; e++) w.fetch(raw[e], row + e, col);
        }
        float low[EACH][N] = {};
        for (u32 base = 0; base < rank; base += RANKS) {
            __syncthreads();  // whoever still reads the last ones
            for (u32 i = threadIdx.x; i < RANKS * (COLS / N); i += THREADS) {
                u32 r = base + i / (COLS / N), k = first + i % (COLS / N) * N;
                float v[N];
                if (WHOLE) {
                    Words<float> words;
                    p.a.fetch(words, r, k);
                    p.a.values(words, r, k, v);
                } else {
                    gather(v, p.a, r, k);
                }
                tile.a[i / (COLS / N)][i % (COLS / N)] = pack(v);
            }
            if (threadIdx.x < RANKS * ROWS) {
                u32 r = threadIdx.x % RANKS, i = threadIdx.x / RANKS;
                bool in = p.b.inside(start + i, base + r);
                ((float*)tile.b[r])[i] = in ? p.scale * p.b.at(start + i, base + r) : 0.0f;
            }
            __syncthreads();
#pragma unroll
            for (u32 r = 0; r < RANKS; r++) {
                float4 x = tile.a[r][place];
#pragma unroll
                for (u32 e = 0; e < EACH; e += 4) {
                    float4 f = tile.b[r][(team * EACH + e) / 4];
                    const float four[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        low[e + i][0] += four[i] * x.x;
                        low[e + i][1] += four[i] * x.y;
                        low[e + i][2] += four[i] * x.z;
                        low[e + i][3] += four[i] * x.w;
                    }
                }
            }
        }
#pragma unroll
        for (u32 e = 0; e < EACH; e++) {
            float v[N];
            if (WHOLE) w.values(raw[e], row + e, col, v);
            else gather(v, w, row + e, col);
            // Outside of the matrix both terms are zero.
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                float x = v[k] + low[e][k];
                sum[e] += x * x;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    dora_norm(float* norms, const void* data, const void* absmax, const float* nested, const float* offset,
              const float* a, const float* b, u32 rows, u32 cols, u32 rank, float factor) {
    __shared__ Shared tile;
    u32 start = block_number() * ROWS;
    if (start >= rows) return;
    Weight weight = {data, absmax, nested, offset};
    WEIGHT_ROWS(w, weight, rows, cols);
    __syncthreads();  // the weight's tables

    LowRank product = {Rows<float>(a, rank, cols, cols), Rows<float>(b, rows, rank, rank), factor};
    float sum[EACH] = {};
    if (w.whole) sum_squares<true>(sum, w, product, tile, start);
    else sum_squares<false>(sum, w, product, tile, start);

    u32 lane = threadIdx.x % 32, part = threadIdx.x / 32 % PARTS, team = threadIdx.x / 32 / PARTS;
#pragma unroll
    for (u32 e = 0; e < EACH; e++) {
        float total = warp_sum(sum[e]);
        if (lane == 0) tile.squares[team * EACH + e][part] = total;
    }
    __syncthreads();
    if (threadIdx.x < ROWS && start + threadIdx.x < rows) {
        float total = 0.0f;
#pragma unroll
        for (u32 p = 0; p < PARTS; p++) total += tile.squares[threadIdx.x][p];
        norms[start + threadIdx.x] = sqrtf(total);
    }
}
