// A weight as stored: elements of the bound part, decoded to f32. Include it where a kernel reads a weight of any type.
//
// One of W_F32, W_BF16, W_F16, W_NF4, W_NF4DQ must be defined; with W_F16 also F16, where the device has that type and
// rows are multiples of four elements long. The including file includes common/weight_binding.wgsl where its binding
// belongs, which declares what `quant::weight_parts` binds (one binding for plain types, two for NF4):
//
//   w:        array<f32> for W_F32, array<vec4<f16>> for F16, array<u32> otherwise: a range of the elements (or codes)
//             that starts on a row
//   w_scales: array<u32>, W_NF4 and W_NF4DQ only: everything behind the codes, from the first absmax on, as words
//
// and a uniform `p` whose struct has these fields (they are zero for plain types):
//
//   w_first:  u32   the block of 64 elements that the bound codes start with
//   w_nested: u32   word of w_scales where the nested absmax begin (W_NF4DQ)
//   w_offset: u32   word of w_scales with the offset of the absmax (W_NF4DQ)
//
// Indices count elements from the start of the bound range `w`, so row r of a part is at r * cols.
#if W_NF4
#include "common/nf4.wgsl"
#end
#if W_NF4DQ
#include "common/nf4.wgsl"
#end

#if W_F32
fn weight_at(i: u32) -> f32 {
    return w[i];
}
// Elements i..i+4 (i a multiple of 4).
fn weight4_at(i: u32) -> vec4<f32> {
    return vec4<f32>(w[i], w[i + 1u], w[i + 2u], w[i + 3u]);
}
#end

#if W_BF16
fn weight_at(i: u32) -> f32 {
    return bitcast<f32>((w[i >> 1u] >> (16u * (i & 1u))) << 16u);
}
// Elements i..i+4 (i a multiple of 4).
fn weight4_at(i: u32) -> vec4<f32> {
    let a = w[i >> 1u];
    let b = w[(i >> 1u) + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}
#end

#if F16
enable f16;
fn weight_at(i: u32) -> f32 {
    return f32(w[i >> 2u][i & 3u]);
}
// Elements i..i+4 (i a multiple of 4).
fn weight4_at(i: u32) -> vec4<f32> {
    return vec4<f32>(w[i >> 2u]);
}
#end
#if W_F16 && !F16
fn weight_at(i: u32) -> f32 {
    let pair = unpack2x16float(w[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) != 0u);
}
// Elements i..i+4 (i a multiple of 4).
fn weight4_at(i: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w[i >> 1u]), unpack2x16float(w[(i >> 1u) + 1u]));
}
#end

#if W_NF4
// The scale of the block of 64 that holds element i.
fn weight_scale(i: u32) -> f32 {
    return bitcast<f32>(w_scales[p.w_first + (i >> 6u)]);
}
#end
#if W_NF4DQ
// The scale of the block of 64 that holds element i.
fn weight_scale(i: u32) -> f32 {
    let block = p.w_first + (i >> 6u);
    let code = (w_scales[block >> 2u] >> (8u * (block & 3u))) & 255u;
    let nested = bitcast<f32>(w_scales[p.w_nested + (block >> 8u)]);
    return dynamic_value(code) * nested + bitcast<f32>(w_scales[p.w_offset]);
}
#end
#if !W_F32 && !W_BF16 && !W_F16
fn weight_at(i: u32) -> f32 {
    return nf4_value(nf4_code(w[i >> 3u], i & 7u)) * weight_scale(i);
}
// Elements i..i+4 (i a multiple of 4): they lie in one block.
fn weight4_at(i: u32) -> vec4<f32> {
    return nf4_values4(w[i >> 3u], (i >> 2u) & 1u) * weight_scale(i);
}
#end
