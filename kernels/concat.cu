// Rows after rows, and rows taken out (src/ops/concat.rs). A thread writes 16 bytes. Lengths come as two words.
#include "common/vector.cuh"

static const u32 N = Lanes<act>::N;

// y = the `at` elements of a, then those of b.
extern "C" __global__ void __launch_bounds__(256) concat_rows(act* y, const act* a, const act* b, u32 low, u32 high,
                                                              u32 at_low, u32 at_high) {
    size_t n = length(low, high), at = length(at_low, at_high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float v[N];
    if (i + count <= at) {
        load_some(v, a + i, count, true);
    } else if (i >= at) {
        load_some(v, b + (i - at), count, at % N == 0);
    } else {
#pragma unroll
        for (u32 k = 0; k < N; k++) v[k] = k >= count ? 0.0f : to_f32(i + k < at ? a[i + k] : b[i + k - at]);
    }
    store_some(y + i, v, count, true);
}

// y = x from element `at` on.
extern "C" __global__ void __launch_bounds__(256) slice_rows(act* y, const act* x, u32 low, u32 high, u32 at_low,
                                                             u32 at_high) {
    size_t n = length(low, high), at = length(at_low, at_high), i = thread_number() * N;
    u32 count = left(i, n, N);
    if (count == 0) return;
    float v[N];
    load_some(v, x + at + i, count, at % N == 0);
    store_some(y + i, v, count, true);
}
