// Which keys a query sees, and which queries see a key (src/ops/attention.rs).
#pragma once
#include "types.cuh"

__device__ __forceinline__ uint2 visible(u32 t, const int* key_range, u32 keys, u32 causal, u32 window) {
    u32 lo = min(max(key_range[2 * t], 0), keys), hi = min(max(key_range[2 * t + 1], 0), keys);
    if (causal) hi = min(hi, t + 1);
    if (window) lo = max(lo, t + 1 - min(window, t + 1));
    return make_uint2(lo, hi);
}
__device__ __forceinline__ uint2 seeing(u32 s, const int* query_range, u32 queries, u32 causal, u32 window) {
    u32 lo = min(max(query_range[2 * s], 0), queries), hi = min(max(query_range[2 * s + 1], 0), queries);
    if (causal) lo = max(lo, s);
    if (window) hi = min(hi, s + min(window, queries));
    return make_uint2(lo, hi);
}
