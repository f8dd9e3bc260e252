//! The backward pass of attention by wgmma on its own: clean, with the same bits, under every schedule, and not with bugs planted. Its
//! results are judged by the program's op matrix.

mod common;

use common::matrix::{Matrix, compile, source};
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

const TOKENS: usize = 330;
const D: usize = 64;
/// Two heads share one of keys.
const HEADS: usize = 2;

/// The kernel for dq, or the one for dk and dv: its launch, and the addresses of its results.
fn operands(memory: &mut Memory, keys: bool) -> (Vec<Param>, Vec<u64>) {
    let [q, dout] = [0, 11].map(|shift| Matrix::new(memory, "of queries", [TOKENS, HEADS * D], shift, true));
    let [k, v] = [3, 7].map(|shift| Matrix::new(memory, "of keys", [TOKENS, D], shift, true));
    let stats = Matrix::new(memory, "stats", [HEADS * TOKENS, 2], 1, false);
    // Two sequences.
    let range = |t: usize| if t < 300 { [0, 300] } else { [300, TOKENS as i32] };
    let ranges = memory.alloc("range", &(0..TOKENS).flat_map(range).flat_map(i32::to_le_bytes).collect::<Vec<_>>());
    let (count, width) = if keys { (2, D) } else { (1, HEADS * D) };
    let outs: Vec<u64> = (0..count).map(|_| memory.alloc_uninit("out", 2 * TOKENS * width)).collect();
    let mut params: Vec<Param> = outs.iter().map(|&out| Param::U64(out)).collect();
    params.extend([&q, &k, &v, &dout, &stats].map(Matrix::pointer));
    params.push(Param::U64(ranges));
    let (of_queries, of_keys) = if keys { (64, 128) } else { (128, 64) };
    params.extend([q.map(of_queries), k.map(of_keys), v.map(of_keys), dout.map(of_queries)]);
    params.extend([TOKENS, TOKENS, D, HEADS, 1].map(|n| Param::U32(n as u32)));
    params.extend([Param::F32(0.0625), Param::U32(1), Param::U32(0), Param::U32(0)]);
    (params, outs)
}

/// The bits that it leaves.
fn launch(module: &Module, keys: bool, schedule: Schedule) -> Result<Vec<Vec<u8>>, Finding> {
    let mut memory = Memory::new();
    let (params, outs) = operands(&mut memory, keys);
    let (entry, heads) = if keys { ("attention_dkv_wgmma", 1) } else { ("attention_dq_wgmma", HEADS as u32) };
    let grid = [heads, TOKENS.div_ceil(128) as u32, 1];
    let shared_bytes = (2 * D * (2 * 128 + 8 * 64)) as u32;
    run(module, &mut memory, &Launch { entry, grid, block: [384, 1, 1], shared_bytes, params: &params, schedule })?;
    Ok(outs.iter().map(|&out| memory.read(out).to_vec()).collect())
}

fn compiled(text: &str) -> Option<Module> {
    compile("attention_bwd_wgmma.cu", text, &[&format!("-DHEAD_DIM={D}")])
}

#[test]
fn it_gives_the_same_bits_under_every_schedule() {
    let Some(module) = compiled(&source("attention_bwd_wgmma.cu")) else { return };
    for keys in [false, true] {
        let run = |s| launch(&module, keys, s).unwrap_or_else(|f| panic!("{keys} {s:?}: {f}"));
        let all: Vec<_> = Schedule::all().into_iter().map(run).collect();
        assert!(all.iter().all(|bits| *bits == all[0]), "dk and dv {keys}: other bits");
        assert!(all[0].iter().all(|out| out.iter().any(|&b| b != 0)), "dk and dv {keys}: nothing but zeros");
    }
}

/// Whether it is in the kernel of dk and dv, what is taken out, and what is then found, of every schedule.
const PLANTED: &[(bool, &str, &str, &[Kind])] = &[
    // dp is read while products add to it.
    (false, "            wgmma_wait<0>();\n#pragma unroll\n", "#pragma unroll\n", &[Kind::AsyncInFlight]),
    // Keys are overwritten while the product for dq reads them.
    (
        false,
        "            if (key > seen.x) ring.free(last);\n",
        "            ring.free(ring.stage);\n",
        &[Kind::Race, Kind::AsyncInFlight],
    ),
    // dp is read while products add to it, but for the values' product being waited for.
    (true, "                wgmma_wait<1>();\n", "", &[Kind::AsyncInFlight]),
    // One warp tells that all have read the numbers of a stage.
    (
        true,
        "ring.begin(2, USERS * GROUP / 32);",
        "ring.begin(2, USERS);",
        &[Kind::Race, Kind::AsyncInFlight, Kind::Deadlock],
    ),
    // A stage is said to be there twice, for its queries and for their numbers.
    (
        true,
        "ring.begin(2, USERS",
        "ring.begin(1, USERS",
        &[Kind::DivergentBarrier, Kind::Uninitialised, Kind::Race, Kind::AsyncInFlight, Kind::Deadlock],
    ),
    // One lane tells what all have written.
    (
        true,
        "            __syncwarp();\n            if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.filled());",
        "            if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.filled());",
        &[Kind::Race],
    ),
];

#[test]
fn each_bug_planted_in_it_is_found() {
    let text = source("attention_bwd_wgmma.cu");
    let mut missed = Vec::new();
    for (keys, right, wrong, kinds) in PLANTED {
        assert_eq!(text.matches(right).count(), 1, "{right}");
        let Some(module) = compiled(&text.replace(right, wrong)) else { return };
        for schedule in Schedule::all() {
            match launch(&module, *keys, schedule) {
                Err(f) if kinds.contains(&f.kind) => {}
                Err(f) => missed.push(format!("{right} {schedule:?}: {f}")),
                Ok(_) => missed.push(format!("{right} {schedule:?}: nothing")),
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
