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

// Dropout's factor for element i: 0 or `keep_scale` = 1/(1-p). rng = (seed lo, seed hi, step, micro-batch); an
// element is kept iff its word is at least `threshold` = p * 2^32.
fn dropout_factor(i: u32, site: u32, rng: vec4<u32>, threshold: u32, keep_scale: f32) -> f32 {
    let r = philox(vec4<u32>(i >> 2u, site, rng.z, rng.w), rng.xy);
    let lane = i & 3u;
    let word = select(select(r.x, r.y, lane == 1u), select(r.z, r.w, lane == 3u), lane >= 2u);
    return select(0.0, keep_scale, word >= threshold);
}

// The factors of elements i..i+4 (i a multiple of 4).
fn dropout_factor4(i: u32, site: u32, rng: vec4<u32>, threshold: u32, keep_scale: f32) -> vec4<f32> {
    let r = philox(vec4<u32>(i >> 2u, site, rng.z, rng.w), rng.xy);
    return select(vec4<f32>(0.0), vec4<f32>(keep_scale), r >= vec4<u32>(threshold));
}
