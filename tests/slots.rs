//! What `examples/slots` counts in a listing of machine code.

#[path = "../examples/slots/sass.rs"]
mod sass;

use sass::{Work, main_loops};

/// A kernel with two loops, the outer one with products too; one that has none in its loop; and one without loops.
const LISTING: &str = "
	.section	.text.multiplies,\"ax\",@progbits
multiplies:
.text.multiplies:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0020*/                   MUFU.EX2 R5, R5 ;
.L_x_2:
        /*0030*/              @!P0 NANOSLEEP R4 ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/                   MUFU.RCP R5, R5 ;
        /*0070*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0080*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0090*/                   IADD3 R2, R2, 0x1, RZ ;
        /*00a0*/               @P2 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   BRA `(.L_x_3) ;
	.section	.text.adds,\"ax\",@progbits
.L_x_4:
        /*0000*/                   FADD R1, R1, R2 ;
        /*0010*/                   BRA `(.L_x_4) ;
	.section	.text.stores,\"ax\",@progbits
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0010*/                   BRA `(.L_x_9) ;
";

#[test]
fn the_loop_with_most_products_for_an_instruction_counts() {
    let found = main_loops(LISTING);
    // A quarter of 2 · 64 · 128 · 16, in three instructions; the outer loop has three quarters more in ten.
    let inner = Work { slots: 3, tensor: 65_536, special: 0 };
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("multiplies".to_owned(), inner)]);
    // With fewer instructions around it, the outer one has more products for each.
    let shorter = LISTING.replace("                   IADD3 R2, R2, 0x1, RZ ;", "").replace("@!P0 NANOSLEEP R4", "NOP");
    let outer = Work { slots: 7, tensor: 196_608, special: 2 };
    assert_eq!(main_loops(&shorter)["multiplies"], outer);
}
