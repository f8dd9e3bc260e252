// The values of 4-bit NormalFloat codes (Dettmers et al. 2023, arXiv:2305.14314) and of the signed 8-bit dynamic
// map that double quantization stores absmax in (Dettmers et al. 2022, arXiv:2110.02861); bitsandbytes' layout.

// A tree of selects: WGSL spills a constant array that is indexed by a variable.
fn nf4_value(code: u32) -> f32 {
    let b3 = (code & 8u) != 0u;
    let b2 = (code & 4u) != 0u;
    let lo = select(vec4<f32>(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
                    vec4<f32>(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0), b2);
    let hi = select(vec4<f32>(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
                    vec4<f32>(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0), b2);
    let v = select(lo, hi, b3);
    let w = select(v.xy, v.zw, (code & 2u) != 0u);
    return select(w.x, w.y, (code & 1u) != 0u);
}

// The code of element `k` (0..7) of a word of eight: two codes a byte, the high nibble first.
fn nf4_code(word: u32, k: u32) -> u32 {
    return (word >> (8u * (k >> 1u) + select(4u, 0u, (k & 1u) != 0u))) & 15u;
}

// The first (half = 0) or last (half = 1) four values of a word of eight codes.
fn nf4_values4(word: u32, half: u32) -> vec4<f32> {
    let w = word >> (16u * half);
    return vec4<f32>(nf4_value((w >> 4u) & 15u), nf4_value(w & 15u), nf4_value((w >> 12u) & 15u), nf4_value((w >> 8u) & 15u));
}

// Entry `code` of the signed dynamic map: seven decades with 1, 2, 4, …, 64 equidistant midpoints of [0.1, 1] each,
// mirrored around 0 (code 127), and 1 on top (code 255). Computed, within an ulp or two of the table.
fn dynamic_value(code: u32) -> f32 {
    if code == 127u { return 0.0; }
    if code == 255u { return 1.0; }
    let positive = code > 127u;
    let j = select(127u - code, code - 127u, positive); // 1..127: the decade is its highest bit
    let d = firstLeadingBit(j);
    let fraction = (f32(j - (1u << d)) + 0.5) * bitcast<f32>((127u - d) << 23u);
    var decade = 1e-6;
    if d == 1u { decade = 1e-5; }
    if d == 2u { decade = 1e-4; }
    if d == 3u { decade = 1e-3; }
    if d == 4u { decade = 1e-2; }
    if d == 5u { decade = 1e-1; }
    if d == 6u { decade = 1.0; }
    let v = decade * (0.1 + 0.9 * fraction);
    return select(-v, v, positive);
}
