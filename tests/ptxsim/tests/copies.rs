//! Tensor copies of one to three dimensions, both ways, with every swizzle, and boxes that stick out of their tensor.

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::{Launch, Memory, Module, Param, Schedule, run};

/// One thread loads a box by the first map at `at`, and stores it by the second at `to`; `raw` gets shared memory as it is.
fn kernel(rank: usize, at: &[i32], to: &[i32], bytes: usize) -> String {
    let point = |at: &[i32]| at.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    let mut raw = String::new();
    for i in (0..bytes).step_by(4) {
        raw += &format!("ld.shared.u32 %r2, [%r0+{i}];\nst.global.u32 [%rd2+{i}], %r2;\n");
    }
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .align 64 .b8 from[128], .param .align 64 .b8 to[128], .param .u64 raw)\n{{\n\
         .reg .b64 %rd<4>; .reg .b32 %r<8>; .reg .pred %p<2>;\n.shared .align 1024 .b8 tile[{bytes}];\n\
         .shared .align 8 .b8 bar[8];\n\
         mov.b64 %rd0, from;\ncvta.param.u64 %rd0, %rd0;\nmov.b64 %rd1, to;\ncvta.param.u64 %rd1, %rd1;\n\
         ld.param.u64 %rd2, [raw];\nmov.u32 %r0, tile;\nmov.u32 %r1, bar;\n\
         mbarrier.init.shared::cta.b64 [%r1], 1;\nfence.mbarrier_init.release.cluster;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {bytes};\n\
         cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0, {{{}}}], [%r1];\n\
         AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 %p0, [%r1], 0;\n@!%p0 bra AGAIN;\n\
         cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%rd1, {{{}}}], [%r0];\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n{raw}ret;\n}}\n",
        point(at),
        point(to),
    )
}

fn swizzled(swizzle: Swizzle, at: usize) -> usize {
    let chunks = swizzle.span() / 16;
    let row = at / 128 % 8;
    at / 16 * 16 - at / 16 % chunks * 16 + ((at / 16 % chunks) ^ (row % chunks)) * 16 + at % 16
}

/// Sizes, box, where from, where to.
type Case = (&'static [u64], &'static [u32], &'static [i32], &'static [i32]);

#[test]
fn boxes_go_to_shared_memory_and_back() {
    let cases: [Case; 5] = [
        (&[40], &[16], &[8], &[3]),
        (&[40, 9], &[16, 4], &[8, 2], &[0, 5]),
        (&[40, 9], &[16, 4], &[-5, 7], &[30, -2]),
        (&[24, 5, 4], &[16, 2, 3], &[4, 3, 2], &[16, 4, -1]),
        (&[24, 5, 4], &[16, 2, 3], &[24, 0, 0], &[-16, 0, 0]),
    ];
    for (i, (size, tile, at, to)) in cases.into_iter().enumerate() {
        for (element, swizzle) in
            [(1, Swizzle::None), (2, Swizzle::B32), (2, Swizzle::None), (4, Swizzle::B64), (8, Swizzle::B128)]
        {
            round_trip(size, tile, at, to, element, swizzle, Schedule::all()[i]);
        }
    }
}

fn round_trip(size: &[u64], tile: &[u32], at: &[i32], to: &[i32], element: u32, swizzle: Swizzle, schedule: Schedule) {
    let e = element as usize;
    // Rows padded to 16 bytes, and planes by 32 more.
    let row = (size[0] * u64::from(element)).next_multiple_of(16);
    let strides: Vec<u64> = [row, row * size.get(1).unwrap_or(&1) + 32][..size.len() - 1].to_vec();
    let total = (strides.last().unwrap_or(&row) * size.last().unwrap()) as usize;
    let place = |index: &[i64]| -> Option<usize> {
        let inside = index.iter().zip(size).all(|(i, s)| (0..*s as i64).contains(i));
        let outer: i64 = index[1..].iter().zip(&strides).map(|(i, s)| i * *s as i64).sum();
        inside.then_some((outer + index[0] * i64::from(element)) as usize)
    };
    let source: Vec<u8> = (0..total).map(|i| (i * 7 % 251) as u8 + 1).collect();
    let mut memory = Memory::new();
    let (from, target) = (memory.alloc("from", &source), memory.alloc("to", &vec![0; total]));
    let map =
        |base| TensorMap { base, size: size.to_vec(), stride: strides.clone(), tile: tile.to_vec(), element, swizzle };
    let bytes = map(from).box_bytes();
    let raw = memory.alloc_uninit("raw", bytes);
    let module = Module::parse(&kernel(size.len(), at, to, bytes)).unwrap();
    let params = [Param::Bytes(map(from).bytes()), Param::Bytes(map(target).bytes()), Param::U64(raw)];
    let launch = Launch { entry: "k", grid: [1; 3], block: [1; 3], shared_bytes: 0, params: &params, schedule };
    run(&module, &mut memory, &launch).unwrap_or_else(|f| panic!("{size:?} {swizzle:?}: {f}"));
    let mut wanted = vec![0; total];
    for i in 0..bytes / e {
        let mut rest = i;
        let steps: Vec<i64> = tile
            .iter()
            .map(|&t| {
                let step = rest % t as usize;
                rest /= t as usize;
                step as i64
            })
            .collect();
        let index = |at: &[i32]| steps.iter().zip(at).map(|(s, a)| s + i64::from(*a)).collect::<Vec<_>>();
        let value = place(&index(at)).map_or(vec![0; e], |p| source[p..p + e].to_vec());
        let at = swizzled(swizzle, i * e);
        assert_eq!(memory.read(raw)[at..at + e], value, "{size:?} {swizzle:?} element {i}");
        if let Some(p) = place(&index(to)) {
            wanted[p..p + e].copy_from_slice(&value);
        }
    }
    assert_eq!(memory.read(target), wanted, "{size:?} {swizzle:?}");
}
