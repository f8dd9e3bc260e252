// Columns n..n+4 of row t of a linear layer's result, which begins at `part` of y.
#if HALF && !PARTS
fn store4(t: u32, n: u32, v: vec4<f32>) {
    if t >= p.t || n >= p.n { return; }
    let col = p.n_first + n;
#if BIAS
    y[(t * p.n_all + col) / 4u] = kept4(v + vec4<f32>(bias[col], bias[col + 1u], bias[col + 2u], bias[col + 3u]));
#else
    y[(t * p.n_all + col) / 4u] = kept4(v);
#end
}
#else
fn store4(t: u32, n: u32, v: vec4<f32>) {
    if t >= p.t { return; }
    store(t, n, v.x);
    store(t, n + 1u, v.y);
    store(t, n + 2u, v.z);
    store(t, n + 3u, v.w);
}

fn store(t: u32, n: u32, v: f32) {
    if n < p.n {
#if BIAS
        y[part + t * p.n_all + p.n_first + n] = v + bias[p.n_first + n];
#else
        y[part + t * p.n_all + p.n_first + n] = v;
#end
    }
}
#end
