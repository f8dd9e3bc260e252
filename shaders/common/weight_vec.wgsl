// A weight as stored, read by fours (VEC): the counterpart of common/weight.wgsl for products whose rows are multiples of
// four elements long; RAGGED, those of NF4 are none of 64, and a block of 64 may span two rows. No block ends within a group
// of four. The kernel declares the bindings (common/weight_binding.wgsl) and the parameters that common/weight.wgsl names.
// `q` counts groups of four elements.
//
// NF4's values come from a table in workgroup memory, because WGSL spills a constant array that is indexed by a variable
// and a tree of selects takes some twenty operations a value. A kernel calls weight_table(lid) first and has a barrier
// before it decodes.
#if W_NF4
#include "common/nf4.wgsl"
#end
#if W_NF4DQ
#include "common/nf4.wgsl"
#end

#if W_F32
fn weight4(q: u32) -> vec4<f32> {
    return w[q];
}
#end
#if W_BF16
fn weight4(q: u32) -> vec4<f32> {
    let v = w[q];
    return bitcast<vec4<f32>>(vec4<u32>(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
#end
#if F16
enable f16;
fn weight4(q: u32) -> vec4<f32> {
    return vec4<f32>(w[q]);
}
#end
#if W_F16 && !F16
fn weight4(q: u32) -> vec4<f32> {
    let v = w[q];
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
#end

#if W_NF4
// The scale of the block of 64 that holds group q.
fn weight_scale(q: u32) -> f32 {
    return bitcast<f32>(w_scales[p.w_first + (q >> 4u)]);
}
#end
#if W_NF4DQ
// The scale of the block of 64 that holds group q.
fn weight_scale(q: u32) -> f32 {
    let block = p.w_first + (q >> 4u);
    let code = (w_scales[block >> 2u] >> (8u * (block & 3u))) & 255u;
    let nested = bitcast<f32>(w_scales[p.w_nested + (block >> 8u)]);
    return dynamic_value(code) * nested + bitcast<f32>(w_scales[p.w_offset]);
}
#end

#if W_F32
fn weight_table(lid: u32) {}
#end
#if W_BF16
fn weight_table(lid: u32) {}
#end
#if W_F16
fn weight_table(lid: u32) {}
#end
#if !W_F32 && !W_BF16 && !W_F16
var<workgroup> nf4_table: array<f32, 16>;
fn weight_table(lid: u32) {
    if lid < 16u { nf4_table[lid] = nf4_value(lid); }
}
// The values of the four codes in the low half of a word, not scaled: two codes a byte, the high nibble first.
fn weight_codes(half: u32) -> vec4<f32> {
    return vec4<f32>(
        nf4_table[(half >> 4u) & 15u],
        nf4_table[half & 15u],
        nf4_table[(half >> 12u) & 15u],
        nf4_table[(half >> 8u) & 15u],
    );
}
#end
#if RAGGED
// The values of group q, not scaled, and scaled.
fn codes4(q: u32) -> vec4<f32> {
    return weight_codes(w[q / 2u] >> (16u * (q & 1u)));
}
fn weight4(q: u32) -> vec4<f32> {
    return weight_scale(q) * codes4(q);
}
#end
