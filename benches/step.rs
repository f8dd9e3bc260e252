//! Whole training steps of the model that ships in `assets/base`, 1024 tokens in four sequences. Criterion's elements
//! per second are tokens per second. The device is the CPU, or what TRIMTAB_BENCH_DEVICE names; on one that keeps
//! activations in 16 bits they are run so too.

mod common;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trimtab::data::pack::pack;
use trimtab::data::{Dataset, Example};
use trimtab::dtype::DType;
use trimtab::peft::{AdapterConfig, Method, Targets, full::Full, lora::Lora};
use trimtab::session::{Base, Options, Planned};
use trimtab::tasks::causal_lm::layout;

const TOKENS: usize = 1024;
const SEQUENCE: usize = 256;
/// Small enough for any number of steps on the same tokens to stay finite.
const RATE: f64 = 1e-5;

fn step(
    c: &mut Criterion,
    name: &str,
    method: Box<dyn Method>,
    quantize: Option<DType>,
    dtype: DType,
) -> trimtab::Result<()> {
    let assets = common::root("assets");
    let base = Arc::new(Base::open(assets.join("base"))?);
    let path = assets.join("shakespeare.txt");
    let text = std::fs::read_to_string(&path).map_err(|e| trimtab::Error::io(&path, e))?;
    // A token is at most a few bytes long.
    let head: String = text.chars().take(8 * TOKENS).collect();
    let tokens = base.tokenizer()?.encode(&head, false)?;
    let mut data = Dataset::default();
    for sequence in tokens[..TOKENS].chunks(SEQUENCE) {
        data.push(&Example::whole(sequence.to_vec()))?;
    }
    let order: Vec<usize> = (0..data.len()).collect();
    let micro = pack(&data, &order, &layout(TOKENS), true)?;

    let options = Options { quantize, dtype, max_seq_len: SEQUENCE, micro_tokens: TOKENS, ..Options::default() };
    let planned = Planned::new(&base, method, options, common::device())?;
    let mut session = planned.start(None, &mut |_, _| Ok(()))?;
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(TOKENS as u64));
    let mut last = Ok(());
    group.bench_function(name, |b| {
        b.iter(|| {
            if let Err(e) = session.step(&micro, RATE) {
                last = Err(e);
            }
        });
    });
    group.finish();
    last
}

fn steps(c: &mut Criterion) {
    let narrow = common::device().caps().compute_dtype;
    for dtype in [Some(DType::F32), narrow].into_iter().flatten() {
        let lora = || Box::new(Lora { config: AdapterConfig::lora(16, 32.0, Targets::AllLinear) });
        let all: [(&str, Box<dyn Method>, Option<DType>); 3] =
            [("lora", lora(), None), ("qlora", lora(), Some(DType::Nf4)), ("full", Box::new(Full), None)];
        for (method_name, method, quantize) in all {
            let name = match dtype {
                DType::F32 => method_name.to_string(),
                _ => format!("{method_name}, {dtype}"),
            };
            step(c, &name, method, quantize, dtype).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(10));
    targets = steps
}
criterion_main!(benches);
