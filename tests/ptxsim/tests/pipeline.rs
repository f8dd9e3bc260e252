//! A whole product by wgmma and tensor copies, persistent and warp-specialised, against a plain one: right under every
//! schedule, and refused under every schedule where one of its fences, commits or waits is missing.

mod common;

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::values::f32_to_bf16;
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

/// Sizes of which none fills its last tile; rows of the operands are a multiple of 16 bytes.
const M: usize = 200;
const N: usize = 72;
const K: usize = 264;
/// Shared memory of the ring.
const RING: u32 = 3 * 3 * 8192;

fn element(row: usize, k: usize) -> f32 {
    ((row * 5 + k * 3) % 17) as f32 - 8.0
}

fn product(module: &Module, schedule: Schedule) -> Result<Vec<f32>, Finding> {
    let mut memory = Memory::new();
    let mut tensor = |name: &str, rows: usize, shift: usize| {
        let values = (0..rows * K).map(|i| element(i / K + shift, i % K));
        let base = memory.alloc(name, &values.flat_map(|v| f32_to_bf16(v).to_le_bytes()).collect::<Vec<u8>>());
        memory.read_only(base);
        let (size, stride) = (vec![K as u64, rows as u64], vec![2 * K as u64]);
        let map = TensorMap { base, size, stride, tile: vec![64, 64], element: 2, swizzle: Swizzle::B128 };
        Param::Bytes(map.bytes())
    };
    let (a, b) = (tensor("a", M, 0), tensor("b", N, 3));
    let c = memory.alloc_uninit("c", 4 * M * N);
    let sizes = [M, N, K].map(|v| Param::U32(v as u32));
    let params = [&[Param::U64(c), a, b][..], &sizes].concat();
    let (grid, block) = ([3, 1, 1], [384, 1, 1]);
    let launch = Launch { entry: "product", grid, block, shared_bytes: RING, params: &params, schedule };
    run(module, &mut memory, &launch).map(|_| common::floats(memory.read(c)))
}

fn compile(options: &[&str]) -> Option<Module> {
    let library = common::nvrtc()?;
    let options = [&["-arch=compute_90a"], options].concat();
    Some(Module::parse(&common::ptx(&library, "pipeline.cu", &common::source("pipeline.cu"), &options)).unwrap())
}

#[test]
fn a_ring_of_stages_multiplies_under_every_schedule() {
    let Some(module) = compile(&[]) else { return };
    for schedule in Schedule::all() {
        let got = product(&module, schedule).unwrap_or_else(|f| panic!("{schedule:?}: {f}"));
        for (i, got) in got.iter().enumerate() {
            let (row, column) = (i / N, i % N);
            // Small integers: exact.
            let sum: f32 = (0..K).map(|k| element(row, k) * element(column + 3, k)).sum();
            assert_eq!(*got, sum, "{schedule:?}: row {row} column {column}");
        }
    }
}

#[test]
fn what_is_left_out_is_missed_under_every_schedule() {
    let cases: [(&[&str], &[Kind]); 6] = [
        (&["-DNO_FENCE"], &[Kind::Unfenced]),
        (&["-DNO_COMMIT"], &[Kind::AsyncInFlight]),
        (&["-DNO_WAIT"], &[Kind::AsyncInFlight]),
        (&["-DNO_PROXY_FENCE"], &[Kind::Unfenced]),
        (&["-DNO_FENCE", "-DNO_COMMIT", "-DNO_WAIT", "-DNO_PROXY_FENCE"], &[Kind::Unfenced]),
        (&["-DFREES_ITS_OWN"], &[Kind::AsyncInFlight, Kind::Race]),
    ];
    for (options, kinds) in cases {
        let Some(module) = compile(options) else { return };
        for schedule in Schedule::all() {
            match product(&module, schedule) {
                Ok(_) => panic!("{options:?}, {schedule:?}: passed"),
                Err(f) => assert!(kinds.contains(&f.kind), "{options:?}, {schedule:?}: {f}"),
            }
        }
    }
}
