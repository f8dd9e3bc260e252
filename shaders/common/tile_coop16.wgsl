// The products of common/tile.wgsl by cooperative matrices of 16 x 16: operands in f16, sums in f32 (Vulkan's
// VK_KHR_cooperative_matrix, as AMD and NVIDIA list it). For activations in f16 (HALF) and weights whose numbers f16 holds;
// numbers of a weight in NF4 and of low-rank factors are rounded to it.
//
// NOT RUN ON HARDWARE YET: no adapter at hand offers such blocks. naga validates it, and where an adapter lists them,
// coop_check.wgsl is run before any product uses them (src/backend/wgpu/trial.rs); TRIMTAB_WGPU_COOP=0 does without.
//
// A workgroup of 128 owns a 64 x 64 block of c, in four units of 32 x 32; a subgroup has a unit at a time, in four 16 x 16
// blocks. However many subgroups there are, round after round goes by until each unit had its turn; subgroups beyond the
// fourth repeat one.
enable f16;
enable wgpu_cooperative_matrix;
#include "common/tile_units.wgsl"

// Rows of a, then columns of b, each BK long with a gap, and on a boundary of 16 bytes, which Vulkan asks for.
const STRIDE: u32 = BK + 8u;
alias Staged = f16;
// At the end 16 rows of each unit, side by side: 32 columns a row.
var<workgroup> spill: array<f32, 2048>;

var<private> c00: coop_mat16x16<f32, C>;
var<private> c01: coop_mat16x16<f32, C>;
var<private> c10: coop_mat16x16<f32, C>;
var<private> c11: coop_mat16x16<f32, C>;

fn tile_clear(lid: u32) {
    for (var i = lid; i < 512u; i += THREADS) { spill[i] = 0.0; }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat16x16<f32, C>>(&spill[0], 32u);
    c00 = zero;
    c01 = zero;
    c10 = zero;
    c11 = zero;
    workgroupBarrier();
}

// Multiplies what is staged.
fn tile_step(lid: u32) {
    let a = (unit / 2u) * 32u * STRIDE;
    let b = B_AT + (unit % 2u) * 32u * STRIDE;
    let b0 = coopLoad<coop_mat16x16<f16, B>>(&stage[b], STRIDE);
    let b1 = coopLoad<coop_mat16x16<f16, B>>(&stage[b + 16u * STRIDE], STRIDE);
    let a0 = coopLoadT<coop_mat16x16<f16, A>>(&stage[a], STRIDE);
    c00 = coopMultiplyAdd(a0, b0, c00);
    c01 = coopMultiplyAdd(a0, b1, c01);
    let a1 = coopLoadT<coop_mat16x16<f16, A>>(&stage[a + 16u * STRIDE], STRIDE);
    c10 = coopMultiplyAdd(a1, b0, c10);
    c11 = coopMultiplyAdd(a1, b1, c11);
}

// Puts rows 16 s .. 16 s + 16 of each unit where all can read them.
fn tile_spill(s: u32) {
    let i = unit * 512u;
    if s == 0u {
        coopStoreT(c00, &spill[i], 32u);
        coopStoreT(c01, &spill[i + 16u], 32u);
    } else {
        coopStoreT(c10, &spill[i], 32u);
        coopStoreT(c11, &spill[i + 16u], 32u);
    }
}

// Calls the kernel's store4 for all elements of the block at (m0, n0) that this round computed.
fn tile_store(lid: u32, m0: u32, n0: u32) {
    for (var s = 0u; s < 2u; s++) {
        tile_spill(s);
        workgroupBarrier();
        for (var i = lid; i < 512u; i += THREADS) {
            let u = i / 128u;
            if u >= unit_first && u < unit_first + unit_count {
                let row = (u / 2u) * 32u + 16u * s + (i % 128u) / 8u;
                let col = (u % 2u) * 32u + 4u * (i % 8u);
                store4(m0 + row, n0 + col, vec4<f32>(spill[4u * i], spill[4u * i + 1u], spill[4u * i + 2u], spill[4u * i + 3u]));
            }
        }
        workgroupBarrier();
    }
}
