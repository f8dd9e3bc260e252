// A block of a matrix product, c[m,n] += a[m,k] b[k,n], kept in registers: the inner loop of every dense kernel.
//
// A workgroup owns a BM x BN block of c. BK columns of a and rows of b at a time go through workgroup memory, where
// groups of 4 rows (columns) lie side by side; each thread keeps a TM x 4 block. The shapes:
//   default  64 x 64, 128 threads, 8 x 4 each
//   NARROW   64 x 16,  64 threads, 4 x 4 each: few columns (the low-rank products)
//   FLAT     16 x 64,  64 threads, 4 x 4 each: few rows
// The including file has store4(m, n, v), loads a 4 x 4 block with tile_put_a / tile_put_b and calls tile_step between barriers. A linear
// layer's low-rank part goes by RK columns of a and rows of b at a time, through low_put_b and low_step.
//
// With F16 (default shape only) b's tile holds f16: half the memory, and exact, since that is how b is stored. The
// low-rank part is f32 nevertheless, and its b takes the second half of a's tile.
#if NARROW
const BM: u32 = 64u;
const BN: u32 = 16u;
const TM: u32 = 4u;
#end
#if FLAT
const BM: u32 = 16u;
const BN: u32 = 64u;
const TM: u32 = 4u;
#end
#if !NARROW && !FLAT
const BM: u32 = 64u;
const BN: u32 = 64u;
const TM: u32 = 8u;
#end
const BK: u32 = 16u;
const THREADS: u32 = BM * BN / (TM * 4u);
// Groups of four rows, and of four columns.
const MG: u32 = BM / 4u;
const NG: u32 = BN / 4u;

// Element (k, group); the rows are one longer than needed, so that stores of a column spread over the banks.
var<workgroup> tile_a: array<vec4<f32>, BK * (MG + 1u)>;
#if F16
alias TileB = vec4<f16>;
const RK: u32 = BK / 2u;
#else
alias TileB = vec4<f32>;
const RK: u32 = BK;
#end
var<workgroup> tile_b: array<TileB, BK * (NG + 1u)>;

// Indexed by constants only, which lets compilers keep it in registers.
var<private> acc: array<vec4<f32>, TM>;

// Blocks of 4 x 4 in a's tile and in b's: thread `lid` loads those from tile_first_a (tile_first_b) on, in steps of
// THREADS. The two start at opposite ends, so that no thread loads twice while another idles.
const UNITS_A: u32 = MG * (BK / 4u);
const UNITS_B: u32 = NG * (BK / 4u);

// Rows (columns) 4g..4g+4 of a's (b's) tile at k = 4h..4h+4, each v one of them along k.
fn tile_put_a(g: u32, h: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    let i = 4u * h * (MG + 1u) + g;
    tile_a[i] = vec4<f32>(v0.x, v1.x, v2.x, v3.x);
    tile_a[i + MG + 1u] = vec4<f32>(v0.y, v1.y, v2.y, v3.y);
    tile_a[i + 2u * (MG + 1u)] = vec4<f32>(v0.z, v1.z, v2.z, v3.z);
    tile_a[i + 3u * (MG + 1u)] = vec4<f32>(v0.w, v1.w, v2.w, v3.w);
}
fn tile_put_b(g: u32, h: u32, v0: TileB, v1: TileB, v2: TileB, v3: TileB) {
    let i = 4u * h * (NG + 1u) + g;
    tile_b[i] = TileB(v0.x, v1.x, v2.x, v3.x);
    tile_b[i + NG + 1u] = TileB(v0.y, v1.y, v2.y, v3.y);
    tile_b[i + 2u * (NG + 1u)] = TileB(v0.z, v1.z, v2.z, v3.z);
    tile_b[i + 3u * (NG + 1u)] = TileB(v0.w, v1.w, v2.w, v3.w);
}
// The same where the four values of one k are at hand.
fn tile_put_a_k(g: u32, k: u32, v: vec4<f32>) {
    tile_a[k * (MG + 1u) + g] = v;
}
fn tile_put_b_k(g: u32, k: u32, v: TileB) {
    tile_b[k * (NG + 1u) + g] = v;
}

// The same for b of the low-rank part, where h and k go up to RK.
fn low_put_b(g: u32, h: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
#if F16
    tile_put_a(g, h + RK / 4u, v0, v1, v2, v3);
#else
    tile_put_b(g, h, v0, v1, v2, v3);
#end
}
fn low_put_b_k(g: u32, k: u32, v: vec4<f32>) {
#if F16
    tile_put_a_k(g, k + RK, v);
#else
    tile_put_b_k(g, k, v);
#end
}

fn tile_clear(lid: u32) {
    acc[0] = vec4<f32>(0.0);
    acc[1] = vec4<f32>(0.0);
    acc[2] = vec4<f32>(0.0);
    acc[3] = vec4<f32>(0.0);
#if !NARROW && !FLAT
    acc[4] = vec4<f32>(0.0);
    acc[5] = vec4<f32>(0.0);
    acc[6] = vec4<f32>(0.0);
    acc[7] = vec4<f32>(0.0);
#end
}

// Calls the kernel's store4 for the thread's elements of the block at (m0, n0).
fn tile_store(lid: u32, m0: u32, n0: u32) {
    let m = m0 + tile_row(lid);
    let n = n0 + tile_col(lid);
    store4(m, n, acc[0]);
    store4(m + 1u, n, acc[1]);
    store4(m + 2u, n, acc[2]);
    store4(m + 3u, n, acc[3]);
#if !NARROW && !FLAT
    store4(m + 4u, n, acc[4]);
    store4(m + 5u, n, acc[5]);
    store4(m + 6u, n, acc[6]);
    store4(m + 7u, n, acc[7]);
#end
}

// The first row, within the workgroup's block, of thread `lid`'s block, and its first column.
fn tile_row(lid: u32) -> u32 {
    return (lid / NG) * TM;
}
fn tile_col(lid: u32) -> u32 {
    return (lid % NG) * 4u;
}

// Multiplies the tiles in workgroup memory.
fn tile_step(lid: u32) {
    let n = lid % NG;
    for (var k = 0u; k < BK; k++) {
        tile_add(lid, k, vec4<f32>(tile_b[k * (NG + 1u) + n]));
    }
}

// The same for the low-rank part.
fn low_step(lid: u32) {
    let n = lid % NG;
    for (var k = 0u; k < RK; k++) {
#if F16
        tile_add(lid, k, tile_a[(k + RK) * (MG + 1u) + n]);
#else
        tile_add(lid, k, tile_b[k * (NG + 1u) + n]);
#end
    }
}

// Adds the products of the thread's rows of a at k with four columns of b.
fn tile_add(lid: u32, k: u32, b: vec4<f32>) {
    let g = (lid / NG) * (TM / 4u);
    let a = tile_a[k * (MG + 1u) + g];
    acc[0] = fma(vec4<f32>(a.x), b, acc[0]);
    acc[1] = fma(vec4<f32>(a.y), b, acc[1]);
    acc[2] = fma(vec4<f32>(a.z), b, acc[2]);
    acc[3] = fma(vec4<f32>(a.w), b, acc[3]);
#if !NARROW && !FLAT
    let a2 = tile_a[k * (MG + 1u) + g + 1u];
    acc[4] = fma(vec4<f32>(a2.x), b, acc[4]);
    acc[5] = fma(vec4<f32>(a2.y), b, acc[5]);
    acc[6] = fma(vec4<f32>(a2.z), b, acc[6]);
    acc[7] = fma(vec4<f32>(a2.w), b, acc[7]);
#end
}
