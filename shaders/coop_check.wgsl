// One tile of a product, c[64,64] = a[64,32] b[64,32]^T: what a device that has cooperative matrices is tried with, before
// products use them, against the tile without.
// variant:
// variant: [HALF] COOP
#include "common/tile_any.wgsl"

@group(0) @binding(next) var<storage, read_write> c: array<f32>;
@group(0) @binding(next) var<storage, read_write> a: array<vec4<f32>>;
@group(0) @binding(next) var<storage, read_write> b: array<vec4<f32>>;

// Groups of four in a row.
const ROW: u32 = 8u;

#include "common/tile_entry.wgsl"
fn block(wg: vec3<u32>, lid: u32) {
    tile_clear(lid);
    for (var q = 0u; q < ROW; q += BK / 4u) {
        for (var u = lid; u < UNITS_A; u += THREADS) {
            let h = u % (BK / 4u);
            let g = u / (BK / 4u);
            let i = 4u * g * ROW + q + h;
            tile_put_a(g, h, a[i], a[i + ROW], a[i + 2u * ROW], a[i + 3u * ROW]);
            tile_put_b(g, h, b[i], b[i + ROW], b[i + 2u * ROW], b[i + 3u * ROW]);
        }
        workgroupBarrier();
        tile_step(lid);
        workgroupBarrier();
    }
    tile_store(lid, 0u, 0u);
}

fn store4(m: u32, n: u32, v: vec4<f32>) {
    let i = m * BN + n;
    c[i] = v.x;
    c[i + 1u] = v.y;
    c[i + 2u] = v.z;
    c[i + 3u] = v.w;
}
