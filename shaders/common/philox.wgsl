// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), the twin of
// src/cpu/philox.rs: four random words from a counter and a key, the same on every device.

// The high and low words of a * b.
fn philox_mul(a: u32, b: u32) -> vec2<u32> {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let ll = al * bl;
    let hl = ah * bl + (ll >> 16u); // at most (2^16 - 1)^2 + 2^16 - 1: no overflow
    let lh = al * bh + (hl & 0xffffu);
    return vec2<u32>(ah * bh + (hl >> 16u) + (lh >> 16u), a * b);
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let m0 = philox_mul(0xD2511F53u, c.x);
        let m1 = philox_mul(0xCD9E8D57u, c.z);
        c = vec4<u32>(m1.x ^ c.y ^ k.x, m1.y, m0.x ^ c.w ^ k.y, m0.y);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Elements are numbered in two words, the low one first: of element a + b, and of column `col` of a row of `cols`.
fn wide_add(a: vec2<u32>, b: u32) -> vec2<u32> {
    let low = a.x + b;
    return vec2<u32>(low, a.y + select(0u, 1u, low < b));
}
fn wide_number(row: u32, cols: u32, col: u32) -> vec2<u32> {
    return wide_add(philox_mul(row, cols).yx, col);
}

// The words of the four elements around i; rng = (seed lo, seed hi, step, micro-batch). What i / 4 has beyond its low word
// is in the site's upper bits.
fn dropout_words(i: vec2<u32>, site: u32, rng: vec4<u32>) -> vec4<u32> {
    return philox(vec4<u32>(i.x >> 2u | i.y << 30u, site ^ (i.y >> 2u << 20u), rng.z, rng.w), rng.xy);
}

// Dropout's factor for element i: 0 or `keep_scale` = 1/(1-p); an element is kept iff its word is at least `threshold` =
// p * 2^32.
fn dropout_factor(i: vec2<u32>, site: u32, rng: vec4<u32>, threshold: u32, keep_scale: f32) -> f32 {
    let r = dropout_words(i, site, rng);
    let lane = i.x & 3u;
    let word = select(select(r.x, r.y, lane == 1u), select(r.z, r.w, lane == 3u), lane >= 2u);
    return select(0.0, keep_scale, word >= threshold);
}

// The factors of elements i..i+4.
fn dropout_factor4(i: vec2<u32>, site: u32, rng: vec4<u32>, threshold: u32, keep_scale: f32) -> vec4<f32> {
    if (i.x & 3u) == 0u {
        return select(vec4<f32>(0.0), vec4<f32>(keep_scale), dropout_words(i, site, rng) >= vec4<u32>(threshold));
    }
    return vec4<f32>(
        dropout_factor(i, site, rng, threshold, keep_scale),
        dropout_factor(wide_add(i, 1u), site, rng, threshold, keep_scale),
        dropout_factor(wide_add(i, 2u), site, rng, threshold, keep_scale),
        dropout_factor(wide_add(i, 3u), site, rng, threshold, keep_scale),
    );
}
