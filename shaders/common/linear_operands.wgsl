// What a linear layer forward is bound to: y, x, W and what W's format has, bias, xa and B. With HALF activations are f16; PARTS:
// y is not, its parts are summed by sum_parts.wgsl.
#include "common/act.wgsl"
struct Params {
    t: u32,
    // Rows of W here, and the first of them in the whole.
    n: u32,
    n_first: u32,
    // Columns of y.
    n_all: u32,
    k: u32,
    r: u32,
    scale: f32,
    w_first: u32,
    w_nested: u32,
    w_offset: u32,
    // Of tiles: columns of x that a workgroup sums over, a multiple of 64 where there are several along z.
    step: u32,
}
#if HALF && !PARTS
@group(0) @binding(next) var<storage, read_write> y: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#end
#if VEC
@group(0) @binding(next) var<storage, read_write> x: array<Act4>;
#else
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#end
#include "common/weight_binding.wgsl"
#if BIAS
@group(0) @binding(next) var<storage, read_write> bias: array<f32>;
#end
#if LORA && HALF
@group(0) @binding(next) var<storage, read_write> xa: array<Act4>;
#end
#if LORA && !HALF
@group(0) @binding(next) var<storage, read_write> xa: array<f32>;
#end
#if LORA
@group(0) @binding(next) var<storage, read_write> lb: array<f32>;
#include "common/low_rank.wgsl"
#end
@group(0) @binding(next) var<uniform> p: Params;
