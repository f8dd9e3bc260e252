//! Bugs planted in small kernels: each is found under every schedule, of the right kind and at the right line; its
//! corrected twin is clean under all of them, with the same bits.
//!
//! `tests/cu/NN_*.cu` begin with what to launch and which kinds to expect. `BUG` plants the bug; a line that a finding
//! may name carries `FOUND`. With `hopper` it is compiled for sm_90a, reads n bf16, and gets tensor maps of input and output.

mod common;

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::values::f32_to_bf16;
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

const KINDS: [Kind; 11] = [
    Kind::OutOfBounds,
    Kind::Misaligned,
    Kind::Uninitialised,
    Kind::Race,
    Kind::AsyncInFlight,
    Kind::Unfenced,
    Kind::DivergentBarrier,
    Kind::Deadlock,
    Kind::ReadOnly,
    Kind::UnknownOpcode,
    Kind::Limit,
];

/// What a kernel's first line says.
struct Plan {
    grid: u32,
    block: u32,
    n: usize,
    hopper: bool,
    kinds: Vec<Kind>,
}

fn plan(source: &str) -> Plan {
    let line = source.lines().next().unwrap();
    let (launch, finds) = line.split_once("; finds: ").unwrap();
    let words: Vec<&str> = launch.split([' ', ',']).collect();
    let value = |key: &str| words[words.iter().position(|w| *w == key).unwrap() + 1].parse::<u32>().unwrap();
    let named = |w: &str| *KINDS.iter().find(|k| format!("{k:?}") == w).unwrap();
    let kinds = finds.split_whitespace().map(named).collect();
    let hopper = words.contains(&"hopper");
    Plan { grid: value("grid"), block: value("block"), n: value("n") as usize, hopper, kinds }
}

/// Maps of 64 x 64 bf16 of the input, and of 32 x 64 f32 of the output; both have rows of 128 bytes.
fn maps(plan: &Plan, input: u64, output: u64) -> [Param; 2] {
    [(input, 64, 2), (output, 32, 4)].map(|(base, width, element)| {
        let (size, stride) = (vec![width, plan.n as u64 / width], vec![width * u64::from(element)]);
        let map = TensorMap { base, size, stride, tile: vec![width as u32, 64], element, swizzle: Swizzle::B128 };
        Param::Bytes(map.bytes())
    })
}

fn launch(module: &Module, plan: &Plan, schedule: Schedule) -> Result<Vec<u8>, Finding> {
    let mut memory = Memory::new();
    let values: Vec<f32> = (0..plan.n).map(|i| (i * 37 % 101) as f32 / 8.0).collect();
    let halves = || values.iter().flat_map(|v| f32_to_bf16(*v).to_le_bytes()).collect();
    let input = memory.alloc("in", &if plan.hopper { halves() } else { common::bytes(&values) });
    memory.read_only(input);
    let output = memory.alloc_uninit("out", 4 * plan.n);
    let mut params = vec![Param::U64(input), Param::U64(output), Param::U32(plan.n as u32)];
    if plan.hopper {
        params.extend(maps(plan, input, output));
    }
    let (grid, block) = ([plan.grid, 1, 1], [plan.block, 1, 1]);
    let launch = Launch {
        entry: "kernel",
        grid,
        block,
        shared_bytes: if plan.hopper { 8192 } else { 0 },
        params: &params,
        schedule,
    };
    run(module, &mut memory, &launch).map(|_| memory.read(output).to_vec())
}

/// The kernels with planted bugs.
fn kernels() -> Vec<String> {
    let folder = format!("{}/tests/cu", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut planted: Vec<String> = names.filter(|n| n.starts_with(|c: char| c.is_ascii_digit())).collect();
    planted.sort();
    planted
}

#[test]
fn each_planted_bug_is_found_and_its_twin_is_clean() {
    let Some(library) = common::nvrtc() else { return };
    let mut complaints = Vec::new();
    let all = kernels();
    assert!(all.len() >= 45, "{} kernels", all.len());
    for name in all {
        let source = common::source(&name);
        let plan = plan(&source);
        let lines: Vec<usize> =
            source.lines().enumerate().filter(|(_, l)| l.contains("// FOUND")).map(|(i, _)| i + 1).collect();
        let arch = if plan.hopper { "-arch=compute_90a" } else { "-arch=compute_80" };
        let broken = Module::parse(&common::ptx(&library, &name, &source, &[arch, "-DBUG"])).unwrap();
        for schedule in Schedule::all() {
            match launch(&broken, &plan, schedule) {
                Ok(_) => complaints.push(format!("{name}, {schedule:?}: the bug is not found")),
                Err(f) => {
                    let at_line = lines.iter().any(|l| {
                        f.message.contains(&format!("{name}:{l},"))
                            || f.message.contains(&format!("{name}:{l}:"))
                            || f.message.ends_with(&format!("{name}:{l}"))
                    });
                    if !plan.kinds.contains(&f.kind) || !at_line {
                        complaints.push(format!("{name}, {schedule:?}: not {:?} at {lines:?}: {f}", plan.kinds));
                    }
                }
            }
        }
        let fixed = Module::parse(&common::ptx(&library, &name, &source, &[arch])).unwrap();
        let mut first: Option<Vec<u8>> = None;
        for schedule in Schedule::all() {
            match launch(&fixed, &plan, schedule) {
                Ok(bits) if first.as_ref().is_none_or(|f| *f == bits) => first = Some(bits),
                Ok(_) => complaints.push(format!("{name}, {schedule:?}: the corrected kernel's bits differ")),
                Err(f) => complaints.push(format!("{name}, {schedule:?}: the corrected kernel: {f}")),
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
