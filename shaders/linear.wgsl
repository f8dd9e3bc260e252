// A linear layer: y[T,N] = x[T,K] W[N,K]^T (+ bias) (+ scale xa[T,R] B[N,R]^T). W is decoded on its way into workgroup
// memory; the low-rank part is R more columns of the same loop. A dispatch computes the columns of some rows of W.
//
// Half of a workgroup's threads load x, the other half W, each always the same four rows; those beyond the last are the
// last, whose products nobody stores. With VEC rows are multiples of four elements long and read by fours;
// RAGGED, those of NF4 are none of 64. HALF and PARTS: common/linear_operands.wgsl.
// variant: W_F32|W_BF16|W_F16|W_NF4|W_NF4DQ [BIAS] [LORA] [COOP]
// variant: W_F32|W_BF16|W_F16|W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [BIAS] [LORA] VEC [LARGE] [HALF]
// variant: W_F32|W_BF16|W_F16|W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [LORA] VEC [LARGE] HALF PARTS
// variant: W_F32|W_BF16|W_F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [BIAS] [LORA] VEC COOP
// variant: W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [BIAS] [LORA] VEC HALF COOP
// variant: W_F16+F16|W_NF4|W_NF4+RAGGED|W_NF4DQ|W_NF4DQ+RAGGED [LORA] VEC HALF PARTS COOP
#include "common/tile_any.wgsl"
#if VEC
#include "common/weight_vec.wgsl"
#else
#include "common/weight.wgsl"
#end

#include "common/linear_operands.wgsl"

// Where rows first..first+4 begin, in the unit in which x and W are read: four elements with VEC.
fn rows_at(first: u32, count: u32) -> vec4<u32> {
    let rows = min(first + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(count - 1u));
#if VEC
    return rows * (p.k / 4u);
#else
    return rows * p.k;
#end
}

#if VEC
// Columns 4q..4q+4, there being `fours` groups of them.
fn load_x(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    if q < fours {
        tile_put_a(g, h, wide4(x[at.x + q]), wide4(x[at.y + q]), wide4(x[at.z + q]), wide4(x[at.w + q]));
    } else {
        tile_put_a(g, h, vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
}
#if !W_F32 && !W_BF16 && !W_F16 && !RAGGED
// The scales of this thread's rows, from the last column that is a multiple of 64 on.
var<private> scales: vec4<f32>;

fn load_w(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    if q < fours {
        if (q & 15u) == h {
            scales = vec4<f32>(weight_scale(at.x + q), weight_scale(at.y + q), weight_scale(at.z + q), weight_scale(at.w + q));
        }
        let shift = 16u * (q & 1u);
        tile_put_b(g, h,
            scales.x * weight_codes(w[(at.x + q) / 2u] >> shift),
            scales.y * weight_codes(w[(at.y + q) / 2u] >> shift),
            scales.z * weight_codes(w[(at.z + q) / 2u] >> shift),
            scales.w * weight_codes(w[(at.w + q) / 2u] >> shift));
    } else {
        tile_put_b(g, h, vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
}
#end
#if RAGGED
// The scales of the blocks that this thread's rows are in, and where its columns end that it meets first.
var<private> scales: vec4<f32>;
var<private> begun: u32;

fn load_w(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    if q < fours {
        let i = at + q;
        scales.x = scale_at(i.x, q, scales.x);
        scales.y = scale_at(i.y, q, scales.y);
        scales.z = scale_at(i.z, q, scales.z);
        scales.w = scale_at(i.w, q, scales.w);
        tile_put_b(g, h, scales.x * codes4(i.x), scales.y * codes4(i.y), scales.z * codes4(i.z), scales.w * codes4(i.w));
    } else {
        tile_put_b(g, h, vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
}
// The scale of group i, `now` being that of the one before: a thread meets every fourth.
fn scale_at(i: u32, q: u32, now: f32) -> f32 {
    if ((i & 15u) < BK / 4u) | (q < begun) { return weight_scale(i); }
    return now;
}
#end
#if W_F32
#include "common/load_w.wgsl"
#end
#if W_BF16
#include "common/load_w.wgsl"
#end
#if W_F16
#include "common/load_w.wgsl"
#end
#else
fn load_x(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    let k = 4u * q;
    tile_put_a(g, h, x4(at.x, k), x4(at.y, k), x4(at.z, k), x4(at.w, k));
}
fn load_w(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    let k = 4u * q;
    tile_put_b(g, h, w4(at.x, k), w4(at.y, k), w4(at.z, k), w4(at.w, k));
}
fn x4(at: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if k < p.k { v.x = x[at + k]; }
    if k + 1u < p.k { v.y = x[at + k + 1u]; }
    if k + 2u < p.k { v.z = x[at + k + 2u]; }
    if k + 3u < p.k { v.w = x[at + k + 3u]; }
    return v;
}
fn w4(at: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if k < p.k { v.x = weight_at(at + k); }
    if k + 1u < p.k { v.y = weight_at(at + k + 1u); }
    if k + 2u < p.k { v.z = weight_at(at + k + 2u); }
    if k + 3u < p.k { v.w = weight_at(at + k + 3u); }
    return v;
}
fn weight_table(lid: u32) {}
#end

// Where y begins that this part of the sum goes to.
var<private> part: u32;

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    let m0 = wg.y * BM;
    let n0 = wg.x * BN;
    tile_clear(lid);
    weight_table(lid);
    workgroupBarrier();
    let loads_x = lid < UNITS_A;
    let unit = select(lid - UNITS_A, lid, loads_x);
    let h = unit % (BK / 4u);
    let g = unit / (BK / 4u);
    let first = select(n0, m0, loads_x) + 4u * g;
    let at = rows_at(first, select(p.n, p.t, loads_x));
    let fours = (p.k + 3u) / 4u;
    let end = min(fours, (wg.z + 1u) * (p.step / 4u));
    part = wg.z * p.t * p.n_all;
#if RAGGED
    begun = wg.z * (p.step / 4u) + BK / 4u;
#end
    for (var q = wg.z * (p.step / 4u); q < end; q += BK / 4u) {
        if loads_x {
            load_x(g, h, at, q + h, fours);
        } else {
            load_w(g, h, at, q + h, fours);
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
#if LORA
    for (var r0 = select(p.r, 0u, wg.z == 0u); r0 < p.r; r0 += BK) {
        let r = r0 + 4u * h;
        if loads_x {
            tile_put_a(g, h, xa4(first, r), xa4(first + 1u, r), xa4(first + 2u, r), xa4(first + 3u, r));
        } else {
            tile_put_b(g, h, lb4(first, r), lb4(first + 1u, r), lb4(first + 2u, r), lb4(first + 3u, r));
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
#end
    tile_store(lid, m0, n0);
}

#include "common/linear_store.wgsl"
