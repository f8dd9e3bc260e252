//! Kernels at the sizes of SmolLM2-135M, on the cases that the rows of the op table have for them. The device is the CPU, or
//! what TRIMTAB_BENCH_DEVICE names; one that keeps activations in 16 bits runs every case that has any so too.
//!
//! `cargo bench --bench ops -- linear` runs those whose name contains `linear`; `-- --test` runs each once.

mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trimtab::backend::{Backend, Recording, Slice};
use trimtab::bench::operands::{in_16_bits, stored};
use trimtab::dtype::{ALIGN, Ty, align};
use trimtab::ops::*;
use trimtab::plan::{Operands, lower};

fn bench(c: &mut Criterion, op: &'static OpDef, case: &Case, name: &str) {
    let sample = &case.sample;
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &ins).unwrap_or_else(|e| panic!("{} {name}: {e}", op.name));
    let cost = (op.cost)(&sample.attr, &ins, &outs);
    let mut group = c.benchmark_group(op.name);
    group.throughput(Throughput::ElementsAndBytes {
        elements: cost.flops,
        bytes: ins.iter().chain(&outs).map(|t| t.bytes() as u64).sum(),
    });
    // Operands are made only for what the filter lets run.
    let mut ready = None;
    group.bench_function(BenchmarkId::from_parameter(name), |b| {
        let (device, recording) = ready.get_or_insert_with(|| prepare(op, case, &ins, &outs));
        b.iter(|| device.replay(black_box(*recording)).and_then(|()| device.sync()).expect("what it recorded runs"));
    });
    group.finish();
}

/// The case on the device, ready to be replayed.
fn prepare(op: &'static OpDef, case: &Case, ins: &[Ty], outs: &[Ty]) -> (Box<dyn Backend>, Recording) {
    let mut device = common::device();
    let work = (op.workspace)(&case.sample.attr, ins, device.caps());
    let rooms: u64 = ins.iter().chain(outs).map(|t| align(t.bytes()) as u64).sum();
    let buffer = device.alloc(rooms + work.next_multiple_of(ALIGN as u64)).expect("memory");
    let mut end = 0;
    let mut room = |bytes: u64| {
        let slice = Slice { buffer, offset: end, bytes };
        end += bytes.next_multiple_of(ALIGN as u64);
        slice
    };
    let in_slices: Vec<Slice> = ins.iter().map(|t| room(t.bytes() as u64)).collect();
    let out_slices = outs.iter().enumerate().map(|(o, t)| match case.shared.iter().find(|s| s.1 == o) {
        Some(&(i, _)) => in_slices[i],
        None => room(t.bytes() as u64),
    });
    let out_slices: Vec<Slice> = out_slices.collect();
    let work = (work > 0).then(|| room(work));
    for (slice, bytes) in in_slices.iter().zip(stored(op.name, &case.sample).expect("rows fill their operands")) {
        device.upload(*slice, &bytes).expect("it fits");
    }
    let at = Operands { outs: out_slices, ins: in_slices, work };
    let launches =
        lower(op, "bench", &case.sample.attr, ins, outs, &at, device.caps()).expect("the device has every op");
    let recording = device.record(&launches).expect("it records");
    (device, recording)
}

fn ops(c: &mut Criterion) {
    // Kept open: a card's context is made once.
    let device = common::device();
    for op in table() {
        for case in (op.cases)(&Sizes::default()) {
            bench(c, op, &case, &case.sample.name);
            let narrow = |dtype| Some((dtype, in_16_bits(op, &case.sample, dtype)?));
            if let Some((dtype, sample)) = device.caps().compute_dtype.and_then(narrow) {
                let name = format!("{}, {dtype}", sample.name);
                bench(c, op, &Case { sample, shared: case.shared }, &name);
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = ops
}
criterion_main!(benches);
