// Sums and maxima over a workgroup, the same value for each of its invocations. Include it where a kernel reduces, with
// a constant WG, its invocations: a power of two. The entry point ends its parameters with common/lane.wgsl and makes
// `Lane(lid, subgroup, subgroups)`.
//
// With SUBGROUP a subgroup adds up by itself, and what its subgroups found is added in their order; without, a tree
// over workgroup memory. How large subgroups are, and whether they are full, does not matter. (WGSL says `enable
// subgroups;` here; naga 30 knows the functions without it and refuses the line.)
struct Lane {
    index: u32,
    subgroup: u32,
    subgroups: u32,
}
#if !SUBGROUP
const subgroup: u32 = 0u;
const subgroups: u32 = 1u;
#end

// Only those that a kernel uses take room.
var<workgroup> lanes: array<f32, WG>;
var<workgroup> lanes4: array<vec4<f32>, WG>;

fn reduce_add(lane: Lane, value: f32) -> f32 {
    // What an earlier reduction left is read by then.
    workgroupBarrier();
#if SUBGROUP
    let part = subgroupAdd(value);
    if subgroupBroadcastFirst(lane.index) == lane.index { lanes[lane.subgroup] = part; }
    workgroupBarrier();
    var all = lanes[0];
    for (var i = 1u; i < lane.subgroups; i++) { all += lanes[i]; }
    return all;
#else
    lanes[lane.index] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half { lanes[lane.index] += lanes[lane.index + half]; }
    }
    workgroupBarrier();
    return lanes[0];
#end
}

// The same of four numbers at a time.
fn reduce_add4(lane: Lane, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
#if SUBGROUP
    let part = subgroupAdd(value);
    if subgroupBroadcastFirst(lane.index) == lane.index { lanes4[lane.subgroup] = part; }
    workgroupBarrier();
    var all = lanes4[0];
    for (var i = 1u; i < lane.subgroups; i++) { all += lanes4[i]; }
    return all;
#else
    lanes4[lane.index] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half { lanes4[lane.index] += lanes4[lane.index + half]; }
    }
    workgroupBarrier();
    return lanes4[0];
#end
}

fn reduce_max(lane: Lane, value: f32) -> f32 {
    workgroupBarrier();
#if SUBGROUP
    let part = subgroupMax(value);
    if subgroupBroadcastFirst(lane.index) == lane.index { lanes[lane.subgroup] = part; }
    workgroupBarrier();
    var all = lanes[0];
    for (var i = 1u; i < lane.subgroups; i++) { all = max(all, lanes[i]); }
    return all;
#else
    lanes[lane.index] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half { lanes[lane.index] = max(lanes[lane.index], lanes[lane.index + half]); }
    }
    workgroupBarrier();
    return lanes[0];
#end
}
