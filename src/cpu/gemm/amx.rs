//! Squares of C on AMX's tiles, which multiply bf16 and add in f32: what [`pieces`](super::pieces) calls.

use std::arch::asm;

/// The configuration of this thread's eight tiles: 16 rows of 64 bytes each. Gives their state back when dropped.
pub(super) struct Tiles;

impl Tiles {
    pub(super) fn configure() -> Tiles {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start: [u8; 15],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        const fn eight<T: Copy>(zero: T, x: T) -> [T; 16] {
            [x, x, x, x, x, x, x, x, zero, zero, zero, zero, zero, zero, zero, zero]
        }
        static CONFIG: Config = Config { palette: 1, start: [0; 15], row_bytes: eight(0, 64), rows: eight(0, 16) };
        // SAFETY: AMX is there, as whoever chose this path checked; palette 1 has eight tiles of this size. No code
        // that the compiler makes touches tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
        Tiles
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `configure`.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// tmm0..3 hold a square of C, by rows of tiles; tmm4..5 a piece of A, tmm6..7 one of B. Small products go first.
macro_rules! tiles {
    ($name:ident, planes: $a_planes:literal $planes:literal, [$($piece:tt $at:literal),* $(,)?]) => {
        /// # Safety
        /// As for `pieces::sums`; `ldc` in bytes, `steps` at least one.
        pub(super) unsafe fn $name(a: *const u8, b: *const u8, steps: usize, c: *mut f32, ldc: usize, fresh: bool) {
            // SAFETY: the caller's promise: the loads stay within `steps` steps of A and B, loads and stores of C
            // within its square.
            unsafe {
                asm!(
                    "test {fresh:e}, {fresh:e}",
                    "jz 2f",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{c} + 1*{ldc}]", "tileloadd tmm1, [{c} + 1*{ldc} + 64]",
                    "tileloadd tmm2, [{d} + 1*{ldc}]", "tileloadd tmm3, [{d} + 1*{ldc} + 64]",
                    "3:",
                    $(tiles!(@load $piece $at), tiles!(@multiply $piece $at),)*
                    concat!("add {a}, 2048*", $a_planes),
                    concat!("add {b}, 2048*", $planes),
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{c} + 1*{ldc}], tmm0", "tilestored [{c} + 1*{ldc} + 64], tmm1",
                    "tilestored [{d} + 1*{ldc}], tmm2", "tilestored [{d} + 1*{ldc} + 64], tmm3",
                    a = inout(reg) a => _, b = inout(reg) b => _, steps = inout(reg) steps => _,
                    c = in(reg) c, d = in(reg) c.wrapping_byte_add(16 * ldc), ldc = in(reg) ldc,
                    row = in(reg) 64usize, fresh = in(reg) fresh as u32,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
    (@load a $at:literal) => {
        concat!("tileloadd tmm4, [{a} + 1*{row} + 2048*", $at, "]\ntileloadd tmm5, [{a} + 1*{row} + 2048*", $at, " + 1024]")
    };
    (@load b $at:literal) => {
        concat!("tileloadd tmm6, [{b} + 1*{row} + 2048*", $at, "]\ntileloadd tmm7, [{b} + 1*{row} + 2048*", $at, " + 1024]")
    };
    // A pair of loads that another follows at once.
    (@load A $at:literal) => { tiles!(@load a $at) };
    (@multiply A $at:literal) => { "" };
    (@multiply $piece:tt $at:literal) => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7"
    };
}

tiles!(tiles_narrow, planes: 1 1, [A 0, b 0]);
tiles!(tiles_1, planes: 3 1, [A 2, b 0, a 1, a 0]);
tiles!(tiles_2, planes: 3 2, [A 0, b 1, a 1, b 0, a 2, a 0]);
tiles!(tiles_3, planes: 3 3, [A 0, b 2, b 1, a 1, b 0, a 2, a 0]);
