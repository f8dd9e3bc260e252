// The first row and column of the BM × BN tile of a number, of an m × n product. Tiles are numbered down columns of STRIP rows of
// tiles, so that the blocks that run together read few rows of a and few columns of b, and find them in the second-level cache.
#pragma once
#include "types.cuh"

struct Place {
    u32 m, n;
    bool none;
};
template <int BM, int BN> __device__ __forceinline__ Place place(u32 m, u32 n, u32 number) {
    constexpr u32 STRIP = 8;
    u32 rows = (m + BM - 1) / BM, cols = (n + BN - 1) / BN;
    u32 strip = number / (STRIP * cols), in = number % (STRIP * cols), first = strip * STRIP;
    Place p = {0, 0, true};
    if (first >= rows) return p;
    u32 high = min(rows - first, STRIP);
    p.m = (first + in % high) * BM, p.n = in / high * BN;
    p.none = p.n >= n;
    return p;
}
