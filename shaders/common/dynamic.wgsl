// bitsandbytes' 8-bit dynamic maps (Dettmers et al. 2022, arXiv:2110.02861; src/quant/dynamic.rs), computed instead of
// looked up, since WGSL spills a constant array that is indexed by a variable; within an ulp or two of the tables.
//
// Decade d of seven has `parts` values, the middles of as many equal parts of 10^(d-6)·[0.1, 1]. Of the signed map,
// `dynamic_value`, codes 0 to 126 are the negatives of 254 to 128, 127 is 0, 255 is 1.

#include "common/nf4.wgsl"

fn dynamic_decade(d: u32) -> f32 {
    let low = select(vec4<f32>(1e-6, 1e-5, 1e-4, 1e-3), vec4<f32>(1e-2, 1e-1, 1.0, 1.0), d >= 4u);
    let pair = select(low.xy, low.zw, (d & 2u) != 0u);
    return select(pair.x, pair.y, (d & 1u) != 0u);
}

// The inverse of a decade's scale.
fn dynamic_inverse(d: u32) -> f32 {
    let low = select(vec4<f32>(1e6, 1e5, 1e4, 1e3), vec4<f32>(1e2, 1e1, 1.0, 1.0), d >= 4u);
    let pair = select(low.xy, low.zw, (d & 2u) != 0u);
    return select(pair.x, pair.y, (d & 1u) != 0u);
}

// Value k of `parts`, a power of two.
fn dynamic_part(d: u32, parts: u32, k: u32) -> f32 {
    return dynamic_decade(d) * (0.1 + 0.9 * ((f32(k) + 0.5) / f32(parts)));
}

// Code 0 is 0, 255 is 1.
fn dynamic_unsigned_value(code: u32) -> f32 {
    if code == 0u { return 0.0; }
    if code == 255u { return 1.0; }
    let j = code + 1u; // 2 to 255: the decade is its highest bit less one
    let top = firstLeadingBit(j);
    return dynamic_part(top - 1u, 1u << top, j - (1u << top));
}

fn dynamic_values(word: u32) -> vec4<f32> {
    return vec4<f32>(dynamic_value(word & 255u), dynamic_value((word >> 8u) & 255u),
                     dynamic_value((word >> 16u) & 255u), dynamic_value(word >> 24u));
}
fn dynamic_unsigned_values(word: u32) -> vec4<f32> {
    return vec4<f32>(dynamic_unsigned_value(word & 255u), dynamic_unsigned_value((word >> 8u) & 255u),
                     dynamic_unsigned_value((word >> 16u) & 255u), dynamic_unsigned_value(word >> 24u));
}

// The place (parts + k) among the values of the decade of a ≥ 0, as if the decades' ends were edges between values:
// right, or next to right.
fn dynamic_place(a: f32, doubled: u32) -> u32 {
    let d = u32(a >= 1e-6) + u32(a >= 1e-5) + u32(a >= 1e-4) + u32(a >= 1e-3) + u32(a >= 1e-2) + u32(a >= 1e-1);
    let parts = 1u << (d + doubled);
    let k = i32((a * dynamic_inverse(d) - 0.1) * (f32(parts) * (1.0 / 0.9)));
    return parts + u32(clamp(k, 0, i32(parts) - 1));
}

// The code of the value nearest to x in [−1, 1]: the guess, moved by one where x lies over an edge.
fn dynamic_signed_code(x: f32) -> u32 {
    let j = dynamic_place(abs(x), 0u);
    let code = select(127u + j, 127u - j, x < 0.0);
    let value = dynamic_value(code);
    let above = dynamic_value(min(code + 1u, 255u));
    let below = dynamic_value(max(code, 1u) - 1u);
    return code + u32(code < 255u && x > 0.5 * (value + above)) - u32(code > 0u && x <= 0.5 * (value + below));
}
// The same of x in [0, 1].
fn dynamic_unsigned_code(x: f32) -> u32 {
    let code = dynamic_place(x, 1u) - 1u;
    let value = dynamic_unsigned_value(code);
    let above = dynamic_unsigned_value(min(code + 1u, 255u));
    let below = dynamic_unsigned_value(max(code, 1u) - 1u);
    return code + u32(code < 255u && x > 0.5 * (value + above)) - u32(code > 0u && x <= 0.5 * (value + below));
}

fn dynamic_codes(x: vec4<f32>) -> u32 {
    return dynamic_signed_code(x.x) | (dynamic_signed_code(x.y) << 8u) | (dynamic_signed_code(x.z) << 16u)
        | (dynamic_signed_code(x.w) << 24u);
}
fn dynamic_unsigned_codes(x: vec4<f32>) -> u32 {
    return dynamic_unsigned_code(x.x) | (dynamic_unsigned_code(x.y) << 8u) | (dynamic_unsigned_code(x.z) << 16u)
        | (dynamic_unsigned_code(x.w) << 24u);
}
