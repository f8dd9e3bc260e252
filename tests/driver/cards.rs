//! Cards and drivers of other kinds: what cannot be used is said, what can is used.

use crate::Training;

/// (what the driver is like, flags, exit code, what is said).
type Row = (&'static [(&'static str, &'static str)], &'static [&'static str], i32, &'static str);

const CARDS: &[Row] = &[
    (&[("FAKECUDA_ARCH", "70")], &["--device", "cuda"], 1, "kernels need sm_75 (Turing) or newer"),
    (&[("FAKECUDA_VERSION", "11080")], &["--device", "cuda"], 1, "a driver for CUDA 11.8"),
    (&[("FAKECUDA_CARDS", "0")], &["--device", "cuda"], 1, "0 cards"),
    (&[], &["--device", "cuda:1"], 1, "device cuda:1: 1 cards"),
    (&[("FAKECUDA_CARDS", "2")], &["--device", "cuda:1"], 0, "on Fake card (CUDA, sm_81)"),
    (&[], &["--device", "auto"], 0, "on Fake card (CUDA, sm_81)"),
    (&[("FAKECUDA_ARCH", "76"), ("FAKECUDA_SCHEDULE", "4")], &["--device", "cuda", "--dtype", "bf16"], 0, "sm_76"),
    (&[("FAKECUDA_ARCH", "91")], &["--device", "cuda", "--dtype", "bf16"], 0, "sm_91)"),
    // What the self-test multiplies does not come: its products are wrong.
    (
        &[("FAKECUDA_ARCH", "91"), ("FAKECUDA_SKIP", "cuMemcpyHtoDAsync_v2:1")],
        &["--device", "cuda", "--dtype", "bf16"],
        0,
        "sm_91), its wgmma is not used: it failed",
    ),
    (
        &[("FAKECUDA_ARCH", "91"), ("TRIMTAB_WGMMA", "0")],
        &["--device", "cuda", "--dtype", "bf16"],
        0,
        "sm_91), its wgmma is not used: TRIMTAB_WGMMA=0",
    ),
    (&[("FAKECUDA_MEMORY", "300000")], &["--device", "cuda"], 1, "has no more that is free"),
    (&[("TRIMTAB_NVRTC", "/no/such/library.so")], &["--device", "cuda"], 1, "TRIMTAB_NVRTC=/no/such/library.so"),
];

#[test]
fn cards_are_used_or_it_is_said_why_not() {
    let Some(training) = Training::new("cards") else { return };
    let wrong: Vec<String> = CARDS
        .iter()
        .filter_map(|(told, flags, code, said)| {
            let ran = training.run("run", &[&["--steps", "1", "--batch-size", "1"], *flags].concat(), told);
            let right = ran.code == Some(*code) && ran.err.contains(said) && !ran.err.contains("panicked");
            (!right).then(|| format!("{told:?} {flags:?}: {:?}\n{}", ran.code, ran.err))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (listed, _) = training.card.ok(&["devices"], &[("FAKECUDA_CARDS", "2")]);
    for said in ["cuda:0  Fake card (sm_81)", "cuda:1  Fake card (sm_81)", "2.0 GiB of memory", "auto    takes cuda:0"]
    {
        assert!(listed.contains(said), "{listed}");
    }
}

/// A Hopper is tried when it is opened, unless that is turned off.
#[test]
fn wgmma_is_tried_on_cards_that_have_it() {
    let Some(training) = Training::new("wgmma") else { return };
    let own = ["--steps", "1", "--batch-size", "1", "--device", "cuda", "--dtype", "bf16"];
    // Of three products, with either tile, two matrices of each of three problems, and of attention, for two sizes of heads, three, four and four.
    for (arch, wgmma, maps) in [("81", "1", 0), ("91", "1", 58), ("91", "0", 0)] {
        let report = training.ok("run", &own, &[("FAKECUDA_ARCH", arch), ("TRIMTAB_WGMMA", wgmma)]);
        let calls = report["calls"]["cuTensorMapEncodeTiled"].as_u64().unwrap_or(0);
        assert_eq!(calls, maps, "sm_{arch}: {report}");
    }
}

/// What needs no kernel does without a compiler, on a card that would be tried with one too.
#[test]
fn a_hopper_is_planned_for_without_a_compiler() {
    let Some(training) = Training::new("no-compiler") else { return };
    let plan = ["plan", "--model", &training.model, "--max-seq-len", "8", "--micro-tokens", "8", "--device", "cuda"];
    for arch in ["81", "91"] {
        let ran = training.card.run(&plan, &[("FAKECUDA_ARCH", arch), ("TRIMTAB_NVRTC", "/no/such/library.so")]);
        assert!(ran.code == Some(0) && ran.out.contains("total"), "sm_{arch}: {}{}", ran.out, ran.err);
    }
}

/// Older drivers cannot tell the time between two events: then the host's clock does.
#[test]
fn lists_are_timed_by_old_and_new_drivers() {
    let Some(training) = Training::new("clocks") else { return };
    for (version, by_events) in [("12000", false), ("12080", true)] {
        let own = ["--steps", "2", "--batch-size", "1", "--device", "cuda", "--profile"];
        let report = training.ok("run", &own, &[("FAKECUDA_VERSION", version)]);
        let calls = report["calls"]["cuEventElapsedTime_v2"].as_u64().unwrap_or(0);
        assert_eq!(calls > 0, by_events, "CUDA {version}: {report}");
    }
}
