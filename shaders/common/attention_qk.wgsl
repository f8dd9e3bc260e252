// How the tiled attention kernels read four features of a row of queries and keys; zeros outside. The file that includes this
// binds `q` and `k` (vectors of four with VEC) and the parameter block `p`.
fn q4(row: u32, rows: u32, head: u32, f: u32) -> vec4<f32> {
    if row >= rows || f >= p.d { return vec4<f32>(0.0); }
    let i = (row * p.heads + head) * p.d + f;
#if VEC
    return wide4(q[i / 4u]);
#else
    var some = vec4<f32>(q[i], 0.0, 0.0, 0.0);
    if f + 1u < p.d { some.y = q[i + 1u]; }
    if f + 2u < p.d { some.z = q[i + 2u]; }
    if f + 3u < p.d { some.w = q[i + 3u]; }
    return some;
#end
}
fn k4(row: u32, rows: u32, head: u32, f: u32) -> vec4<f32> {
    if row >= rows || f >= p.d { return vec4<f32>(0.0); }
    let i = (row * p.kv_heads + head) * p.d + f;
#if VEC
    return wide4(k[i / 4u]);
#else
    var some = vec4<f32>(k[i], 0.0, 0.0, 0.0);
    if f + 1u < p.d { some.y = k[i + 1u]; }
    if f + 2u < p.d { some.z = k[i + 2u]; }
    if f + 3u < p.d { some.w = k[i + 3u]; }
    return some;
#end
}
