//! The kernels of `kernels/*_wgmma.cu`, on their own: tiles, depths and ranks that do not fill, several problems a launch, under every
//! schedule.

mod common;

use common::matrix::{Matrix, compile, source, with_header};
use ptxsim::values::f32_to_bf16;
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

/// The ring's stages, whatever the tile.
const SHARED: u32 = (4 * 48) << 10;
/// Rows of a tile, and its columns by the macro TILE.
const ROWS: usize = 128;
const COLUMNS: [usize; 2] = [256, 128];
/// Problems that a launch takes.
const MOST: usize = 3;

/// What a launch is told of a problem, the address and size of its result, and what that must be.
struct Problem {
    pointers: Vec<Param>,
    maps: Vec<Param>,
    words: Vec<Param>,
    out: u64,
    size: [usize; 2],
    want: Vec<f32>,
}

/// Runs a kernel on two blocks.
fn launch(
    module: &Module,
    entry: &str,
    memory: &mut Memory,
    problems: &[Problem],
    columns: usize,
    schedule: Schedule,
) -> Result<(), Finding> {
    // What is not there is the first again: no tile is of it.
    let all: Vec<&Problem> = problems.iter().chain(std::iter::repeat(&problems[0])).take(MOST).collect();
    let mut params: Vec<Param> = all.iter().flat_map(|p| p.pointers.clone()).collect();
    params.extend(all.iter().flat_map(|p| p.maps.clone()));
    params.extend(all.iter().flat_map(|p| p.words.clone()));
    let tiles = |p: &Problem| p.size[0].div_ceil(ROWS) * p.size[1].div_ceil(columns);
    let end = |i: usize| if i + 1 < problems.len() { tiles(&problems[i]) as u32 } else { u32::MAX };
    params.extend((0..MOST - 1).map(|i| Param::U32(end(i))));
    let (grid, block) = ([2, 1, 1], [384, 1, 1]);
    let launch = Launch { entry, grid, block, shared_bytes: SHARED, params: &params, schedule };
    run(module, memory, &launch).map(drop)
}

/// The same with every tile under every schedule, compared with what the results must be.
fn check(name: &str, make: Make, launches: &[&[[usize; 4]]]) {
    for (tile, columns) in COLUMNS.into_iter().enumerate() {
        let Some(module) = compile(name, &source(&format!("{name}.cu")), &[&format!("-DTILE={tile}")]) else { return };
        check_tile(&module, name, &|memory, dims| make(memory, dims, columns), columns, launches);
    }
}

/// Makes a problem of a size, for tiles of so many columns.
type Make = fn(&mut Memory, [usize; 4], usize) -> Problem;

fn check_tile(
    module: &Module,
    name: &str,
    make: &dyn Fn(&mut Memory, [usize; 4]) -> Problem,
    columns: usize,
    launches: &[&[[usize; 4]]],
) {
    for (dims, schedule) in launches.iter().flat_map(|d| Schedule::all().into_iter().map(move |s| (d, s))) {
        let mut memory = Memory::new();
        let problems: Vec<Problem> = dims.iter().map(|&d| make(&mut memory, d)).collect();
        launch(module, name, &mut memory, &problems, columns, schedule)
            .unwrap_or_else(|f| panic!("{columns} columns {dims:?} {schedule:?}: {f}"));
        for p in &problems {
            for (i, (got, want)) in memory.read(p.out).chunks_exact(2).zip(&p.want).enumerate() {
                let (row, column) = (i / p.size[1], i % p.size[1]);
                let got = u16::from_le_bytes([got[0], got[1]]);
                assert_eq!(got, f32_to_bf16(*want), "{dims:?} {schedule:?}: row {row} column {column}");
            }
        }
    }
}

fn words(sizes: &[usize]) -> Vec<Param> {
    sizes.iter().map(|&v| Param::U32(v as u32)).collect()
}

fn values([rows, cols]: [usize; 2], at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
}

fn linear(memory: &mut Memory, [t, n, k, r]: [usize; 4], columns: usize) -> Problem {
    let (x, w) = (Matrix::new(memory, "x", [t, k], 0, true), Matrix::new(memory, "w", [n, k], 3, true));
    let (xa, b) = (Matrix::new(memory, "xa", [t, r], 5, true), Matrix::new(memory, "b", [n, r], 7, false));
    let (bias, acc) = (Matrix::new(memory, "bias", [1, n], 9, false), Matrix::new(memory, "acc", [t, n], 11, true));
    let out = memory.alloc_uninit("y", 2 * t * n);
    let mut pointers = vec![Param::U64(out)];
    pointers.extend([&x, &w, &bias, &acc, &xa, &b].map(Matrix::pointer));
    let want = values([t, n], |row, column| {
        let main: f32 = (0..k).map(|i| x.at(row, i) * w.at(column, i)).sum();
        let low: f32 = (0..r).map(|i| xa.at(row, i) * b.at(column, i)).sum();
        main + 0.5 * low + bias.at(0, column) + acc.at(row, column)
    });
    let words = [words(&[t, n, k, r, n]), vec![Param::F32(0.5)]].concat();
    Problem { pointers, maps: vec![x.map(128), w.map(columns as u32)], words, out, size: [t, n], want }
}

fn linear_dx(memory: &mut Memory, [t, n, k, r]: [usize; 4], _: usize) -> Problem {
    let (dy, w) = (Matrix::new(memory, "dy", [t, n], 0, true), Matrix::new(memory, "w", [n, k], 3, true));
    let (dyb, a) = (Matrix::new(memory, "dyb", [t, r], 5, true), Matrix::new(memory, "a", [r, k], 7, false));
    let out = memory.alloc_uninit("dx", 2 * t * k);
    let mut pointers = vec![Param::U64(out)];
    pointers.extend([&dy, &w, &dyb, &a].map(Matrix::pointer));
    pointers.extend([Param::U64(0), Param::U64(0)]);
    let want = values([t, k], |row, column| {
        let main: f32 = (0..n).map(|i| dy.at(row, i) * w.at(i, column)).sum();
        main + (0..r).map(|i| dyb.at(row, i) * a.at(i, column)).sum::<f32>()
    });
    let words = [words(&[t, n, k, r, 0, 0]), vec![Param::F32(1.0)]].concat();
    Problem { pointers, maps: vec![dy.map(128), w.map(64)], words, out, size: [t, k], want }
}

/// (T, N, K, R)
const FORWARD: &[&[[usize; 4]]] = &[
    &[[200, 264, 72, 5], [130, 20, 72, 16]],
    &[[130, 520, 320, 72]],
    &[[64, 256, 200, 0], [64, 30, 200, 0], [9, 8, 8, 3]],
];
const BACKWARD: &[&[[usize; 4]]] = &[
    &[[200, 264, 328, 5], [130, 72, 24, 16]],
    &[[130, 320, 520, 72]],
    &[[64, 200, 256, 0], [64, 8, 16, 0], [9, 8, 8, 3]],
];

#[test]
fn linear_multiplies() {
    check("linear_wgmma", linear, FORWARD);
}

#[test]
fn linear_dx_multiplies() {
    check("linear_dx_wgmma", linear_dx, BACKWARD);
}

/// What is taken out of the engine, and what is then found, of every schedule.
const PLANTED: &[(&str, &str, &[Kind])] = &[
    // The stage is free while products still read it.
    (
        "wgmma_wait<1>();\n        if (k0 > 0) ring.free(last);\n",
        "ring.free(ring.stage);\n",
        &[Kind::Race, Kind::AsyncInFlight],
    ),
    // Sums are read while products add to them.
    ("    wgmma_wait<0>();\n    ring.free(last);", "    ring.free(last);", &[Kind::AsyncInFlight]),
    // The low-rank factors, which threads wrote, are read by wgmma.
    ("            proxy_fence();\n", "", &[Kind::Unfenced]),
    // One thread tells that all have written them.
    (
        "            named_sync<1, GROUP>();\n            if (threadIdx.x == 0) mbarrier_arrive",
        "            if (threadIdx.x == 0) mbarrier_arrive",
        &[Kind::Race, Kind::Unfenced],
    ),
    // Products of sums that were just cleared.
    ("        wgmma_fence();\n#pragma unroll", "#pragma unroll", &[Kind::Unfenced]),
    // Half of the copies' bytes are not waited for.
    (
        "mbarrier_expect(ring.filled(), A_BYTES + B_BYTES)",
        "mbarrier_expect(ring.filled(), A_BYTES)",
        &[Kind::AsyncInFlight, Kind::Race, Kind::Limit],
    ),
];

#[test]
fn each_bug_planted_in_the_engine_is_found() {
    let text = with_header("linear_wgmma.cu", "wgmma_gemm.cuh");
    let mut missed = Vec::new();
    for (right, wrong, kinds) in PLANTED {
        assert_eq!(text.matches(right).count(), 1, "{right}");
        let Some(module) = compile("planted.cu", &text.replace(right, wrong), &[]) else { return };
        for schedule in Schedule::all() {
            let mut memory = Memory::new();
            let problems = [linear(&mut memory, [130, 264, 520, 16], COLUMNS[0])];
            match launch(&module, "linear_wgmma", &mut memory, &problems, COLUMNS[0], schedule) {
                Err(f) if kinds.contains(&f.kind) => {}
                Err(f) => missed.push(format!("{right} {schedule:?}: {f}")),
                Ok(()) => missed.push(format!("{right} {schedule:?}: nothing")),
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
