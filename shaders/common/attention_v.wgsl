// How the tiled attention kernels read four features of a row of values; zeros outside. The file that includes this
// binds `v` (vectors of four with VEC) and the parameter block `p`.
fn v4(row: u32, rows: u32, head: u32, f: u32) -> vec4<f32> {
    if row >= rows || f >= p.d { return vec4<f32>(0.0); }
    let i = (row * p.kv_heads + head) * p.d + f;
#if VEC
    return wide4(v[i / 4u]);
#else
    var some = vec4<f32>(v[i], 0.0, 0.0, 0.0);
    if f + 1u < p.d { some.y = v[i + 1u]; }
    if f + 2u < p.d { some.z = v[i + 2u]; }
    if f + 3u < p.d { some.w = v[i + 3u]; }
    return some;
#end
}
