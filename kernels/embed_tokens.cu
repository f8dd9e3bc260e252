// Which ids are among some tokens (src/ops/embed/tokens.rs): at[n] = the first k with tokens[k] = ids[n] and rest[n] = −1,
// or at[n] = −1 and rest[n] = ids[n]. A thread an id; all of a warp read the same token at a time.
#include "common/types.cuh"

extern "C" __global__ void __launch_bounds__(256) token_rows(int* at, int* rest, const int* ids, const int* tokens, u32 n,
                                                             u32 count) {
    size_t i = thread_number();
    if (i >= n) return;
    int id = ids[i], row = -1;
    // From the last to the first, so that the first stays without a way out of the loop, and loads run ahead.
#pragma unroll 8
    for (int k = (int)count - 1; k >= 0; k--) row = tokens[k] == id ? k : row;
    at[i] = row;
    rest[i] = row < 0 ? id : -1;
}
