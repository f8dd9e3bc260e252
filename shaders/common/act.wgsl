// Activations as they are kept, f32 or with HALF f16, and as numbers: by fours, which are multiples of four elements
// apart, and by units. A unit is one number; with HALF it is four, and strides, lengths and rows of f32 that meet
// activations are counted in units.
#if HALF
#include "common/half.wgsl"
alias Act4 = vec2<u32>;
fn wide4(v: vec2<u32>) -> vec4<f32> { return half_wide4(v); }
fn kept4(v: vec4<f32>) -> vec2<u32> { return half_kept4(v); }

const UNIT: u32 = 4u;
alias Unit = vec4<f32>;
alias Act = vec2<u32>;
fn wide(v: vec2<u32>) -> vec4<f32> { return half_wide4(v); }
fn kept(v: vec4<f32>) -> vec2<u32> { return half_kept4(v); }
fn sum_of(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
#else
alias Act4 = vec4<f32>;
fn wide4(v: vec4<f32>) -> vec4<f32> { return v; }
fn kept4(v: vec4<f32>) -> vec4<f32> { return v; }

const UNIT: u32 = 1u;
alias Unit = f32;
alias Act = f32;
fn wide(v: f32) -> f32 { return v; }
fn kept(v: f32) -> f32 { return v; }
fn sum_of(v: f32) -> f32 { return v; }
#end
