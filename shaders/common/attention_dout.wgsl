// How the tiled attention kernels read four features of a row of the output's gradient; zeros outside. The file that includes this
// binds `dout` (vectors of four with VEC) and the parameter block `p`.
fn dout4(row: u32, rows: u32, head: u32, f: u32) -> vec4<f32> {
    if row >= rows || f >= p.d { return vec4<f32>(0.0); }
    let i = (row * p.heads + head) * p.d + f;
#if VEC
    return wide4(dout[i / 4u]);
#else
    var some = vec4<f32>(dout[i], 0.0, 0.0, 0.0);
    if f + 1u < p.d { some.y = dout[i + 1u]; }
    if f + 2u < p.d { some.z = dout[i + 2u]; }
    if f + 3u < p.d { some.w = dout[i + 3u]; }
    return some;
#end
}
