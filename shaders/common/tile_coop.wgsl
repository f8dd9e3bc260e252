// The products of common/tile.wgsl by cooperative matrices: subgroups multiply 8 x 8 blocks of f32 together (Metal's
// simdgroup matrices; Vulkan's VK_KHR_cooperative_matrix where it has f32).
//
// NOT RUN ON HARDWARE YET: no adapter at hand offers f32 blocks. naga validates it, and tests/op_matrix.rs runs it where
// an adapter can. Where one lists them, coop_check.wgsl is run before any product uses them
// (src/backend/wgpu/trial.rs); TRIMTAB_WGPU_COOP=0 does without.
//
// A workgroup of 128 owns a 64 x 64 block of c, in four units of 32 x 32; a subgroup has a unit at a time, in sixteen
// 8 x 8 blocks. However many subgroups there are, round after round goes by until each unit had its turn; subgroups
// beyond the fourth repeat one.
enable wgpu_cooperative_matrix;
#include "common/tile_units.wgsl"

// Rows of a, then columns of b, each BK long with a gap; at the end 8 rows of each unit, side by side.
const STRIDE: u32 = BK + 4u;
alias Staged = f32;

var<private> c00: coop_mat8x8<f32, C>;
var<private> c01: coop_mat8x8<f32, C>;
var<private> c02: coop_mat8x8<f32, C>;
var<private> c03: coop_mat8x8<f32, C>;
var<private> c10: coop_mat8x8<f32, C>;
var<private> c11: coop_mat8x8<f32, C>;
var<private> c12: coop_mat8x8<f32, C>;
var<private> c13: coop_mat8x8<f32, C>;
var<private> c20: coop_mat8x8<f32, C>;
var<private> c21: coop_mat8x8<f32, C>;
var<private> c22: coop_mat8x8<f32, C>;
var<private> c23: coop_mat8x8<f32, C>;
var<private> c30: coop_mat8x8<f32, C>;
var<private> c31: coop_mat8x8<f32, C>;
var<private> c32: coop_mat8x8<f32, C>;
var<private> c33: coop_mat8x8<f32, C>;

fn tile_clear(lid: u32) {
    for (var i = lid; i < 8u * STRIDE; i += THREADS) { stage[i] = 0.0; }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat8x8<f32, C>>(&stage[0], STRIDE);
    c00 = zero;
    c01 = zero;
    c02 = zero;
    c03 = zero;
    c10 = zero;
    c11 = zero;
    c12 = zero;
    c13 = zero;
    c20 = zero;
    c21 = zero;
    c22 = zero;
    c23 = zero;
    c30 = zero;
    c31 = zero;
    c32 = zero;
    c33 = zero;
    workgroupBarrier();
}

// Multiplies what is staged.
fn tile_step(lid: u32) {
    for (var k = 0u; k < BK; k += 8u) {
        let a = (unit / 2u) * 32u * STRIDE + k;
        let b = B_AT + (unit % 2u) * 32u * STRIDE + k;
        let b0 = coopLoad<coop_mat8x8<f32, B>>(&stage[b], STRIDE);
        let b1 = coopLoad<coop_mat8x8<f32, B>>(&stage[b + 8u * STRIDE], STRIDE);
        let b2 = coopLoad<coop_mat8x8<f32, B>>(&stage[b + 16u * STRIDE], STRIDE);
        let b3 = coopLoad<coop_mat8x8<f32, B>>(&stage[b + 24u * STRIDE], STRIDE);
        let a0 = coopLoadT<coop_mat8x8<f32, A>>(&stage[a], STRIDE);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        let a1 = coopLoadT<coop_mat8x8<f32, A>>(&stage[a + 8u * STRIDE], STRIDE);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
        let a2 = coopLoadT<coop_mat8x8<f32, A>>(&stage[a + 16u * STRIDE], STRIDE);
        c20 = coopMultiplyAdd(a2, b0, c20);
        c21 = coopMultiplyAdd(a2, b1, c21);
        c22 = coopMultiplyAdd(a2, b2, c22);
        c23 = coopMultiplyAdd(a2, b3, c23);
        let a3 = coopLoadT<coop_mat8x8<f32, A>>(&stage[a + 24u * STRIDE], STRIDE);
        c30 = coopMultiplyAdd(a3, b0, c30);
        c31 = coopMultiplyAdd(a3, b1, c31);
        c32 = coopMultiplyAdd(a3, b2, c32);
        c33 = coopMultiplyAdd(a3, b3, c33);
    }
}

// Stages rows 8 s .. 8 s + 8 of each unit: 32 columns a row.
fn tile_spill(s: u32) {
    let i = unit * 256u;
    switch s {
        case 0u: {
            coopStoreT(c00, &stage[i], 32u);
            coopStoreT(c01, &stage[i + 8u], 32u);
            coopStoreT(c02, &stage[i + 16u], 32u);
            coopStoreT(c03, &stage[i + 24u], 32u);
        }
        case 1u: {
            coopStoreT(c10, &stage[i], 32u);
            coopStoreT(c11, &stage[i + 8u], 32u);
            coopStoreT(c12, &stage[i + 16u], 32u);
            coopStoreT(c13, &stage[i + 24u], 32u);
        }
        case 2u: {
            coopStoreT(c20, &stage[i], 32u);
            coopStoreT(c21, &stage[i + 8u], 32u);
            coopStoreT(c22, &stage[i + 16u], 32u);
            coopStoreT(c23, &stage[i + 24u], 32u);
        }
        default: {
            coopStoreT(c30, &stage[i], 32u);
            coopStoreT(c31, &stage[i + 8u], 32u);
            coopStoreT(c32, &stage[i + 16u], 32u);
            coopStoreT(c33, &stage[i + 24u], 32u);
        }
    }
}

// Calls the kernel's store4 for all elements of the block at (m0, n0) that this round computed.
fn tile_store(lid: u32, m0: u32, n0: u32) {
    for (var s = 0u; s < 4u; s++) {
        tile_spill(s);
        workgroupBarrier();
        for (var i = lid; i < 256u; i += THREADS) {
            let u = i / 64u;
            if u >= unit_first && u < unit_first + unit_count {
                let row = (u / 2u) * 32u + 8u * s + (i % 64u) / 8u;
                let col = (u % 2u) * 32u + 4u * (i % 8u);
                store4(m0 + row, n0 + col, vec4<f32>(stage[4u * i], stage[4u * i + 1u], stage[4u * i + 2u], stage[4u * i + 3u]));
            }
        }
        workgroupBarrier();
    }
}
