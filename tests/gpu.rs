//! The interpreter that stands in for a CUDA card, against a card: every row, every sample, through the same PTX
//! compiler. What only hardware can tell (fragment and swizzle layouts, its own rounding) shows here as a difference.
//! Without a card nothing is run. TRIMTAB_GPU_REPORT names a file that gets a line of JSON a case.

mod common;

use std::io::Write;

use common::devices::Device;
use trimtab::backend::Backend;
use trimtab::bench::operands::{decode, in_16_bits, operands};
use trimtab::bench::truth::allowed;
use trimtab::bench::watched::Run;
use trimtab::dtype::{DType, Ty};
use trimtab::ops::{self, OpDef, Sample};

/// One output of one sample, on both.
struct Case {
    output: usize,
    /// Largest difference of two elements, and what is allowed.
    difference: f64,
    allowed: f64,
    equal_bits: bool,
}

fn compare(
    op: &'static OpDef,
    sample: &Sample,
    card: &mut dyn Backend,
    ptx: &mut dyn Backend,
) -> Result<Vec<Case>, String> {
    let (stored, meant) = operands(op.name, sample)?;
    let tys: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &tys)?;
    let run = |device: &mut dyn Backend| {
        let ins = tys.iter().cloned().zip(stored.iter().map(Vec::as_slice)).collect();
        Run { op, attr: &sample.attr, ins, shared: &[] }.on(device)
    };
    let (hard, soft) =
        (run(card).map_err(|e| format!("card: {e}"))?, run(ptx).map_err(|e| format!("interpreter: {e}"))?);
    let wants = (op.reference)(&sample.attr, &meant);
    let allowed = allowed(op, sample, &meant, &wants)?;
    let case = |(o, ty): (usize, &Ty)| {
        let (a, b) = (decode(ty, &hard[o]), decode(ty, &soft[o]));
        let apart = |(x, y): (&f64, &f64)| if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() };
        let worst = |w: f64, d: f64| if d.is_nan() || d > w { if d.is_nan() { f64::INFINITY } else { d } } else { w };
        let difference = a.iter().zip(&b).map(apart).fold(0.0, worst);
        // Each may be off by what is allowed, to either side.
        Case { output: o, difference, allowed: 2.0 * allowed[o], equal_bits: hard[o] == soft[o] }
    };
    Ok(outs.iter().enumerate().map(case).collect())
}

#[test]
fn the_interpreter_agrees_with_the_card() {
    let Some(card) = Device::cuda() else { return eprintln!("SKIPPED: no CUDA card") };
    let mut card = card.open();
    // One with the card's type of 16 bits: before sm_80 that is f16.
    let compute_dtype = card.caps().compute_dtype.unwrap_or(DType::BF16);
    let Some(ptx) = Device::ptx(if compute_dtype == DType::BF16 { 80 } else { 75 }) else { return };
    let mut ptx = ptx.open();
    let mut report = std::env::var_os("TRIMTAB_GPU_REPORT").map(|path| std::fs::File::create(path).unwrap());
    let mut wrong = Vec::new();
    for op in ops::table() {
        for sample in (op.samples)() {
            let narrow = in_16_bits(op, &sample, compute_dtype);
            for sample in [Some(&sample), narrow.as_ref()].into_iter().flatten() {
                let name = format!("{} ({}) {}", op.name, sample.name, sample.ins[0].ty.dtype);
                let cases = compare(op, sample, &mut *card, &mut *ptx);
                if let Some(file) = &mut report {
                    let lines = match &cases {
                        Ok(cases) => cases
                            .iter()
                            .map(|c| {
                                serde_json::json!({"case": name, "output": c.output, "difference": c.difference,
                                    "allowed": c.allowed, "equal_bits": c.equal_bits})
                            })
                            .collect(),
                        Err(e) => vec![serde_json::json!({"case": name, "error": e})],
                    };
                    lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
                }
                match cases {
                    Ok(cases) => wrong.extend(cases.iter().filter(|c| c.difference > c.allowed).map(|c| {
                        format!("{name} output {}: {:.2e} apart, allowed {:.2e}", c.output, c.difference, c.allowed)
                    })),
                    Err(e) => wrong.push(format!("{name}: {e}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the account says is what the driver says it gave.
#[test]
fn the_driver_allocates_what_the_account_says() {
    if Device::cuda().is_none() {
        return eprintln!("SKIPPED: no CUDA card");
    }
    let mut card = trimtab::backend::cuda::Cuda::new(None).unwrap();
    for bytes in [256u64, 4096, 1 << 20, (3 << 20) + 256] {
        let buffer = card.alloc(bytes).unwrap();
        assert_eq!(card.allocated(buffer).unwrap(), bytes);
        let before = card.memory();
        card.free(buffer);
        assert_eq!(before - card.memory(), bytes);
    }
}
