// What tile_coop.wgsl and tile_coop16.wgsl have in common: where operands are staged, in rows of STRIDE numbers of type Staged, and
// whose turn which unit is.
const BM: u32 = 64u;
const BN: u32 = 64u;
const BK: u32 = 16u;
const THREADS: u32 = 128u;
const MG: u32 = BM / 4u;
const NG: u32 = BN / 4u;
const UNITS_A: u32 = MG * (BK / 4u);
const UNITS_B: u32 = NG * (BK / 4u);

const B_AT: u32 = BM * STRIDE;
var<workgroup> stage: array<Staged, (BM + BN) * STRIDE>;

// This subgroup's unit, the first of this round, and how many the round has.
var<private> unit: u32;
var<private> unit_first: u32;
var<private> unit_count: u32;

fn stage4(i: u32, v: vec4<f32>) {
    let h = vec4<Staged>(v);
    stage[i] = h.x;
    stage[i + 1u] = h.y;
    stage[i + 2u] = h.z;
    stage[i + 3u] = h.w;
}

// As in common/tile.wgsl.
fn tile_put_a(g: u32, h: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    let i = 4u * (g * STRIDE + h);
    stage4(i, v0);
    stage4(i + STRIDE, v1);
    stage4(i + 2u * STRIDE, v2);
    stage4(i + 3u * STRIDE, v3);
}
fn tile_put_b(g: u32, h: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    tile_put_a(g + MG, h, v0, v1, v2, v3);
}
fn tile_put_a_k(g: u32, k: u32, v: vec4<f32>) {
    let i = 4u * g * STRIDE + k;
    let h = vec4<Staged>(v);
    stage[i] = h.x;
    stage[i + STRIDE] = h.y;
    stage[i + 2u * STRIDE] = h.z;
    stage[i + 3u * STRIDE] = h.w;
}
fn tile_put_b_k(g: u32, k: u32, v: vec4<f32>) {
    tile_put_a_k(g + MG, k, v);
}

// Rounds that `subgroups` subgroups take.
fn tile_rounds(subgroups: u32) -> u32 {
    return (4u + subgroups - 1u) / subgroups;
}
fn tile_round(round: u32, subgroup: u32, subgroups: u32) {
    unit_first = round * subgroups;
    unit_count = subgroups;
    unit = (unit_first + subgroup) % 4u;
}
