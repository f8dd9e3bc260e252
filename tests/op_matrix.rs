//! Every row of the op table, on every sample, on every device, against its definition in float64: right, equal bits
//! when run again, equal bits when run in place, nothing written outside of its outputs, nothing read that was not
//! written.

mod common;

use common::devices::Device;
use trimtab::backend::Caps;
#[cfg(feature = "cuda")]
use trimtab::backend::Tiling;
#[cfg(feature = "cuda")]
use trimtab::backend::cuda::caps;
use trimtab::backend::{Backend, Target};
use trimtab::bench::operands::{Random, encode, in_16_bits, operands, stored};
use trimtab::bench::truth::judge;
use trimtab::bench::watched::Run;
use trimtab::dtype::{DType, Ty};
#[cfg(feature = "cuda")]
use trimtab::ops::CudaLaunch;
use trimtab::ops::quant::weight_defines;
use trimtab::ops::{self, Case, Fill, OpDef, Sample, Sizes};

/// What is wrong with `op` on `sample`; None: nothing.
fn verdict(op: &'static OpDef, sample: &Sample, device: &mut dyn Backend) -> Option<String> {
    let (stored, meant) = match operands(op.name, sample) {
        Ok(both) => both,
        Err(e) => return Some(e),
    };
    let tys: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = match op.types(&sample.attr, &tys) {
        Ok(outs) => outs,
        Err(e) => return Some(format!("its own sample is refused: {e}")),
    };
    let run = |device: &mut dyn Backend, shared: &[(usize, usize)]| {
        let ins = tys.iter().cloned().zip(stored.iter().map(Vec::as_slice)).collect();
        Run { op, attr: &sample.attr, ins, shared }.on(device)
    };
    let first = match run(device, &[]) {
        Ok(first) => first,
        Err(e) => return Some(e),
    };
    if let Err(e) = judge(op, sample, &meant, &first) {
        return Some(e);
    }
    match run(device, &[]) {
        Ok(again) if again == first => {}
        Ok(_) => return Some("run again, its bits differ".into()),
        Err(e) => return Some(format!("run again: {e}")),
    }
    // Each pair alone, then as many as go together.
    let pairs: Vec<(usize, usize)> =
        op.in_place.iter().copied().filter(|&(i, o)| i < tys.len() && o < outs.len()).collect();
    let mut sets: Vec<Vec<(usize, usize)>> = pairs.iter().map(|&p| vec![p]).collect();
    let mut together: Vec<(usize, usize)> = Vec::new();
    for &(i, o) in &pairs {
        if together.iter().all(|&(a, b)| a != i && b != o) {
            together.push((i, o));
        }
    }
    if together.len() > 1 {
        sets.push(together);
    }
    for shared in sets {
        if let Some((i, o)) = shared.iter().find(|&&(i, o)| tys[i].bytes() != outs[o].bytes()) {
            return Some(format!("in_place ({i}, {o}) pairs {} and {}", tys[*i], outs[*o]));
        }
        match run(device, &shared) {
            Ok(bits) if bits == first => {}
            Ok(_) => return Some(format!("in place {shared:?}, its bits differ")),
            Err(e) => return Some(format!("in place {shared:?}: {e}")),
        }
    }
    None
}

/// Runs the samples that `wanted` picks and fails with a list of all that is wrong.
fn check(device: &Device, wanted: impl Fn(&OpDef, &Sample) -> bool) {
    check_of(device, |op| (op.samples)(), wanted);
}

/// The same, of what benches run, at the sizes of a small model.
fn check_cases(device: &Device) {
    let cases = |op: &OpDef| (op.cases)(&Sizes::default().small()).into_iter().map(|case| case.sample).collect();
    check_of(device, cases, |_, _| true);
}

fn check_of(device: &Device, of: impl Fn(&OpDef) -> Vec<Sample>, wanted: impl Fn(&OpDef, &Sample) -> bool) {
    let only = std::env::var("TRIMTAB_OP").ok();
    let mut backend = device.open();
    let (mut ran, mut wrong) = (0, Vec::new());
    for op in ops::table().filter(|op| only.as_deref().is_none_or(|name| op.name == name)) {
        for (i, sample) in of(op).iter().enumerate().filter(|(_, s)| wanted(op, s)) {
            let narrow = backend.caps().compute_dtype.and_then(|dtype| in_16_bits(op, sample, dtype));
            for sample in [Some(sample), narrow.as_ref()].into_iter().flatten() {
                ran += 1;
                if let Some(what) = verdict(op, sample, &mut *backend) {
                    let act = sample.ins.first().map_or(String::new(), |i| i.ty.dtype.to_string());
                    wrong.push(format!("{} #{i} ({}, {act}): {what}", op.name, sample.name));
                }
            }
        }
    }
    eprintln!("{}: {ran} samples", device.name);
    let known = only.as_deref().is_none_or(|name| ops::table().any(|op| op.name == name));
    assert!(known, "TRIMTAB_OP={}: no such row", only.unwrap_or_default());
    assert!(ran > 0 || only.is_some(), "nothing was run");
    assert!(wrong.is_empty(), "{} of {ran} samples are wrong on {}:\n{}", wrong.len(), device.name, wrong.join("\n"));
}

#[test]
fn every_row_has_samples() {
    for op in ops::table() {
        assert!((op.samples)().len() >= 2, "{} has fewer than two samples", op.name);
    }
    let mut names: Vec<_> = ops::table().map(|op| op.name).collect();
    names.sort();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "two rows share a name");
}

/// What is wrong with what benches run `op` on.
fn wrong_cases(op: &OpDef, sizes: &Sizes) -> Vec<String> {
    let cases = (op.cases)(sizes);
    let mut wrong = Vec::new();
    if cases.is_empty() {
        wrong.push("it has no case".into());
    }
    for (i, Case { sample, shared }) in cases.iter().enumerate() {
        let mut say = |what: String| wrong.push(format!("{}: {what}", sample.name));
        if cases[..i].iter().any(|other| other.sample.name == sample.name) {
            say("another case has its name".into());
        }
        for (i, input) in sample.ins.iter().enumerate() {
            if matches!(&input.fill, Fill::Values(values) if values.len() != input.ty.len()) {
                say(format!("operand {i} is {} and has another number of values", input.ty));
            }
        }
        let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
        match op.types(&sample.attr, &ins) {
            Err(e) => say(e),
            Ok(outs) => {
                let fits =
                    |&(i, o): &(usize, usize)| op.in_place.contains(&(i, o)) && ins[i].bytes() == outs[o].bytes();
                shared.iter().filter(|pair| !fits(pair)).for_each(|pair| say(format!("{pair:?} cannot share a place")));
            }
        }
    }
    wrong
}

#[test]
fn every_row_has_cases() {
    let ones = Sizes {
        tokens: 1,
        hidden: 1,
        mlp: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        vocab: 1,
        rank: 1,
        loss_tokens: 1,
        params: 1,
        few: 1,
        labels: 1,
        weights: vec![DType::F32],
    };
    assert_eq!(ones.small(), ones, "small sizes are raised");
    for sizes in [Sizes::default(), Sizes::default().small(), ones] {
        for op in ops::table() {
            assert_eq!(wrong_cases(op, &sizes), [""; 0], "{} at {sizes:?}", op.name);
        }
    }
}

#[test]
fn cases_on_the_cpu() {
    check_cases(&Device::cpu());
}

#[test]
fn cases_on_wgpu() {
    if let Some(device) = Device::wgpu() {
        check_cases(&device);
    }
}

#[test]
fn cases_on_cuda() {
    if let Some(device) = Device::cuda() {
        check_cases(&device);
    }
}

#[test]
fn cases_on_interpreted_cuda() {
    if let Some(device) = Device::ptx(80) {
        check_cases(&device);
    }
}

/// Whether the case, run again and again on its own result, reaches numbers that are timed otherwise than its first ones:
/// those that grow or vanish with each run. Sums that grow by as much in each run are right.
fn drifts(op: &OpDef, case: &Case) -> Option<String> {
    const RUNS: usize = 500;
    let (_, mut ins) = operands(op.name, &case.sample).unwrap();
    let mut run = || {
        let outs = (op.reference)(&case.sample.attr, &ins);
        case.shared.iter().for_each(|&(i, o)| ins[i] = outs[o].clone());
        case.shared.iter().flat_map(|&(_, o)| outs[o].data.clone()).map(f64::abs).collect::<Vec<f64>>()
    };
    let largest = |sizes: &[f64]| sizes.iter().fold(0.0, |a: f64, &b| if b.is_nan() { b } else { a.max(b) });
    let half = (1..RUNS).map(|_| run()).last().unwrap();
    let end = (0..RUNS).map(|_| run()).last().unwrap();
    // A sum doubles in twice the runs.
    let (before, after) = (largest(&half), largest(&end));
    if !after.is_finite() || after > 3.0 * before {
        return Some(format!("grows from {before} to {after}"));
    }
    end.into_iter().find(|&x| x > 0.0 && x < 1e-20).map(|x| format!("vanishes: {x}"))
}

#[test]
fn cases_may_run_on_their_own_result() {
    let few = Sizes { tokens: 5, hidden: 64, mlp: 64, vocab: 32, params: 512, ..Sizes::default().small() };
    let mut ran = 0;
    for op in ops::table() {
        for case in (op.cases)(&few).iter().filter(|case| !case.shared.is_empty()) {
            assert_eq!(drifts(op, case), None, "{} {}", op.name, case.sample.name);
            ran += 1;
        }
    }
    assert!(ran >= 20, "only {ran} cases share a place");
}

#[test]
fn on_the_cpu() {
    check(&Device::cpu(), |_, _| true);
}

#[test]
fn on_wgpu() {
    if let Some(device) = Device::wgpu() {
        check(&device, |_, _| true);
    }
}

#[test]
fn on_cuda() {
    if let Some(device) = Device::cuda() {
        check(&device, |_, _| true);
    }
}

/// Kernels come in a plain variant and in richer ones; the test above runs the richest that the adapter has.
#[test]
fn on_wgpu_without_optional_features() {
    if let Some(device) = Device::wgpu_plain() {
        check(&device, |_, _| true);
    }
}

/// Large tiles wherever a product can have them; each element is the sum of the tile that is taken otherwise, in its order,
/// and sums are split alike.
#[test]
fn on_wgpu_with_large_tiles() {
    let (Some(large), Some(usual)) = (Device::wgpu_with_large_tiles(), Device::wgpu()) else { return };
    let caps = [large.open().caps().clone(), usual.open().caps().clone()];
    let taken = |op: &OpDef, s: &Sample, symbol: &str| {
        let lists = caps.each_ref().map(|caps| dispatches(op, s, caps).unwrap_or_default());
        lists[0] != lists[1] && lists[0].iter().any(|d| d.defines.contains(&symbol))
    };
    let ran = std::cell::RefCell::new(std::collections::BTreeSet::new());
    check(&large, |op, sample| {
        let takes = taken(op, sample, "LARGE");
        ran.borrow_mut().extend(takes.then_some(op.name));
        takes
    });
    assert_eq!(
        ran.into_inner().into_iter().collect::<Vec<_>>(),
        ["linear", "linear_cross_entropy", "linear_dx", "matmul"]
    );
    let split = |op: &OpDef, s: &Sample| dispatches(op, s, &caps[0]).iter().flatten().any(|d| d.shader == "sum_parts");
    let splits = std::cell::Cell::new(0);
    let same = |op: &OpDef, s: &Sample| {
        let takes = taken(op, s, "LARGE");
        splits.set(splits.get() + usize::from(takes && split(op, s)));
        takes
    };
    assert!(same_bits(&large, &usual, same) >= 20 && splits.get() > 0, "{} splits", splits.get());
}

/// Runs the samples that `wanted` picks on both devices, which must give the same bits; how many.
fn same_bits(one: &Device, other: &Device, wanted: impl Fn(&OpDef, &Sample) -> bool) -> usize {
    let (ran, wrong) = compared(one, other, wanted);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    ran.len()
}

/// Runs the samples that `wanted` picks on both devices, with activations in f32 and in the 16 bits that they have: their ops, and
/// where the devices differ.
fn compared(
    one: &Device,
    other: &Device,
    wanted: impl Fn(&OpDef, &Sample) -> bool,
) -> (Vec<&'static str>, Vec<String>) {
    let (mut one, mut other) = (one.open(), other.open());
    let (mut ran, mut wrong) = (Vec::new(), Vec::new());
    for op in ops::table() {
        for sample in (op.samples)().iter().filter(|s| wanted(op, s)) {
            let narrow = one.caps().compute_dtype.and_then(|dtype| in_16_bits(op, sample, dtype));
            for sample in [Some(sample), narrow.as_ref()].into_iter().flatten() {
                let (stored, _) = operands(op.name, sample).unwrap();
                let run = |device: &mut dyn Backend| {
                    let ins = sample.ins.iter().map(|i| i.ty.clone()).zip(stored.iter().map(Vec::as_slice)).collect();
                    Run { op, attr: &sample.attr, ins, shared: &[] }.on(device)
                };
                let (a, b) = (run(&mut *one), run(&mut *other));
                if a.is_err() || a != b {
                    wrong.push(format!("{} ({}): {:?}", op.name, sample.name, (a.err(), b.err())));
                }
                ran.push(op.name);
            }
        }
    }
    (ran, wrong)
}

/// Shaders that run without bounds checks give the bits that they give with them, read and write nothing else. A third of the
/// samples: compiling the shaders takes most of the time, and `tests/shaders/bounds.rs` walks all of them.
#[cfg(feature = "wgpu")]
#[test]
fn unchecked_kernels_give_the_checked_kernels_bits() {
    let (Some(usual), Some(checked)) = (Device::wgpu(), Device::wgpu_checked()) else { return };
    let caps = usual.open().caps().clone();
    let seen = std::cell::Cell::new(0);
    let unchecked = |op: &OpDef, s: &Sample| {
        let is = dispatches(op, s, &caps).iter().flatten().any(|d| !trimtab::backend::wgpu::is_checked(d.shader));
        seen.set(seen.get() + is as usize);
        is && seen.get().is_multiple_of(3)
    };
    assert!(same_bits(&usual, &checked, unchecked) >= 20);
}

/// What a sample is lowered to on a device of WGSL with `caps`.
fn dispatches(op: &OpDef, sample: &Sample, caps: &Caps) -> Result<Vec<ops::WgslDispatch>, String> {
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &ins)?;
    let shared = vec![None; outs.len()];
    let lower = ops::Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &shared, caps };
    (op.wgsl)(&lower).map_err(|e| e.to_string())
}

/// CUDA's kernels, their PTX interpreted.
#[test]
fn on_interpreted_cuda() {
    if let Some(device) = Device::ptx(80) {
        check(&device, |_, _| true);
    }
}

/// The same for a card without bf16.
#[test]
fn on_interpreted_cuda_75() {
    if let Some(device) = Device::ptx(75) {
        check(&device, |_, _| true);
    }
}

/// Cards take different tiles; what a card of these runs and sm_80 does not.
#[cfg(feature = "cuda")]
#[test]
fn on_interpreted_cuda_with_the_tiles_of_other_cards() {
    for arch in [86, 90] {
        let other =
            |op: &OpDef, s: &Sample| launches(op, s, &caps("".into(), arch)) != launches(op, s, &caps("".into(), 80));
        if let Some(device) = Device::ptx(arch) {
            check(&device, other);
        }
    }
}

/// The launches of a sample on a card with `caps`: its activations in f32, then in 16 bits.
#[cfg(feature = "cuda")]
fn launches(op: &OpDef, sample: &Sample, caps: &Caps) -> [Option<Vec<CudaLaunch>>; 2] {
    let narrow = caps.compute_dtype.and_then(|dtype| in_16_bits(op, sample, dtype));
    let lower = |sample: &Sample| {
        let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
        let outs = op.types(&sample.attr, &ins).ok()?;
        let shared = vec![None; outs.len()];
        (op.cuda)(&ops::Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &shared, caps }).ok()
    };
    [lower(sample), narrow.as_ref().and_then(lower)]
}

/// Cards of few multiprocessors split sums into fewer parts, and where launches must be short there are more of them: what of
/// that a card of the usual kind does not run.
#[cfg(feature = "cuda")]
#[test]
fn on_interpreted_cuda_of_other_sizes() {
    let usual = caps("".into(), 80);
    let parts = |op: &OpDef, s: &Sample, caps: &Caps| {
        let part = |l: &CudaLaunch| (l.entry, l.grid[2]);
        launches(op, s, caps).map(|all| all.map(|all| all.iter().map(part).collect::<Vec<_>>()))
    };
    let few = |n| Caps { multiprocessors: Some(n), ..usual.clone() };
    let short = Caps { max_flops: 1 << 20, ..usual.clone() };
    // Of samples of one op that are cut alike, the second is enough: the first is the smallest.
    for (name, caps, most) in [("2 multiprocessors", few(2), usize::MAX), ("short launches", short, 2)] {
        let Some(device) = Device::ptx_of(name, caps.clone()) else { return };
        let ran = std::cell::RefCell::new(Vec::new());
        check(&device, |op, sample| {
            let differs = parts(op, sample, &caps) != parts(op, sample, &usual);
            let before = ran.borrow().iter().filter(|&&name| name == op.name).count();
            ran.borrow_mut().extend(differs.then_some(op.name));
            differs && before < most && (most == usize::MAX || before > 0)
        });
        let mut ops = ran.take();
        assert!(ops.len() >= 3, "{name}: only {ops:?} have other launches");
        ops.dedup();
        let cut =
            ["matmul", "linear", "linear_dx", "linear_cross_entropy", "attention", "attention_bwd", "attention_dbias"];
        assert!(most == usize::MAX || cut.iter().all(|name| ops.contains(name)), "{name}: only {ops:?} are cut");
    }
}

/// The large tile gives the bits of the middle one, which is estimated to be faster for all but a few samples; those are large.
#[cfg(feature = "cuda")]
#[test]
fn tiles_of_interpreted_cuda_change_no_bit() {
    let usual = caps("".into(), 80);
    let large = usual.tiled(Tiling::Large);
    let of = |caps: &Caps| Device::ptx_of("tiles", caps.clone());
    let (Some(one), Some(other)) = (of(&large), of(&usual)) else { return };
    // Half of them: neighbours are alike.
    let seen = std::cell::Cell::new(0);
    let (ran, wrong) = compared(&one, &other, |op, s| {
        let is = launches(op, s, &large) != launches(op, s, &usual);
        seen.set(seen.get() + usize::from(is));
        is && seen.get().is_multiple_of(2)
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, least) in [("linear", 8), ("linear_cross_entropy", 4), ("linear_dx", 8), ("matmul", 4)] {
        let found = ran.iter().filter(|&&op| op == name).count();
        assert!(found >= least, "{name}: {found} samples have a choice");
    }
}

/// The control: where sums are split elsewhere, bits differ, and that is seen.
#[cfg(feature = "cuda")]
#[test]
fn control_sums_that_are_split_elsewhere_are_seen() {
    let usual = caps("".into(), 80);
    let few = Caps { multiprocessors: Some(2), ..usual.clone() };
    let of = |caps: &Caps| Device::ptx_of("parts", caps.clone());
    let (Some(one), Some(other)) = (of(&usual), of(&few)) else { return };
    let parts = |op: &OpDef, s: &Sample, caps: &Caps| {
        let [wide, _] = launches(op, s, caps);
        wide.map(|all| all.iter().map(|launch| launch.grid[2]).collect::<Vec<_>>())
    };
    let seen = std::cell::Cell::new(0);
    let split = |op: &OpDef, s: &Sample| {
        let differs = parts(op, s, &few) != parts(op, s, &usual);
        seen.set(seen.get() + usize::from(differs));
        differs && seen.get() <= 3
    };
    let (ran, wrong) = compared(&one, &other, split);
    assert!(!wrong.is_empty(), "{ran:?} have the same bits");
}

/// A Hopper of one multiprocessor, which a tile fills.
#[cfg(feature = "cuda")]
fn hopper() -> Caps {
    Caps { multiprocessors: Some(1), ..caps("".into(), 90) }
}

/// What of a sample's launches is by wgmma there.
#[cfg(feature = "cuda")]
fn by_wgmma(op: &OpDef, s: &Sample) -> Vec<&'static str> {
    let all = launches(op, s, &hopper()).into_iter().flatten().flatten();
    all.map(|launch| launch.entry).filter(|entry| entry.ends_with("wgmma")).collect()
}

#[cfg(feature = "cuda")]
#[test]
fn on_an_interpreted_hopper() {
    let Some(device) = Device::ptx_of("Hopper of one multiprocessor", hopper()) else { return };
    let ran = std::cell::RefCell::new(Vec::new());
    check(&device, |op, sample| {
        let entries = by_wgmma(op, sample);
        ran.borrow_mut().extend(entries.iter().copied());
        !entries.is_empty()
    });
    let ran = ran.take();
    let least = [
        ("linear_wgmma", 6),
        ("linear_dx_wgmma", 6),
        ("matmul_wgmma", 2),
        ("attention_wgmma", 4),
        ("attention_dq_wgmma", 4),
        ("attention_dkv_wgmma", 4),
    ];
    for (entry, least) in least {
        assert!(ran.iter().filter(|&&name| name == entry).count() >= least, "{entry}: {ran:?}");
    }
}

/// The wide tile gives the bits of the square one.
#[cfg(feature = "cuda")]
#[test]
fn tiles_of_an_interpreted_hopper_change_no_bit() {
    let of = |tiling| Device::ptx_of("tiles of a Hopper", hopper().tiled(tiling));
    let (Some(one), Some(other)) = (of(Tiling::Large), of(Tiling::Middle)) else { return };
    // Of linear layers a third: neighbours are alike.
    let seen = std::cell::Cell::new(0);
    let (ran, wrong) = compared(&one, &other, |op, s| {
        let by = by_wgmma(op, s);
        let layer = by.iter().any(|entry| entry.starts_with("linear"));
        seen.set(seen.get() + usize::from(layer));
        by.contains(&"matmul_wgmma") || layer && seen.get().is_multiple_of(3)
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in ["linear", "linear_cross_entropy", "linear_dx", "matmul"] {
        assert!(ran.contains(&name), "{name}: {ran:?}");
    }
}

/// A weight is widened exactly, whether the kernel reads words or the type f16.
#[test]
fn f16_kernels_give_the_plain_kernels_bits() {
    let (Some(plain), Some(able)) = (Device::wgpu_plain(), Device::wgpu_without_subgroups()) else { return };
    let (mut plain, mut able) = (plain.open(), able.open());
    if !able.caps().f16 {
        eprintln!("SKIPPED: {} has no f16", able.caps().device);
        return;
    }
    let defines = |d: &dyn Backend, ty: &Ty| weight_defines(ty, d.caps()).unwrap_or_default().join(" ");
    let mut ran = 0;
    for op in ops::table() {
        for (i, sample) in (op.samples)().iter().enumerate() {
            let tys: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
            if !tys.iter().any(|ty| defines(&*able, ty) == "W_F16 F16" && defines(&*plain, ty) == "W_F16") {
                continue;
            }
            let (stored, _) = operands(op.name, sample).unwrap();
            let run = |device: &mut dyn Backend| {
                let ins = tys.iter().cloned().zip(stored.iter().map(Vec::as_slice)).collect();
                Run { op, attr: &sample.attr, ins, shared: &[] }.on(device)
            };
            let (a, b) = (run(&mut *plain), run(&mut *able));
            assert!(a.is_ok() && a == b, "{} #{i} ({}): {:?}", op.name, sample.name, (a.err(), b.err()));
            ran += 1;
        }
    }
    assert!(ran >= 8, "only {ran} samples have such a weight");
}

/// Blocks of tokens, without a vocabulary of hundreds of thousands.
#[test]
fn on_interpreted_cuda_with_little_scratch() {
    if let Some(device) = Device::ptx_small(80, 64 << 10) {
        check(&device, |_, sample| sample.name.starts_with("several blocks of tokens"));
    }
}

/// Operands that are larger than a binding may be, without large operands: everything that splits, splits here. Attention does
/// not, and refuses such.
#[test]
fn on_wgpu_under_small_limits() {
    const LIMIT: u64 = 64 << 10;
    if let Some(device) = Device::wgpu_small(LIMIT) {
        let large = |sample: &Sample| sample.ins.iter().any(|i| i.ty.bytes() as u64 > LIMIT);
        let refuses = |op: &OpDef| matches!(op.name, "attention" | "attention_bwd");
        check(&device, |op, sample| !refuses(op) && large(sample));
        let caps = device.open().caps().clone();
        for op in ops::table().filter(|op| refuses(op)) {
            for sample in (op.samples)().iter().filter(|sample| large(sample)) {
                let found = dispatches(op, sample, &caps).expect_err(&sample.name);
                assert!(found.contains("use fewer --micro-tokens"), "{}: {found}", sample.name);
            }
        }
    }
}

/// Kernels that are wrong, to see that each check sees.
mod controls {
    use super::*;
    use trimtab::ops::{Arg, Attr, Cost, SampleIn, Tensor, WgslDispatch};

    /// y = 2x; `in_place` is claimed.
    const RIGHT: OpDef = OpDef {
        name: "twice",
        infer: |_, ins| Ok(vec![ins[0].clone()]),
        reference: |_, ins| vec![Tensor::new(&ins[0].shape, ins[0].data.iter().map(|x| 2.0 * x).collect())],
        in_place: &[(0, 0)],
        cost: |_, _, _| Cost { flops: 1, terms: 1 },
        host: |call| call.map(0, [0], |[x]| 2.0 * x),
        ..OpDef::COMPUTE
    };

    fn sample() -> Sample {
        Sample::new("control", Attr::None, vec![SampleIn::normal(Ty::f32(&[37]))])
    }

    fn see(op: &'static OpDef, what: &str) {
        let found = verdict(op, &sample(), &mut *Device::cpu().open());
        assert!(found.as_ref().is_some_and(|f| f.contains(what)), "expected {what:?}, found {found:?}");
    }

    #[test]
    fn the_right_kernel_passes() {
        static OP: OpDef = RIGHT;
        assert_eq!(verdict(&OP, &sample(), &mut *Device::cpu().open()), None);
    }

    #[test]
    fn a_slightly_wrong_value_is_seen() {
        static OP: OpDef = OpDef { host: |c| c.map(0, [0], |[x]| x * 2.000_05), ..RIGHT };
        see(&OP, "off by");
    }

    #[test]
    fn a_write_behind_the_output_is_seen() {
        static OP: OpDef = OpDef {
            host: |c| {
                c.map(0, [0], |[x]| 2.0 * x);
                // SAFETY: the test's buffer goes on behind the output.
                unsafe { c.output_ptr::<f32>(0).add(37).write(1.0) };
            },
            ..RIGHT
        };
        see(&OP, "outside of all operands");
    }

    #[test]
    fn a_written_input_is_seen() {
        static OP: OpDef = OpDef {
            host: |c| {
                c.map(0, [0], |[x]| 2.0 * x);
                // SAFETY: the element lies in the input.
                unsafe { c.input_ptr::<f32>(0).add(0).write(1.0) };
            },
            ..RIGHT
        };
        see(&OP, "input 0 was written");
    }

    #[test]
    fn an_element_left_out_is_seen() {
        static OP: OpDef = OpDef {
            host: |c| {
                for (y, x) in c.output::<f32>(0).iter_mut().zip(c.input::<f32>(0)).skip(1) {
                    *y = 2.0 * x;
                }
            },
            ..RIGHT
        };
        see(&OP, "NaN");
    }

    #[test]
    fn a_read_behind_the_input_is_seen() {
        static OP: OpDef = OpDef {
            host: |c| {
                // SAFETY: the test's buffer goes on behind the input.
                let next = unsafe { c.input_ptr::<f32>(0).add(37).read() };
                c.map(0, [0], |[x]| 2.0 * x + 0.0 * next);
            },
            ..RIGHT
        };
        see(&OP, "NaN");
    }

    #[test]
    fn a_kernel_that_cannot_run_in_place_is_seen() {
        static OP: OpDef = OpDef {
            host: |c| {
                let (x, y) = (c.input_ptr::<f32>(0), c.output_ptr::<f32>(0));
                for i in 0..37 {
                    // SAFETY: within the operands; element i is read after element i-1 was written.
                    unsafe { y.add(i).write(2.0 * x.add(i).read() + 0.0 * x.add(0).read()) };
                    unsafe { y.add(0).write(2.0 * x.add(0).read()) };
                }
            },
            ..RIGHT
        };
        see(&OP, "in place");
    }

    #[test]
    fn a_result_that_changes_is_seen() {
        use std::sync::atomic::{AtomicU32, Ordering};
        static RUNS: AtomicU32 = AtomicU32::new(0);
        static OP: OpDef = OpDef {
            host: |c| {
                let ulp = f32::EPSILON * RUNS.fetch_add(1, Ordering::Relaxed) as f32;
                c.map(0, [0], |[x]| 2.0 * x * (1.0 + ulp));
            },
            ..RIGHT
        };
        see(&OP, "its bits differ");
    }

    /// Threads draw parts of an operand; the numbers are those of one sequence.
    #[test]
    fn operands_are_one_sequence() {
        for (dtype, n) in [(DType::F32, 9001), (DType::BF16, 8193), (DType::Nf4, 270_001), (DType::Nf4Dq, 8195)] {
            let ty = Ty::new(dtype, &[1, n]);
            let sample = Sample::new(
                "s",
                Attr::None,
                vec![SampleIn::normal(ty.clone()), SampleIn::uniform(ty.clone(), -1.0, 2.0)],
            );
            let mut randoms = [0, 1].map(|i| Random::named(&format!("op/s/None/{i}")));
            let normal: Vec<f64> = (0..n).map(|_| randoms[0].normal()).collect();
            let uniform: Vec<f64> = (0..n).map(|_| -1.0 + 3.0 * randoms[1].uniform()).collect();
            let expected = [normal, uniform].map(|values| encode(&ty, &values).unwrap());
            let found = stored("op", &sample).unwrap();
            assert!(found == expected, "{ty}");
            assert!(operands("op", &sample).unwrap().0 == found, "{ty}");
            assert!(found[0] != found[1], "the control");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        static OP: OpDef = RIGHT;
        let values = |n, of: usize| {
            let ins = vec![SampleIn::values(Ty::f32(&[of]), vec![1.0; n])];
            verdict(&OP, &Sample::new("control", Attr::None, ins), &mut *Device::cpu().open())
        };
        assert_eq!(values(3, 3), None);
        assert!(values(3, 4).is_some_and(|found| found.contains("found 3 values")));
        let nan = SampleIn::constant(Ty::new(DType::Nf4, &[64]), f64::NAN);
        assert!(operands("op", &Sample::new("NaN", Attr::None, vec![nan])).is_err());
        let on = |bytes: &[u8], shared: &[(usize, usize)]| {
            Run { op: &OP, attr: &Attr::None, ins: vec![(Ty::f32(&[2]), bytes)], shared }.on(&mut *Device::cpu().open())
        };
        assert!(on(&[0; 8], &[(0, 0)]).is_ok());
        assert!(on(&[0; 4], &[]).is_err_and(|e| e.contains("4 bytes, expected 8")));
        assert!(on(&[0; 8], &[(0, 1)]).is_err_and(|e| e.contains("cannot share")));
        assert!(on(&[0; 8], &[(1, 0)]).is_err_and(|e| e.contains("cannot share")));
        // An output of which bytes are missing is not right.
        let meant = operands("twice", &sample()).unwrap().1;
        assert!(judge(&OP, &sample(), &meant, &[vec![0; 4]]).is_err_and(|e| e.contains("1 elements, expected 37")));
        assert!(judge(&OP, &sample(), &meant, &[]).is_err());
    }

    #[test]
    fn wrong_cases_are_seen() {
        let see = |op: &OpDef, what: &str| {
            let found = wrong_cases(op, &Sizes::default());
            assert!(found.len() == 1 && found[0].contains(what), "expected {what:?}, found {found:?}");
        };
        fn of(name: &str, n: usize) -> Case {
            Case::new(name, Attr::None, vec![SampleIn::f32(&[n])])
        }
        see(&RIGHT, "no case");
        see(&OpDef { cases: |s| vec![of("a", s.tokens), of("b", 1), of("a", 2)], ..RIGHT }, "a: another case");
        see(&OpDef { cases: |_| vec![of("a", 1).in_place(&[(0, 1)])], ..RIGHT }, "(0, 1) cannot share");
        see(&OpDef { infer: |_, _| Err("no".into()), cases: |_| vec![of("a", 1)], ..RIGHT }, "a: no");
        let short = |_: &Sizes| vec![Case::new("a", Attr::None, vec![SampleIn::values(Ty::f32(&[2]), vec![1.0])])];
        see(&OpDef { cases: short, ..RIGHT }, "another number of values");
    }

    #[test]
    fn results_that_grow_or_vanish_are_seen() {
        let case = Case { sample: sample(), shared: &[(0, 0)] };
        let times = |reference| drifts(&OpDef { reference, ..RIGHT }, &case);
        fn by(factor: f64, x: &Tensor) -> Vec<Tensor> {
            vec![Tensor::new(&x.shape, x.data.iter().map(|x| factor * x).collect())]
        }
        assert!(times(|_, x| by(1.01, &x[0])).is_some_and(|found| found.contains("grows")));
        assert!(times(|_, x| by(0.9, &x[0])).is_some_and(|found| found.contains("vanishes")));
        assert!(times(|_, x| by(f64::NAN, &x[0])).is_some());
        assert_eq!(times(|_, x| by(-1.0, &x[0])), None);
    }

    /// On wgpu no kernel can write outside of what is bound; one that writes the wrong operand is seen.
    #[test]
    fn a_wgsl_kernel_that_writes_its_input_is_seen() {
        static OP: OpDef = OpDef {
            infer: |_, ins| Ok(vec![Ty::f32(&[ins[0].cols()])]),
            reference: |_, ins| vec![Tensor::zeros(&[ins[0].cols()])],
            in_place: &[],
            wgsl: |l| {
                assert_eq!(l.caps.target, Target::Wgsl);
                Ok(vec![WgslDispatch {
                    shader: "sum_rows",
                    defines: vec![],
                    entry: "sum_rows",
                    constants: vec![],
                    grid: [1, 1, 1],
                    args: vec![Arg::In(0), Arg::Out(0)],
                    params: vec![1, 37],
                    flops: 37,
                }])
            },
            ..RIGHT
        };
        if let Some(device) = Device::wgpu() {
            let found = verdict(&OP, &sample(), &mut *device.open());
            assert!(found.as_ref().is_some_and(|f| f.contains("input 0 was written")), "{found:?}");
        }
    }
}
