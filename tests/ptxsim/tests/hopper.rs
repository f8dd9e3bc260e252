//! wgmma, tensor copies and mbarriers of sm_90a, against a plain product.

mod common;

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::values::f32_to_bf16;
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

/// Rows of a that exist; the rest of the 64-row tile is filled with zeros.
const ROWS: usize = 50;
const STEPS: usize = 3;
const DEPTH: usize = 64 * STEPS;

fn element(row: usize, k: usize) -> f32 {
    ((row * 5 + k * 3) % 17) as f32 - 8.0
}

fn product(module: &Module, schedule: Schedule) -> Result<Vec<f32>, Finding> {
    let mut memory = Memory::new();
    let mut tensor = |name: &str, rows: usize, shift: usize| {
        let values = (0..rows * DEPTH).map(|i| element(i / DEPTH + shift, i % DEPTH));
        let base = memory.alloc(name, &values.flat_map(|v| f32_to_bf16(v).to_le_bytes()).collect::<Vec<u8>>());
        memory.read_only(base);
        let size = vec![DEPTH as u64, rows as u64];
        let map = TensorMap {
            base,
            size,
            stride: vec![2 * DEPTH as u64],
            tile: vec![64, 64],
            element: 2,
            swizzle: Swizzle::B128,
        };
        Param::Bytes(map.bytes())
    };
    let (a, b) = (tensor("a", ROWS, 0), tensor("b", 64, 3));
    let c = memory.alloc_uninit("c", 4 * 64 * 64);
    let params = [Param::U64(c), a, b, Param::U32(STEPS as u32)];
    let (grid, block) = ([1, 1, 1], [128, 1, 1]);
    let launch = Launch { entry: "product", grid, block, shared_bytes: 16384, params: &params, schedule };
    run(module, &mut memory, &launch).map(|_| common::floats(memory.read(c)))
}

#[test]
fn wgmma_multiplies_what_tma_brings() {
    let Some(library) = common::nvrtc() else { return };
    let source = common::source("hopper.cu");
    let compile = |options: &[&str]| Module::parse(&common::ptx(&library, "hopper.cu", &source, options)).unwrap();
    let module = compile(&["-arch=compute_90a"]);
    for schedule in Schedule::all() {
        let got = product(&module, schedule).unwrap_or_else(|f| panic!("{f}"));
        for (i, got) in got.iter().enumerate() {
            let (thread, j) = (i / 32, i % 32);
            let (warp, lane) = (thread / 32, thread % 32);
            let (row, column) = (16 * warp + lane / 4 + 8 * (j / 2 % 2), j / 4 * 8 + 2 * (lane % 4) + j % 2);
            // Small integers: exact.
            let sum: f32 = (0..DEPTH).map(|k| element(row, k) * element(column + 3, k)).sum();
            assert_eq!(*got, if row < ROWS { sum } else { 0.0 }, "row {row} column {column}");
        }
    }
    let early = compile(&["-arch=compute_90a", "-DBUG"]);
    for schedule in Schedule::all() {
        let kind = product(&early, schedule).unwrap_err().kind;
        assert_eq!(kind, Kind::AsyncInFlight, "{schedule:?}");
    }
}
