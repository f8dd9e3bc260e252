// 4-bit NormalFloat in bitsandbytes' layout: quantizing blocks of 64, double quantization of their scales, decoding.
// variant: QUANTIZE
// variant: MEAN
// variant: NESTED
// variant: DEQUANTIZE W_NF4
// variant: DEQUANTIZE W_NF4DQ

override WG: u32 = 64u;

#if QUANTIZE
struct Params {
    // Elements of this dispatch, and its first block.
    n: u32,
    first: u32,
    unused: u32,
}
@group(0) @binding(next) var<storage, read_write> codes: array<u32>;
@group(0) @binding(next) var<storage, read_write> absmax: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

// How many of the midpoints between neighbouring values v is above.
fn code_of(v: f32) -> u32 {
    var c = 0u;
    c += select(0u, 1u, v > -0.8480963706970215);
    c += select(0u, 1u, v > -0.6106328964233398);
    c += select(0u, 1u, v > -0.4599952697753906);
    c += select(0u, 1u, v > -0.33967941999435425);
    c += select(0u, 1u, v > -0.23460739850997925);
    c += select(0u, 1u, v > -0.13791173696517944);
    c += select(0u, 1u, v > -0.045525018125772476);
    c += select(0u, 1u, v > 0.03979014977812767);
    c += select(0u, 1u, v > 0.120255246758461);
    c += select(0u, 1u, v > 0.2035212516784668);
    c += select(0u, 1u, v > 0.2920137643814087);
    c += select(0u, 1u, v > 0.3893125355243683);
    c += select(0u, 1u, v > 0.5016634464263916);
    c += select(0u, 1u, v > 0.6427869200706482);
    c += select(0u, 1u, v > 0.8614784479141235);
    return c;
}

// A block of 64 for each invocation.
@compute @workgroup_size(WG)
fn quantize(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = (wg.y * groups.x + wg.x) * WG + lid;
    let start = block * 64u;
    if start >= p.n { return; }
    let end = min(start + 64u, p.n);
    var largest = 0.0;
    for (var i = start; i < end; i++) { largest = max(largest, abs(x[i])); }
    absmax[p.first + block] = largest;
    let scale = 1.0 / max(largest, 1e-38);
    for (var i = start; i < end; i += 8u) {
        var word = 0u;
        for (var k = 0u; k < 8u; k++) {
            // Beyond the end lies the code of zero, up to a whole byte, and nothing behind that.
            var code = select(0u, 7u, i + k == end && (k & 1u) == 1u);
            if i + k < end { code = code_of(x[i + k] * scale); }
            word |= code << (8u * (k / 2u) + 4u * (1u - (k & 1u)));
        }
        codes[i / 8u] = word;
    }
}
#end

#if MEAN
struct Params {
    n: u32,
    unused0: u32,
    unused1: u32,
}
@group(0) @binding(next) var<storage, read_write> offset: array<f32>;
@group(0) @binding(next) var<storage, read_write> absmax: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;
const LANES: u32 = 256u;
var<workgroup> lanes: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn mean(@builtin(local_invocation_index) lid: u32) {
    var sum = 0.0;
    for (var i = lid; i < p.n; i += LANES) { sum += absmax[i]; }
    lanes[lid] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lid < half { lanes[lid] += lanes[lid + half]; }
        workgroupBarrier();
    }
    if lid == 0u { offset[0] = lanes[0] / f32(p.n); }
}
#end

#if NESTED
#include "common/nf4.wgsl"
struct Params {
    n: u32,
    unused0: u32,
    unused1: u32,
}
@group(0) @binding(next) var<storage, read_write> codes: array<u32>;
@group(0) @binding(next) var<storage, read_write> nested: array<f32>;
@group(0) @binding(next) var<storage, read_write> offset: array<f32>;
@group(0) @binding(next) var<storage, read_write> absmax: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;
var<workgroup> lanes: array<f32, 64>;

// The nearest entry of the dynamic map, the lower of two, to one of 2^16 equidistant values: bitsandbytes' table.
fn index_of(v: f32) -> u32 {
    let step = floor((clamp(v, -1.0, 1.0) + 1.0) * 0.5 * 65535.0 + 0.5);
    let value = -1.0 + 2.0 * step / 65535.0;
    var lo = 0u;
    var hi = 255u;
    while lo < hi {
        let mid = (lo + hi) / 2u;
        if 0.5 * (dynamic_value(mid) + dynamic_value(mid + 1u)) < value { lo = mid + 1u; } else { hi = mid; }
    }
    return lo;
}

// 256 scales for each workgroup, four (a word of codes) for each invocation.
@compute @workgroup_size(64)
fn nested_blocks(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = wg.y * groups.x + wg.x;
    let start = block * 256u + 4u * lid;
    let mean = offset[0];
    var largest = 0.0;
    for (var i = start; i < min(start + 4u, p.n); i++) { largest = max(largest, abs(absmax[i] - mean)); }
    lanes[lid] = largest;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if lid < half { lanes[lid] = max(lanes[lid], lanes[lid + half]); }
        workgroupBarrier();
    }
    largest = lanes[0];
    if start < p.n {
        var word = 0u;
        if largest > 0.0 {
            let scale = 1.0 / largest;
            for (var i = start; i < min(start + 4u, p.n); i++) {
                word |= index_of((absmax[i] - mean) * scale) << (8u * (i - start));
            }
        }
        codes[start / 4u] = word;
        if lid == 0u { nested[block] = largest; }
    }
}
#end

#if DEQUANTIZE
#include "common/weight.wgsl"
struct Params {
    n: u32,
    w_first: u32,
    w_nested: u32,
    w_offset: u32,
}
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
@group(0) @binding(next) var<storage, read_write> w: array<u32>;
@group(0) @binding(next) var<storage, read_write> w_scales: array<u32>;
@group(0) @binding(next) var<uniform> p: Params;

@compute @workgroup_size(WG)
fn dequantize(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = ((wg.y * groups.x + wg.x) * WG + lid) * 4u;
    if i >= p.n { return; }
    let v = weight4_at(i);
    y[i] = v.x;
    if i + 1u < p.n { y[i + 1u] = v.y; }
    if i + 2u < p.n { y[i + 2u] = v.z; }
    if i + 3u < p.n { y[i + 3u] = v.w; }
}
#end
