// The same numbers in another float type, to the nearest, ties to even: y = x. Two 16-bit elements share a word, the first
// in its low half; behind an odd last element lies a zero. All is done on bits: WGSL's own conversions may round either
// way and may flush small numbers.
// variant: FROM_F32 TO_BF16
// variant: FROM_F32 TO_F16
// variant: FROM_BF16 TO_F32
// variant: FROM_BF16 TO_F16
// variant: FROM_F16 TO_F32
// variant: FROM_F16 TO_BF16

override WG: u32 = 64u;

struct Params {
    n: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<u32>;
@group(0) @binding(next) var<storage, read_write> x: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;

#if FROM_F16
// The bits of an f16 as f32.
fn wide(h: u32) -> u32 {
    let sign = (h & 0x8000u) << 16u;
    let rest = h & 0x7fffu;
    if rest >= 0x7c00u { return sign | 0x7f800000u | ((rest & 0x3ffu) << 13u); }
    // Below 2^-14 the fraction counts in units of 2^-24, which f32 holds exactly.
    if rest < 0x400u { return sign | bitcast<u32>(f32(rest) * 5.9604644775390625e-8); }
    return sign | ((rest << 13u) + 0x38000000u);
}
#end

#if TO_BF16
// The nearest bf16 to the f32 with these bits.
fn narrow(b: u32) -> u32 {
    // A carry out of the fraction is a number with the next exponent, as it should be; a NaN keeps a bit of its payload.
    if (b & 0x7fffffffu) > 0x7f800000u { return (b >> 16u) | 0x40u; }
    return (b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u;
}
#end
#if TO_F16
// The nearest f16 to the f32 with these bits.
fn narrow(b: u32) -> u32 {
    let sign = (b >> 16u) & 0x8000u;
    let a = b & 0x7fffffffu;
    if a > 0x7f800000u { return sign | 0x7e00u; }
    // From halfway between the largest f16 and 2^16 on: infinity.
    if a >= 0x477ff000u { return sign | 0x7c00u; }
    if a >= 0x38800000u { return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u); }
    // Below 2^-14: units of 2^-24, down to half of one.
    if a <= 0x33000000u { return sign; }
    let shift = 126u - (a >> 23u);
    let m = (a & 0x7fffffu) | 0x800000u;
    return sign | ((m + (1u << (shift - 1u)) - 1u + ((m >> shift) & 1u)) >> shift);
}
#end

// The f32 bits of element i, 0 behind the last.
fn element(i: u32) -> u32 {
    if i >= p.n { return 0u; }
#if FROM_F32
    return x[i];
#else
    let half = (x[i / 2u] >> (16u * (i & 1u))) & 0xffffu;
#if FROM_F16
    return wide(half);
#else
    return half << 16u;
#end
#end
}

// Two elements for each invocation.
@compute @workgroup_size(WG)
fn to_other(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = ((wg.y * groups.x + wg.x) * WG + lid) * 2u;
    if i >= p.n { return; }
#if TO_F32
    y[i] = element(i);
    if i + 1u < p.n { y[i + 1u] = element(i + 1u); }
#else
    y[i / 2u] = narrow(element(i)) | (narrow(element(i + 1u)) << 16u);
#end
}
