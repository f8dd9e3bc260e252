// What the launch before the backward kernels left in `stats` (attention_delta.wgsl); the file that includes this binds it
// and has the parameter block `p`.

// lse and δ of a query.
fn stat(head: u32, t: u32) -> vec2<f32> {
    if t >= p.t { return vec2<f32>(0.0); }
    return stats[head * p.t + t];
}

#if BIAS
// The key at distance 0 of a query.
fn middle(t: u32) -> i32 {
    if t >= p.t { return 0; }
    let parts = stats[p.heads * p.t + t];
    return i32(parts.x) * 4096 + i32(parts.y);
}

fn bias_at(i: u32) -> f32 {
    return stats[(p.heads + 1u) * p.t + i].x;
}

#include "common/attention_bias.wgsl"
#end
