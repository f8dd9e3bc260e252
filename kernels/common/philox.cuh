// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), the twin of
// src/cpu/philox.rs: four random words from a counter and a key, the same on every device.
#pragma once
#include "types.cuh"

__device__ __forceinline__ uint4 philox(uint4 c, uint2 k) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}

// Which elements dropout keeps: element i by word i % 4 of counter (i / 4, site, step, micro-batch) under the seed as
// key; rng = (seed low, seed high, step, micro-batch). What i / 4 has beyond its low word is in the site's upper bits.
// Kept iff the word is at least threshold = p·2³²; then times keep_scale = 1/(1-p).
struct Dropout {
    uint4 rng;
    u32 site, threshold;
    float keep_scale;

    __device__ __forceinline__ uint4 words(size_t i) const {
        u32 of = site ^ (u32)(i >> 34) << 20;
        return philox(make_uint4((u32)(i / 4), of, rng.z, rng.w), make_uint2(rng.x, rng.y));
    }
    __device__ __forceinline__ float factor(size_t i) const {
        uint4 r = words(i);
        u32 lane = (u32)i % 4;
        u32 word = lane == 0 ? r.x : lane == 1 ? r.y : lane == 2 ? r.z : r.w;
        return word >= threshold ? keep_scale : 0.0f;
    }
    // The factors of elements i to i+3, i a multiple of 4.
    __device__ __forceinline__ float4 factor4(size_t i) const {
        uint4 r = words(i);
        return make_float4(r.x >= threshold ? keep_scale : 0.0f, r.y >= threshold ? keep_scale : 0.0f,
                           r.z >= threshold ? keep_scale : 0.0f, r.w >= threshold ? keep_scale : 0.0f);
    }
    // Drops out v and w, elements i and i + 1.
    __device__ __forceinline__ void pair(size_t i, float& v, float& w) const {
        if (i % 2 == 0) {
            even_pair(i, v, w);
        } else {
            v *= factor(i), w *= factor(i + 1);
        }
    }
    // The same for an even i: both are in one group of four.
    __device__ __forceinline__ void even_pair(size_t i, float& v, float& w) const {
        float4 f = factor4(i / 4 * 4);
        v *= i % 4 == 0 ? f.x : f.z, w *= i % 4 == 0 ? f.y : f.w;
    }
};
__device__ __forceinline__ Dropout dropout(const u32* rng, u32 site, u32 threshold, float keep_scale) {
    Dropout d = {make_uint4(rng[0], rng[1], rng[2], rng[3]), site, threshold, keep_scale};
    return d;
}
