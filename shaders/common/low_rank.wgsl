// The operands of a linear layer's low-rank part: four columns of a row of xa, scaled, and of B, zeros beyond the ends.
#if HALF
fn xa4(t: u32, r: u32) -> vec4<f32> {
    if t >= p.t || r >= p.r { return vec4<f32>(); }
    return wide4(xa[(t * p.r + r) / 4u]) * p.scale;
}
#else
fn xa4(t: u32, r: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if t >= p.t { return v; }
    let i = t * p.r + r;
    if r < p.r { v.x = xa[i]; }
    if r + 1u < p.r { v.y = xa[i + 1u]; }
    if r + 2u < p.r { v.z = xa[i + 2u]; }
    if r + 3u < p.r { v.w = xa[i + 3u]; }
    return v * p.scale;
}
#end
fn lb4(n: u32, r: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if n >= p.n { return v; }
    let i = (p.n_first + n) * p.r + r;
    if r < p.r { v.x = lb[i]; }
    if r + 1u < p.r { v.y = lb[i + 1u]; }
    if r + 2u < p.r { v.z = lb[i + 2u]; }
    if r + 3u < p.r { v.w = lb[i + 3u]; }
    return v;
}
