// Root-mean-square normalization and its gradients (src/ops/norm.rs has the equations). A team of threads takes a row:
// a warp, or the whole block for long rows. A row of aligned length that fits stays in the team's registers between the
// pass that sums and the pass that writes, so that memory is read once; others are read twice, element by element.
#include "common/columns.cuh"
#include "common/team.cuh"

// y = x·rstd·(offset + w), rstd = 1/√(mean(x²) + eps)
extern "C" __global__ void __launch_bounds__(512) rms_norm(act* y, float* rstd, const act* x, const float* w, u32 rows,
                                                            u32 cols, u32 size, float eps, float offset) {
    __shared__ float smem[32];
    Team team = team_of(size, smem);
    if (team.row >= rows) return;  // whole teams; a team that is a block has a row
    x += (size_t)team.row * cols;
    y += (size_t)team.row * cols;
    float squares = 0.0f;
    if (fits(cols, size)) {
        uint4 kept[RUNS];
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            kept[r] = make_uint4(0, 0, 0, 0);
            if (i < cols) kept[r] = *(const uint4*)(x + i);
        }
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            float v[N];
            widen(v, kept[r]);
#pragma unroll
            for (u32 k = 0; k < N; k++) squares += v[k] * v[k];
        }
        float s = 1.0f / sqrtf(team.sum(squares) / (float)cols + eps);
        if (team.lane == 0) rstd[team.row] = s;
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            if (i < cols) {
                float v[N], g[N];
                widen(v, kept[r]);
                load(g, w + i);
#pragma unroll
                for (u32 k = 0; k < N; k++) v[k] = v[k] * s * (offset + g[k]);
                store(y + i, v);
            }
        }
    } else {
        for (u32 i = team.lane; i < cols; i += size) {
            float v = to_f32(x[i]);
            squares += v * v;
        }
        float s = 1.0f / sqrtf(team.sum(squares) / (float)cols + eps);
        if (team.lane == 0) rstd[team.row] = s;
        for (u32 i = team.lane; i < cols; i += size) y[i] = from_f32<act>(to_f32(x[i]) * s * (offset + w[i]));
    }
}

// dx = rstd·(g − x·rstd²·mean(g·x)) (+ acc), g = dy·(offset + w). dx may be dy or acc: a thread reads an element of them
// for the last time before it writes that element.
extern "C" __global__ void __launch_bounds__(512) rms_norm_dx(act* dx, const act* dy, const act* x, const float* w,
                                                               const float* rstd, const act* acc, u32 rows, u32 cols,
                                                               u32 size, float offset) {
    __shared__ float smem[32];
    Team team = team_of(size, smem);
    if (team.row >= rows) return;
    size_t at = (size_t)team.row * cols;
    float s = rstd[team.row], along = 0.0f;
    if (fits(cols, size)) {
        uint4 kept_x[RUNS], kept_dy[RUNS];
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            kept_x[r] = kept_dy[r] = make_uint4(0, 0, 0, 0);
            if (i < cols) {
                kept_x[r] = *(const uint4*)(x + at + i);
                kept_dy[r] = *(const uint4*)(dy + at + i);
            }
        }
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            if (i < cols) {
                float v[N], d[N], g[N];
                widen(v, kept_x[r]);
                widen(d, kept_dy[r]);
                load(g, w + i);
#pragma unroll
                for (u32 k = 0; k < N; k++) along += d[k] * (offset + g[k]) * v[k];
            }
        }
        along = team.sum(along) / (float)cols * s * s;
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            if (i < cols) {
                float v[N], d[N], g[N], before[N] = {};
                widen(v, kept_x[r]);
                widen(d, kept_dy[r]);
                load(g, w + i);
                if (acc) load(before, acc + at + i);
#pragma unroll
                for (u32 k = 0; k < N; k++) v[k] = s * (d[k] * (offset + g[k]) - v[k] * along) + before[k];
                store(dx + at + i, v);
            }
        }
    } else {
        for (u32 i = team.lane; i < cols; i += size) along += to_f32(dy[at + i]) * (offset + w[i]) * to_f32(x[at + i]);
        along = team.sum(along) / (float)cols * s * s;
        for (u32 i = team.lane; i < cols; i += size) {
            float before = acc ? to_f32(acc[at + i]) : 0.0f;
            float g = to_f32(dy[at + i]) * (offset + w[i]);
            dx[at + i] = from_f32<act>(s * (g - to_f32(x[at + i]) * along) + before);
        }
    }
}

// dw[c] = Σ_r dy·x·rstd: the sums over blocks of `each` rows, then over the blocks (+ acc).
extern "C" __global__ void __launch_bounds__(256) rms_norm_dw(float* partial, const act* dy, const act* x,
                                                              const float* rstd, u32 rows, u32 cols, u32 each) {
    column_partials<N>(partial, rows, cols, each, [&](float (&v)[N], u32 row, u32 col, u32 count, bool aligned) {
        size_t at = (size_t)row * cols + col;
        float d[N], s = rstd[row];
        load_some(d, dy + at, count, aligned);
        load_some(v, x + at, count, aligned);
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = d[k] * (v[k] * s);
    });
}
extern "C" __global__ void __launch_bounds__(256) rms_norm_dw_sum(float* dw, const float* partial, const float* acc,
                                                                  u32 blocks, u32 cols) {
    column_totals(dw, partial, acc, blocks, cols, 1.0f);
}
