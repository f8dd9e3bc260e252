// What the tiled attention kernels share. A workgroup of 128 invocations holds a tile of 64 rows (queries, or for dk and
// dv keys) against tiles of 32 columns (the other side). Invocation lid has rows 4 g .. 4 g + 3 for g = lid / 8, and of
// the columns, or of each 32 features, those of number h = lid % 8: columns h, h + 8, h + 16, h + 24, features
// 4 h .. 4 h + 3.
//
// Products over features go by chunks of 32: `left` holds a chunk of the rows' operand as [8 quads][64 rows], `right` one
// of the columns' operand as [8 quads][32 columns], both with a gap against bank conflicts. Products over columns follow:
// `left` then holds the 64×32 tile of weights as [32 columns][16 quads of rows], `right` 32 features of the columns'
// operand as [32 columns][8 quads].
const ROWS: u32 = 64u;
const COLS: u32 = 32u;
const THREADS: u32 = 128u;
const CHUNK: u32 = 32u;
const LEFT: u32 = 65u;
const RIGHT: u32 = 33u;

struct Params {
    // Queries, keys, features of a head, heads, heads of keys.
    t: u32,
    s: u32,
    d: u32,
    heads: u32,
    kv_heads: u32,
    scale: f32,
    causal: u32,
    // Queries see keys after t − window; 0: all.
    window: u32,
    // The first tile of rows of this dispatch.
    tile: u32,
    // −∞, which WGSL cannot write.
    negative_infinity: u32,
    // The largest distance that the table of biases tells apart.
    farthest: u32,
}

var<workgroup> left: array<vec4<f32>, 520>;
var<workgroup> right: array<vec4<f32>, 264>;
// The first column that any row of the tile meets, and one past the last.
var<workgroup> low: atomic<u32>;
var<workgroup> high: atomic<u32>;
var<workgroup> ends: vec2<u32>;

// Four rows' sums over four columns or features each.
alias Quad = array<vec4<f32>, 4>;

// The keys that a query sees: first, one past the last; (0, 0) if none.
fn visible(t: u32, key_range: vec2<i32>, keys: u32, causal: u32, window: u32) -> vec2<u32> {
    var lo = u32(clamp(key_range.x, 0, i32(keys)));
    var hi = u32(clamp(key_range.y, 0, i32(keys)));
    if causal != 0u { hi = min(hi, t + 1u); }
    if window != 0u { lo = max(lo, t + 1u - min(window, t + 1u)); }
    return select(vec2<u32>(0u), vec2<u32>(lo, hi), lo < hi);
}

// The union of what the rows of the tile meet, each invocation bringing one row's (lo, hi).
fn meet(lid: u32, range: vec2<u32>) -> vec2<u32> {
    if lid == 0u {
        atomicStore(&low, 0xffffffffu);
        atomicStore(&high, 0u);
    }
    workgroupBarrier();
    if range.x < range.y {
        atomicMin(&low, range.x);
        atomicMax(&high, range.y);
    }
    workgroupBarrier();
    if lid == 0u { ends = vec2<u32>(atomicLoad(&low), atomicLoad(&high)); }
    return workgroupUniformLoad(&ends);
}

// acc[i][j] += Σ over the chunk of row 4 g + i times column h + 8 j.
fn scores(lid: u32, quads: u32, acc: ptr<function, Quad>) {
    let g = 4u * (lid / 8u);
    let h = lid % 8u;
    for (var f = 0u; f < quads; f++) {
        let r = f * RIGHT + h;
        let k0 = right[r];
        let k1 = right[r + 8u];
        let k2 = right[r + 16u];
        let k3 = right[r + 24u];
        let q0 = left[f * LEFT + g];
        let q1 = left[f * LEFT + g + 1u];
        let q2 = left[f * LEFT + g + 2u];
        let q3 = left[f * LEFT + g + 3u];
        (*acc)[0] += vec4<f32>(dot(q0, k0), dot(q0, k1), dot(q0, k2), dot(q0, k3));
        (*acc)[1] += vec4<f32>(dot(q1, k0), dot(q1, k1), dot(q1, k2), dot(q1, k3));
        (*acc)[2] += vec4<f32>(dot(q2, k0), dot(q2, k1), dot(q2, k2), dot(q2, k3));
        (*acc)[3] += vec4<f32>(dot(q3, k0), dot(q3, k1), dot(q3, k2), dot(q3, k3));
    }
}

// Writes the invocation's weights (of row i and column h + 8 j: w[i][j]) to `left`, transposed.
fn put_weights(lid: u32, w: ptr<function, Quad>) {
    let g = lid / 8u;
    let h = lid % 8u;
    left[h * 16u + g] = vec4<f32>((*w)[0].x, (*w)[1].x, (*w)[2].x, (*w)[3].x);
    left[(h + 8u) * 16u + g] = vec4<f32>((*w)[0].y, (*w)[1].y, (*w)[2].y, (*w)[3].y);
    left[(h + 16u) * 16u + g] = vec4<f32>((*w)[0].z, (*w)[1].z, (*w)[2].z, (*w)[3].z);
    left[(h + 24u) * 16u + g] = vec4<f32>((*w)[0].w, (*w)[1].w, (*w)[2].w, (*w)[3].w);
}

// acc[i] += Σ over the 32 columns of the weight of row 4 g + i times features 4 h ...
fn weigh(lid: u32, acc: ptr<function, Quad>) {
    let g = lid / 8u;
    let h = lid % 8u;
    for (var c = 0u; c < COLS; c++) {
        let w = left[c * 16u + g];
        let v = right[c * 8u + h];
        (*acc)[0] += w.x * v;
        (*acc)[1] += w.y * v;
        (*acc)[2] += w.z * v;
        (*acc)[3] += w.w * v;
    }
}

// Quads of features in the chunk at `start`.
fn quads(start: u32, d: u32) -> u32 {
    return min(CHUNK, d - start + 3u) / 4u;
}
