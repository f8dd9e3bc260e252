// The bindings that common/weight.wgsl reads: of the weight's elements (or codes), and of NF4's scales.
#if W_F32 && !VEC
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
#end
#if W_F32 && VEC
@group(0) @binding(next) var<storage, read_write> w: array<vec4<f32>>;
#end
#if F16
@group(0) @binding(next) var<storage, read_write> w: array<vec4<f16>>;
#end
#if W_BF16 && VEC
@group(0) @binding(next) var<storage, read_write> w: array<vec2<u32>>;
#end
#if W_F16 && !F16 && VEC
@group(0) @binding(next) var<storage, read_write> w: array<vec2<u32>>;
#end
#if !W_F32 && !F16 && !VEC
@group(0) @binding(next) var<storage, read_write> w: array<u32>;
#end
#if VEC && !W_F32 && !W_BF16 && !W_F16
@group(0) @binding(next) var<storage, read_write> w: array<u32>;
#end
#if !W_F32 && !W_BF16 && !W_F16
@group(0) @binding(next) var<storage, read_write> w_scales: array<u32>;
#end
