// A weight as stored, decoded to f32 where it is read: -DW=0 f32, 1 bf16, 2 f16, 3 NF4, 4 NF4 with double
// quantization (Dettmers et al. 2023, arXiv:2305.14314; the layout is bitsandbytes', `dtype::Nf4Layout`).
//
// NF4: element i has code (codes[i/2] >> (i even ? 4 : 0)) & 15 and value level[code]·absmax[i/64]; with double
// quantization absmax[b] = map[index[b]]·nested[b/256] + offset.
#pragma once
#include "types.cuh"

#ifndef W
#define W 0
#endif

// Pointers to the parts; those that the format has not are null.
struct Weight {
    const void* data;
    const void* absmax;
    const float* nested;
    const float* offset;
};

__constant__ float NF4_LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Entry `code` of the signed dynamic map (Dettmers et al. 2022, arXiv:2110.02861): seven decades with 1, 2, 4, …, 64
// equidistant midpoints of [0.1, 1] each, mirrored around 0 (code 127), and 1 on top (code 255). To the bit what
// bitsandbytes' table holds: its boundaries are torch.linspace's, which counts its second half from the end.
__device__ __forceinline__ float dynamic_value(u32 code) {
    if (code == 127) return 0.0f;
    if (code == 255) return 1.0f;
    u32 j = code > 127 ? code - 127 : 127 - code;  // 1 to 127: the decade is its highest bit
    u32 d = 31 - __clz(j), parts = 1u << d, k = j - parts, half = (parts + 1) / 2;
    float step = (1.0f - 0.1f) * __uint_as_float((127 - d) << 23);
    float low = k < half ? __fmaf_rn(step, (float)k, 0.1f) : __fmaf_rn(-step, (float)(parts - k), 1.0f);
    float high = k + 1 < half ? __fmaf_rn(step, (float)(k + 1), 0.1f) : __fmaf_rn(-step, (float)(parts - k - 1), 1.0f);
    float decade = d == 0 ? 1e-6f : d == 1 ? 1e-5f : d == 2 ? 1e-4f : d == 3 ? 1e-3f : d == 4 ? 1e-2f : d == 5 ? 1e-1f : 1.0f;
    float v = decade * (0.5f * (low + high));
    return code > 127 ? v : -v;
}

// The absmax of the block of 64 that element i lies in.
__device__ __forceinline__ float absmax_of(const Weight& w, size_t i) {
#if W == 3
    return ((const float*)w.absmax)[i / 64];
#elif W == 4
    size_t block = i / 64;
    // Not fused, so that the bits are the CPU's.
    return __fadd_rn(__fmul_rn(dynamic_value(((const u8*)w.absmax)[block]), w.nested[block / 256]), *w.offset);
#else
    return 1.0f;
#endif
}

// Element i.
__device__ __forceinline__ float weight_at(const Weight& w, size_t i) {
#if W == 0
    return ((const float*)w.data)[i];
#elif W == 1
    return to_f32(((const bf16*)w.data)[i]);
#elif W == 2
    return to_f32(((const f16*)w.data)[i]);
#else
    u32 pair = ((const u8*)w.data)[i / 2];
    return NF4_LEVELS[i % 2 == 0 ? pair >> 4 : pair & 15] * absmax_of(w, i);
#endif
}
