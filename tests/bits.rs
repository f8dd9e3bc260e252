//! Ops whose results are bits and not approximations, on every device: casts between float types, NF4 as
//! bitsandbytes makes it, and what the losses leave where nothing is trained.

mod common;

use std::slice::from_ref;

use common::devices::Device;
use half::{bf16, f16};
use trimtab::backend::{Backend, Caps, Launch, Slice, Target};
use trimtab::bench::operands::{Random, in_16_bits, operands};
use trimtab::bench::watched::Run;
use trimtab::dtype::{DType, Nf4Layout, Ty};
use trimtab::ops::elementwise::{CAST, SCALE};
use trimtab::ops::linear::{LINEAR, LINEAR_DX};
use trimtab::ops::logit_loss::{BCE_WITH_LOGITS, CROSS_ENTROPY, MSE, RANGE_CROSS_ENTROPY};
use trimtab::ops::{Attr, Loss, Lower, OpDef, quant::NF4_DEQUANTIZE, quant::NF4_QUANTIZE};
use trimtab::plan::{Operands, lower};
use trimtab::quant::nf4;

/// A weight that a launch of its own decodes gives the bits of one that the product's tiles decode.
#[test]
fn weights_decoded_first_give_the_bits_of_those_decoded_inside() {
    let (Some(before), Some(inside)) = (Device::ptx(90), Device::ptx_small(90, 1 << 10)) else { return };
    let (mut before, mut inside) = (before.open(), inside.open());
    for op in [&LINEAR, &LINEAR_DX] {
        let samples = (op.samples)();
        let samples: Vec<_> = samples.iter().filter(|s| s.name.starts_with("decoded first")).collect();
        assert_eq!(samples.len(), 3);
        for sample in samples {
            let sample = in_16_bits(op, sample, DType::BF16).unwrap();
            let (stored, _) = operands(op.name, &sample).unwrap();
            let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
            let outs = op.types(&sample.attr, &ins).unwrap();
            let run = |device: &mut dyn Backend| {
                let ins = ins.iter().cloned().zip(stored.iter().map(Vec::as_slice)).collect();
                Run { op, attr: &sample.attr, ins, shared: &[] }.on(device).unwrap()
            };
            assert!(run(&mut *before) == run(&mut *inside), "{} ({})", op.name, sample.name);
            // The control: they are not the same launches.
            let decodes = |caps: &Caps| {
                let lower = Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &vec![None; outs.len()], caps };
                (op.cuda)(&lower).unwrap().iter().any(|launch| launch.entry == "dequantize")
            };
            assert_eq!((decodes(before.caps()), decodes(inside.caps())), (true, false));
        }
    }
}

fn everywhere() -> Vec<Device> {
    let cpu = Some(Device::cpu());
    [cpu, Device::wgpu(), Device::ptx(75), Device::ptx(80), Device::cuda()].into_iter().flatten().collect()
}

/// Bits of f32 at which rounding to 16 bits turns: ties, carries into the exponent, the smallest and the largest.
fn turning_points() -> Vec<u32> {
    let mut all = vec![0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff, 1, 0x007f_ffff, 0x0080_0000];
    // Every exponent of an f16 and around it, each with fractions on, just below and just above ties of both types.
    for exponent in (0..=255u32).filter(|e| (95..150).contains(e) || e % 50 == 1) {
        for fraction in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_f000] {
            for fraction in [fraction, fraction << 3 & 0x7f_ffff, 0x7f_ffff - fraction] {
                all.push(exponent << 23 | fraction);
                all.push(1 << 31 | exponent << 23 | fraction);
            }
        }
    }
    all.retain(|&b| !f32::from_bits(b).is_nan());
    all
}

fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = match dtype {
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    bytes.resize(dtype.bytes(values.len()), 0);
    bytes
}

fn widened(dtype: DType, bytes: &[u8], n: usize) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter().copied().map(u16::from_le_bytes);
    match dtype {
        DType::BF16 => pairs.take(n).map(|b| bf16::from_bits(b).to_f32()).collect(),
        DType::F16 => pairs.take(n).map(|b| f16::from_bits(b).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

#[test]
fn casts_round_to_the_nearest_even() {
    let mut values: Vec<f32> = turning_points().into_iter().map(f32::from_bits).collect();
    values.truncate(values.len() - (values.len() + 1) % 2); // an odd tail
    let n = values.len();
    for device in everywhere() {
        let mut backend = device.open();
        for from in [DType::F32, DType::BF16, DType::F16] {
            let x = bytes(from, &values);
            for to in [DType::F32, DType::BF16, DType::F16].into_iter().filter(|&to| to != from) {
                let run =
                    Run { op: &CAST, attr: &Attr::Cast(to), ins: vec![(Ty::new(from, &[1, n]), &x)], shared: &[] };
                let found = run.on(&mut *backend).unwrap().remove(0);
                let wide = widened(from, &x, n);
                let expected = bytes(to, &wide);
                let size = expected.len() / n;
                let wrong: Vec<String> = (0..n)
                    .map(|i| (i, i * size..(i + 1) * size))
                    .filter(|(_, r)| found[r.clone()] != expected[r.clone()])
                    .map(|(i, r)| format!("{:e}: {:?}, expected {:?}", wide[i], &found[r.clone()], &expected[r]))
                    .collect();
                assert!(wrong.is_empty(), "{from} to {to} on {}: {}", device.name, wrong.join("\n"));
            }
        }
    }
    // The control: cutting bits off instead of rounding is another result for many of these values.
    let cut = values.iter().filter(|v| bf16::from_f32(**v).to_bits() != (v.to_bits() >> 16) as u16).count();
    assert!(cut > 100, "{cut}");
}

/// What kernels write in f16 is the nearest to the product in f32, to the bit: ties, what is below the normal numbers, and what is
/// beyond all.
#[test]
fn results_in_f16_are_the_nearest() {
    let all = (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_normal()).map(f16::to_f32).collect::<Vec<f32>>();
    assert_eq!(all.len() % 4, 0, "kernels take them by fours");
    let x = bytes(DType::F16, &all);
    for device in everywhere() {
        let mut backend = device.open();
        if backend.caps().compute_dtype != Some(DType::F16) {
            continue;
        }
        let mut small = 0;
        for factor in [1.0f32, 1.0 / 3.0, 3.0, 1e-3, 0.75, 1.0 + 1.0 / 2048.0] {
            let ins = vec![
                (Ty::new(DType::F16, &[1, all.len()]), x.as_slice()),
                (Ty::f32(&[1]), bytemuck::bytes_of(&factor)),
            ];
            let found = Run { op: &SCALE, attr: &Attr::None, ins, shared: &[] }.on(&mut *backend).unwrap().remove(0);
            let wide: Vec<f32> = all.iter().map(|x| x * factor).collect();
            let wrong =
                found.as_chunks::<2>().0.iter().zip(&wide).find(|(b, w)| **b != f16::from_f32(**w).to_le_bytes());
            assert_eq!(wrong, None, "times {factor} on {}", device.name);
            small += wide.iter().filter(|w| (1e-7..6e-5).contains(&w.abs())).count();
        }
        assert!(small > 1000, "only {small} results are below the normal numbers");
    }
    // The control: toward zero it is another number for many of them.
    let toward_zero =
        |x: &&f32| f16::from_f32(f32::from_bits((**x * 0.75).to_bits() & !0x1fff)) != f16::from_f32(**x * 0.75);
    assert!(all.iter().filter(toward_zero).count() > 1000);
}

/// Rows that a loss does not count: whatever is in them, the loss is the same, and their gradient is 0.
#[test]
fn rows_that_do_not_count_are_not_read() {
    fn words(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
    let floats = |values: &[f32]| bytes(DType::F32, values);
    let labels = || (Ty::i32(&[7]), words(&[0, -100, 1, 2, 1, -1, i32::MIN]));
    let weight = || (Ty::f32(&[7]), floats(&[1.0, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0]));
    // An empty range between two, and labels before and after theirs.
    let ranges = || (Ty::i32(&[4, 2]), words(&[0, 2, 3, 4, 4, 4, 5, 7]));
    let positions = || (Ty::i32(&[4, 2]), words(&[0, 1, 0, 0, 0, 0, -1, 2]));
    // What comes after the logits, and which of their rows count. Targets are as the logits.
    type Case<'a> = (&'static OpDef, bool, Vec<(Ty, Vec<u8>)>, &'a [usize]);
    let cases: [Case; 4] = [
        (&CROSS_ENTROPY, false, vec![labels()], &[0, 2, 4]),
        (&BCE_WITH_LOGITS, true, vec![weight()], &[0, 2, 4]),
        (&MSE, true, vec![weight()], &[0, 2, 4]),
        (&RANGE_CROSS_ENTROPY, false, vec![ranges(), positions()], &[0, 1, 3]),
    ];
    for device in everywhere() {
        let mut backend = device.open();
        for (op, has_targets, rest, counted) in &cases {
            let mut run = |inside: f32, outside: f32| {
                let row = |r: usize| match counted.contains(&r) {
                    true => [inside * r as f32, inside],
                    false => [outside, 2.0 * outside],
                };
                let x = floats(&(0..7).flat_map(row).collect::<Vec<f32>>());
                let targets = floats(&(0..7).flat_map(row).map(|v| 0.3 * v).collect::<Vec<f32>>());
                let inv = floats(&[0.5]);
                let logits = Ty::f32(&[7, 2]);
                let mut ins: Vec<(Ty, &[u8])> = vec![(logits.clone(), &x)];
                ins.extend(has_targets.then_some((logits, targets.as_slice())));
                ins.extend(rest.iter().map(|(ty, bytes)| (ty.clone(), bytes.as_slice())));
                ins.push((Ty::f32(&[1]), &inv));
                let attr = Attr::Loss(Loss { grad_x: true, grad_w: false });
                Run { op, attr: &attr, ins, shared: &[] }.on(&mut *backend).unwrap()
            };
            let (finite, nan, infinite) = (run(0.7, 1.5), run(0.7, f32::NAN), run(0.7, f32::INFINITY));
            assert!(finite == nan && finite == infinite, "{} on {}", op.name, device.name);
            for (r, row) in finite[1].as_chunks::<8>().0.iter().enumerate().filter(|(r, _)| !counted.contains(r)) {
                assert_eq!(row, &[0; 8], "row {r} of {} on {}", op.name, device.name);
            }
            // The control: a row that counts is read.
            let other = run(0.8, 1.5);
            assert!(other[0] != finite[0] && other[1] != finite[1], "{} on {}", op.name, device.name);
        }
    }
}

/// Normal numbers, some of them zero.
fn weights(n: usize) -> Vec<f32> {
    let mut random = Random::new(n as u64);
    (0..n).map(|i| if i % 97 == 5 { 0.0 } else { random.normal() as f32 }).collect()
}

/// Whether the kernels of `backend` promise bitsandbytes' bits.
fn exact(backend: &dyn Backend) -> bool {
    matches!(backend.caps().target, Target::Host | Target::Cuda)
}

#[test]
fn nf4_is_bitsandbytes() {
    for device in everywhere() {
        let mut backend = device.open();
        if !exact(&*backend) {
            continue;
        }
        // Blocks of scales below a row of eight, below a group of 32, and with every kind of rest.
        for n in [1, 63, 64 * 3 + 1, 64 * 7, 64 * 8, 64 * 43 + 2, 64 * 551 + 17] {
            for double in [false, true] {
                let x = weights(n);
                let layout = Nf4Layout::new(n, double);
                let expected = nf4::quantize(&x, double).unwrap();
                let stored = bytes(DType::F32, &x);
                let run = Run {
                    op: &NF4_QUANTIZE,
                    attr: &Attr::Nf4 { double },
                    ins: vec![(Ty::f32(&[1, n]), &stored)],
                    shared: &[],
                };
                let found = run.on(&mut *backend).unwrap().remove(0);
                for (part, range) in [
                    ("codes", layout.codes),
                    ("absmax", layout.absmax),
                    ("offset", layout.offset),
                    ("nested", layout.nested),
                ] {
                    let equal = found[range.clone()] == expected[range];
                    assert!(equal, "{part} of {n} elements, double {double}, on {}", device.name);
                }
                let ty = Ty::new(if double { DType::Nf4Dq } else { DType::Nf4 }, &[1, n]);
                let run = Run { op: &NF4_DEQUANTIZE, attr: &Attr::None, ins: vec![(ty, &expected)], shared: &[] };
                let found = run.on(&mut *backend).unwrap().remove(0);
                let mut decoded = vec![0.0; n];
                nf4::dequantize(&expected, double, &mut decoded);
                assert!(found == bytes(DType::F32, &decoded), "decoding {n}, double {double}, on {}", device.name);
            }
        }
    }
}

/// The mean of so many scales that all levels of torch's cascade spill: only the launches that make it, on scales that
/// are written where the first launch would have left them.
#[test]
fn the_mean_of_many_scales_is_torchs() {
    // 16 units of 256 groups of 32, more units, groups and values behind them.
    let blocks = 32 * (256 * 18 + 37) + 13;
    let mut random = Random::new(3);
    // Of many sizes, so that each sum is rounded.
    let scales: Vec<f32> = (0..blocks).map(|_| (16.0 * random.uniform()).exp2() as f32).collect();
    // A tensor with these scales: one element of each block is not 0.
    let mut x = vec![0.0; blocks * Nf4Layout::BLOCK];
    x.iter_mut().step_by(Nf4Layout::BLOCK).zip(&scales).for_each(|(x, s)| *x = *s);
    let layout = Nf4Layout::new(x.len(), true);
    let expected = nf4::quantize(&x, true).unwrap()[layout.offset.clone()].to_vec();
    let ty = Ty::f32(&[blocks, Nf4Layout::BLOCK]);
    let out = Ty::new(DType::Nf4Dq, &ty.shape);
    for device in [Device::ptx(80), Device::cuda()].into_iter().flatten() {
        let mut backend = device.open();
        let attr = Attr::Nf4 { double: true };
        let scratch = (NF4_QUANTIZE.workspace)(&attr, std::slice::from_ref(&ty), backend.caps());
        let mut room = |bytes: u64| Slice { buffer: backend.alloc(bytes).unwrap(), offset: 0, bytes };
        let (input, output, work) = (room(ty.bytes() as u64), room(out.bytes() as u64), room(scratch));
        let at = Operands { outs: vec![output], ins: vec![input], work: Some(work) };
        let launches = lower(&NF4_QUANTIZE, "test", &attr, from_ref(&ty), from_ref(&out), &at, backend.caps()).unwrap();
        let means: Vec<Launch> =
            launches.into_iter().filter(|l| l.name.ends_with("/mean") || l.name.ends_with("/mean_units")).collect();
        assert_eq!(means.len(), 2);
        let mut mean = |scales: &[f32]| {
            backend.upload(Slice { bytes: 4 * blocks as u64, ..work }, &bytes(DType::F32, scales)).unwrap();
            let recording = backend.record(&means).unwrap();
            backend.replay(recording).unwrap();
            backend.sync().unwrap();
            let mut found = vec![0; 4];
            let place = Slice { offset: layout.offset.start as u64, bytes: 4, ..output };
            backend.download(place, &mut found).unwrap();
            found
        };
        assert_eq!(mean(&scales), expected, "on {}", device.name);
        // The control: the same scales in another order have another sum of rounded numbers.
        let reversed: Vec<f32> = scales.iter().rev().copied().collect();
        assert_ne!(mean(&reversed), expected, "on {}", device.name);
    }
}
