// An invocation's part of x[t,:] · W[n..n+4,:], four columns at a time.
fn row_sums(t: u32, n: u32, lid: u32) -> vec4<f32> {
    var sums = vec4<f32>(0.0);
    let fours = p.k / 4u;
    let rows = min(n + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * fours;
    for (var q = lid; q < fours; q += WG) {
        let v = wide4(x[t * fours + q]);
        sums += vec4<f32>(
            dot(v, weight4(rows.x + q)),
            dot(v, weight4(rows.y + q)),
            dot(v, weight4(rows.z + q)),
            dot(v, weight4(rows.w + q)),
        );
    }
    return sums;
}
