// A block of a matrix product, c[m,n] += a[m,k] b[k,n], kept in registers: the inner loop of every dense kernel.
//
// A workgroup owns a BM x BN block of c. BK columns of a and rows of b at a time go through workgroup memory, where
// groups of 4 rows (columns) are side by side; each thread keeps TM rows of one or two groups of 4 columns. The shapes:
//   default  64 x 64,  128 threads, 8 x 4 each
//   LARGE    128 x 128, 256 threads, 8 x 8 each: four loads of four numbers for 64 products, where others take three for 32
//   NARROW   64 x 16,   64 threads, 4 x 4 each: few columns (the low-rank products)
//   FLAT     16 x 64,   64 threads, 4 x 4 each: few rows
// An element of c is the same chain of fused multiply-adds over k in each of them, so that the shape changes no bit.
//
// The including file has store4(m, n, v), loads a 4 x 4 block with tile_put_a / tile_put_b and calls tile_step
// between barriers.
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
#if LARGE
const BM: u32 = 128u;
const BN: u32 = 128u;
const TM: u32 = 8u;
const TN: u32 = 8u;
#else
const TN: u32 = 4u;
#end
#if !NARROW && !FLAT && !LARGE
const BM: u32 = 64u;
const BN: u32 = 64u;
const TM: u32 = 8u;
#end
const BK: u32 = 16u;
// Threads along a row of blocks, and all.
const ACROSS: u32 = BN / TN;
const THREADS: u32 = BM / TM * ACROSS;
// Groups of four rows, and of four columns.
const MG: u32 = BM / 4u;
const NG: u32 = BN / 4u;

// Element (k, group); the rows are one longer than needed, so that stores of a column spread over the banks.
var<workgroup> tile_a: array<vec4<f32>, BK * (MG + 1u)>;
var<workgroup> tile_b: array<vec4<f32>, BK * (NG + 1u)>;

// Indexed by constants only, which lets compilers keep it in registers.
var<private> acc: array<vec4<f32>, TM * TN / 4u>;

// Blocks of 4 x 4 in a's tile and in b's: thread `lid` loads those from tile_first_a (tile_first_b) on, in steps of
// THREADS. The two start at opposite ends, so that no thread loads twice while another idles; where a thread keeps 32
// products or more, the blocks of both are as many as the threads.
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
fn tile_put_b(g: u32, h: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    let i = 4u * h * (NG + 1u) + g;
    tile_b[i] = vec4<f32>(v0.x, v1.x, v2.x, v3.x);
    tile_b[i + NG + 1u] = vec4<f32>(v0.y, v1.y, v2.y, v3.y);
    tile_b[i + 2u * (NG + 1u)] = vec4<f32>(v0.z, v1.z, v2.z, v3.z);
    tile_b[i + 3u * (NG + 1u)] = vec4<f32>(v0.w, v1.w, v2.w, v3.w);
}
// The same where the four values of one k are at hand.
fn tile_put_a_k(g: u32, k: u32, v: vec4<f32>) {
    tile_a[k * (MG + 1u) + g] = v;
}
fn tile_put_b_k(g: u32, k: u32, v: vec4<f32>) {
    tile_b[k * (NG + 1u) + g] = v;
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
#if LARGE
    acc[8] = vec4<f32>(0.0);
    acc[9] = vec4<f32>(0.0);
    acc[10] = vec4<f32>(0.0);
    acc[11] = vec4<f32>(0.0);
    acc[12] = vec4<f32>(0.0);
    acc[13] = vec4<f32>(0.0);
    acc[14] = vec4<f32>(0.0);
    acc[15] = vec4<f32>(0.0);
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
#if LARGE
    store4(m, n + BN / 2u, acc[8]);
    store4(m + 1u, n + BN / 2u, acc[9]);
    store4(m + 2u, n + BN / 2u, acc[10]);
    store4(m + 3u, n + BN / 2u, acc[11]);
    store4(m + 4u, n + BN / 2u, acc[12]);
    store4(m + 5u, n + BN / 2u, acc[13]);
    store4(m + 6u, n + BN / 2u, acc[14]);
    store4(m + 7u, n + BN / 2u, acc[15]);
#end
}

// The first row, within the workgroup's block, of thread `lid`'s rows, and the first column of its first group. The second
// is half a block further: threads side by side read groups side by side.
fn tile_row(lid: u32) -> u32 {
    return (lid / ACROSS) * TM;
}
fn tile_col(lid: u32) -> u32 {
    return (lid % ACROSS) * 4u;
}

// Multiplies the tiles in workgroup memory.
fn tile_step(lid: u32) {
    var a = (lid / ACROSS) * (TM / 4u);
    var b = lid % ACROSS;
    for (var k = 0u; k < BK; k++) {
#if LARGE
        tile_add(a, tile_b[b], tile_b[b + NG / 2u]);
#else
        tile_add(a, tile_b[b]);
#end
        a += MG + 1u;
        b += NG + 1u;
    }
}

// Adds the products of the thread's rows of a, from group `at` on, with its columns of b.
#if LARGE
fn tile_add(at: u32, b: vec4<f32>, b2: vec4<f32>) {
#else
fn tile_add(at: u32, b: vec4<f32>) {
#end
    let a = tile_a[at];
    acc[0] = fma(vec4<f32>(a.x), b, acc[0]);
    acc[1] = fma(vec4<f32>(a.y), b, acc[1]);
    acc[2] = fma(vec4<f32>(a.z), b, acc[2]);
    acc[3] = fma(vec4<f32>(a.w), b, acc[3]);
#if !NARROW && !FLAT
    let a2 = tile_a[at + 1u];
    acc[4] = fma(vec4<f32>(a2.x), b, acc[4]);
    acc[5] = fma(vec4<f32>(a2.y), b, acc[5]);
    acc[6] = fma(vec4<f32>(a2.z), b, acc[6]);
    acc[7] = fma(vec4<f32>(a2.w), b, acc[7]);
#end
#if LARGE
    acc[8] = fma(vec4<f32>(a.x), b2, acc[8]);
    acc[9] = fma(vec4<f32>(a.y), b2, acc[9]);
    acc[10] = fma(vec4<f32>(a.z), b2, acc[10]);
    acc[11] = fma(vec4<f32>(a.w), b2, acc[11]);
    acc[12] = fma(vec4<f32>(a2.x), b2, acc[12]);
    acc[13] = fma(vec4<f32>(a2.y), b2, acc[13]);
    acc[14] = fma(vec4<f32>(a2.z), b2, acc[14]);
    acc[15] = fma(vec4<f32>(a2.w), b2, acc[15]);
#end
}
