// Four f16, two in a word, the first in its low half, and the numbers that they are. Rounding is to the nearest, ties to even,
// and infinite from 65520 on, all on bits: WGSL's own conversions may round either way.
fn half_wide4(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
fn half_kept4(v: vec4<f32>) -> vec2<u32> {
    let b = bitcast<vec4<u32>>(v);
    let a = b & vec4<u32>(0x7fffffffu);
    // A carry out of the fraction is a number with the next exponent, as it should be.
    let usual = (a - 0x38000000u + 0xfffu + ((a >> vec4<u32>(13u)) & vec4<u32>(1u))) >> vec4<u32>(13u);
    // Below 2^-14 the fraction counts in units of 2^-24, as that of f32 does between 0.5 and 1.
    let small = bitcast<vec4<u32>>(bitcast<vec4<f32>>(a) + 0.5) - 0x3f000000u;
    var h = select(usual, small, a < vec4<u32>(0x38800000u));
    h = select(h, vec4<u32>(0x7c00u), a >= vec4<u32>(0x477ff000u));
    h = select(h, vec4<u32>(0x7e00u), a > vec4<u32>(0x7f800000u));
    h |= (b >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    return vec2<u32>(h.x | (h.y << 16u), h.z | (h.w << 16u));
}
