// A linear layer of few tokens (shaders/linear.wgsl has the equation): a workgroup computes 4 elements of y, so that every
// row of W is read once, in order. With VEC rows are multiples of four elements long and read by fours;
// RAGGED, those of NF4 are none of 64. HALF and PARTS: common/linear_operands.wgsl.
// variant: W_F32|W_BF16|W_F16|W_NF4|W_NF4DQ [BIAS] [LORA] [SUBGROUP]
// variant: W_F32|W_BF16|W_F16|W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [BIAS] [LORA] VEC [HALF] [SUBGROUP]
#if VEC
#include "common/weight_vec.wgsl"
#else
#include "common/weight.wgsl"
#end
// Invocations that share a few elements of y.
const WG: u32 = 64u;
#include "common/reduce.wgsl"

#include "common/linear_operands.wgsl"

// An invocation's part of x[t,:] · W[n..n+4,:].
#if !VEC
fn row_sums(t: u32, n: u32, lid: u32) -> vec4<f32> {
    var sums = vec4<f32>(0.0);
    let rows = min(n + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * p.k;
    for (var k = lid; k < p.k; k += WG) {
        let v = vec4<f32>(weight_at(rows.x + k), weight_at(rows.y + k), weight_at(rows.z + k), weight_at(rows.w + k));
        sums = fma(vec4<f32>(x[t * p.k + k]), v, sums);
    }
    return sums;
}
fn weight_table(lid: u32) {}
#end
#if VEC && !W_F32 && !W_BF16 && !W_F16 && !RAGGED
// Eight columns at a time, a word of each row, under one scale.
fn row_sums(t: u32, n: u32, lid: u32) -> vec4<f32> {
    var sums = vec4<f32>(0.0);
    let words = p.k / 8u;
    let rows = min(n + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * words;
    for (var i = lid; i < words; i += WG) {
        let at = 2u * (t * words + i);
        let left = wide4(x[at]);
        let right = wide4(x[at + 1u]);
        sums += vec4<f32>(
            eight(rows.x + i, left, right),
            eight(rows.y + i, left, right),
            eight(rows.z + i, left, right),
            eight(rows.w + i, left, right),
        );
    }
    return sums;
}
fn eight(word: u32, left: vec4<f32>, right: vec4<f32>) -> f32 {
    let codes = w[word];
    return (dot(weight_codes(codes), left) + dot(weight_codes(codes >> 16u), right)) * weight_scale(2u * word);
}
#end
#if VEC && W_F32
#include "common/row_sums.wgsl"
#end
#if RAGGED
#include "common/row_sums.wgsl"
#end
#if VEC && W_BF16
#include "common/row_sums.wgsl"
#end
#if VEC && W_F16
#include "common/row_sums.wgsl"
#end

@compute @workgroup_size(WG)
fn row(@builtin(workgroup_id) wg: vec3<u32>,
#include "common/lane.wgsl"
) {
    weight_table(lid);
    workgroupBarrier();
    let lane = Lane(lid, subgroup, subgroups);
    let n = wg.x * 4u;
    let t = wg.y;
    var sums = row_sums(t, n, lid);
#if LORA
    for (var r = lid * 4u; r < p.r; r += 4u * WG) {
        let v = xa4(t, r);
        sums += vec4<f32>(dot(v, lb4(n, r)), dot(v, lb4(n + 1u, r)), dot(v, lb4(n + 2u, r)), dot(v, lb4(n + 3u, r)));
    }
#end
    let all = reduce_add4(lane, sums);
    if lid == 0u { store4(t, n, all); }
}

const part: u32 = 0u;
#include "common/linear_store.wgsl"
