// Layer normalization and its gradients (src/ops/norm/layer.rs has the equations). A team of threads takes a row: a warp,
// or the whole block for long rows. A row of aligned length that fits stays in the team's registers between the passes
// that sum and the one that writes, so that memory is read once; others are read in each pass, element by element.
#include "common/columns.cuh"
#include "common/team.cuh"

// What the deviations d = x − about of a row say of it: by how much the mean is above `about`, and rstd. `about` is the
// mean but for the rounding of its sum, which leaves the variance exact where the mean is large.
__device__ __forceinline__ float above(const Team& team, float deviations, float squares, u32 cols, float eps,
                                       float& rstd) {
    float d = team.sum(deviations) / (float)cols;
    float variance = team.sum(squares) / (float)cols - d * d;
    rstd = 1.0f / sqrtf(fmaxf(variance, 0.0f) + eps);
    return d;
}

// y = (x − mean)·rstd·w + b, rstd = 1/√(var + eps)
extern "C" __global__ void __launch_bounds__(512) layer_norm(act* y, float* mean, float* rstd, const act* x,
                                                              const float* w, const float* b, u32 rows, u32 cols,
                                                              u32 size, float eps) {
    __shared__ float smem[32];
    Team team = team_of(size, smem);
    if (team.row >= rows) return;  // whole teams; a team that is a block has a row
    x += (size_t)team.row * cols;
    y += (size_t)team.row * cols;
    float sum = 0.0f, deviations = 0.0f, squares = 0.0f, about, more, s;
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
            for (u32 k = 0; k < N; k++) sum += v[k];
        }
        about = team.sum(sum) / (float)cols;
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            if ((r * size + team.lane) * N < cols) {
                float v[N];
                widen(v, kept[r]);
#pragma unroll
                for (u32 k = 0; k < N; k++) {
                    float d = v[k] - about;
                    deviations += d;
                    squares += d * d;
                }
            }
        }
        more = above(team, deviations, squares, cols, eps, s);
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            if (i < cols) {
                float v[N], g[N], c[N];
                widen(v, kept[r]);
                load(g, w + i);
                load(c, b + i);
#pragma unroll
                for (u32 k = 0; k < N; k++) v[k] = (v[k] - about - more) * s * g[k] + c[k];
                store(y + i, v);
            }
        }
    } else {
        for (u32 i = team.lane; i < cols; i += size) sum += to_f32(x[i]);
        about = team.sum(sum) / (float)cols;
        for (u32 i = team.lane; i < cols; i += size) {
            float d = to_f32(x[i]) - about;
            deviations += d;
            squares += d * d;
        }
        more = above(team, deviations, squares, cols, eps, s);
        for (u32 i = team.lane; i < cols; i += size)
            y[i] = from_f32<act>((to_f32(x[i]) - about - more) * s * w[i] + b[i]);
    }
    if (team.lane == 0) {
        mean[team.row] = about + more;
        rstd[team.row] = s;
    }
}

// dx = rstd·(g − mean(g) − d·rstd²·mean(g·d)) (+ acc), g = dy·w, d = x − mean. dx may be dy or acc: a thread reads an
// element of them for the last time before it writes that element.
extern "C" __global__ void __launch_bounds__(512) layer_norm_dx(act* dx, const act* dy, const act* x, const float* w,
                                                                 const float* mean, const float* rstd, const act* acc,
                                                                 u32 rows, u32 cols, u32 size) {
    __shared__ float smem[32];
    Team team = team_of(size, smem);
    if (team.row >= rows) return;
    size_t at = (size_t)team.row * cols;
    dx += at;
    dy += at;
    x += at;
    if (acc) acc += at;
    float m = mean[team.row], s = rstd[team.row], all = 0.0f, along = 0.0f;
    if (fits(cols, size)) {
        uint4 kept_x[RUNS], kept_dy[RUNS];
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            kept_x[r] = kept_dy[r] = make_uint4(0, 0, 0, 0);
            if (i < cols) {
                kept_x[r] = *(const uint4*)(x + i);
                kept_dy[r] = *(const uint4*)(dy + i);
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
                for (u32 k = 0; k < N; k++) {
                    all += d[k] * g[k];
                    along += d[k] * g[k] * (v[k] - m);
                }
            }
        }
        all = team.sum(all) / (float)cols;
        along = team.sum(along) / (float)cols * s * s;
#pragma unroll
        for (u32 r = 0; r < RUNS; r++) {
            u32 i = (r * size + team.lane) * N;
            if (i < cols) {
                float v[N], d[N], g[N], before[N] = {};
                widen(v, kept_x[r]);
                widen(d, kept_dy[r]);
                load(g, w + i);
                if (acc) load(before, acc + i);
#pragma unroll
                for (u32 k = 0; k < N; k++) v[k] = s * (d[k] * g[k] - all - (v[k] - m) * along) + before[k];
                store(dx + i, v);
            }
        }
    } else {
        for (u32 i = team.lane; i < cols; i += size) {
            float g = to_f32(dy[i]) * w[i];
            all += g;
            along += g * (to_f32(x[i]) - m);
        }
        all = team.sum(all) / (float)cols;
        along = team.sum(along) / (float)cols * s * s;
        for (u32 i = team.lane; i < cols; i += size) {
            float before = acc ? to_f32(acc[i]) : 0.0f;
            float g = to_f32(dy[i]) * w[i];
            dx[i] = from_f32<act>(s * (g - all - (to_f32(x[i]) - m) * along) + before);
        }
    }
}

// dw[c] = Σ_r dy·(x − mean)·rstd: the sums over blocks of `each` rows, then over the blocks (+ acc).
extern "C" __global__ void __launch_bounds__(256) layer_norm_dw(float* partial, const act* dy, const act* x,
                                                                const float* mean, const float* rstd, u32 rows,
                                                                u32 cols, u32 each) {
    column_partials<N>(partial, rows, cols, each, [&](float (&v)[N], u32 row, u32 col, u32 count, bool aligned) {
        size_t at = (size_t)row * cols + col;
        float d[N], m = mean[row], s = rstd[row];
        load_some(d, dy + at, count, aligned);
        load_some(v, x + at, count, aligned);
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = d[k] * ((v[k] - m) * s);
    });
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_dw_sum(float* dw, const float* partial, const float* acc,
                                                                    u32 blocks, u32 cols) {
    column_totals(dw, partial, acc, blocks, cols, 1.0f);
}
