//! Kernels at the shapes of SmolLM2-135M: 576 features, 1536 in the MLP, 9 heads of 64 over 3, 49152 tokens of
//! vocabulary. Every case names a row of the op table and is run through it; a row without a case fails. The device is
//! the CPU, or what TRIMTAB_BENCH_DEVICE names; one that keeps activations in 16 bits runs every case that has any so
//! too.
//!
//! `cargo bench --bench ops -- linear` runs those whose name contains `linear`; `-- --test` runs each once.

mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trimtab::backend::{Backend, Recording, Slice};
use trimtab::dtype::{ALIGN, DType, Ty, align};
use trimtab::ops::*;
use trimtab::plan::{Operands, lower};
use trimtab::quant::nf4;

/// Tokens; features; features in the MLP; heads and their keys' and values'; features of a head; vocabulary.
const T: usize = 1024;
const D: usize = 576;
const F: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD: usize = 64;
const V: usize = 49152;
/// Tokens the loss is taken of, and parameters that AdamW updates.
const LOSS_T: usize = 256;
const PARAMS: usize = 5_000_000;
const RANK: usize = 16;
/// Tokens of the vocabulary whose rows are trained apart.
const FEW: usize = 64;
/// Labels of a text that has several.
const LABELS: usize = 28;

struct Case {
    op: &'static str,
    name: &'static str,
    attr: Attr,
    ins: Vec<In>,
    /// Pairs (input, output) in one place, as in a plan; only where running it over and over on its own result
    /// leads to no infinities or denormal numbers.
    shared: &'static [(usize, usize)],
}

/// An operand, and what is in it.
#[derive(Clone)]
enum In {
    Normal(Ty),
    Ones(Ty),
    Words(Ty, Vec<u32>),
}

fn f32s(shape: &[usize]) -> In {
    In::Normal(Ty::f32(shape))
}

fn ids(n: usize, below: usize) -> In {
    In::Words(Ty::i32(&[n]), (0..n).map(|i| (i * 7919 % below) as u32).collect())
}

fn positions() -> In {
    In::Words(Ty::i32(&[T]), (0..T as u32).collect())
}

/// One sequence of all tokens.
fn key_range() -> In {
    In::Words(Ty::i32(&[T, 2]), [0, T as u32].repeat(T))
}

fn rng() -> In {
    In::Words(Ty::u32(&[4]), vec![1, 2, 3, 4])
}

fn scalar() -> In {
    In::Ones(Ty::f32(&[1]))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut case = |op, name, attr, ins, shared| all.push(Case { op, name, attr, ins, shared });

    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("nf4", DType::Nf4)] {
        let w = || In::Normal(Ty::new(dtype, &[F, D]));
        case("linear", name, Attr::Linear(Linear::default()), vec![f32s(&[T, D]), w()], &[]);
        case("linear_dx", name, Attr::Linear(Linear::default()), vec![f32s(&[T, F]), w()], &[]);
    }
    let lora = Linear { bias: false, lora: Some(Lora { scale: 2.0, dropout: None }) };
    let ins = vec![f32s(&[T, D]), In::Normal(Ty::new(DType::Nf4, &[F, D])), f32s(&[RANK, D]), f32s(&[F, RANK])];
    case("linear", "nf4 lora", Attr::Linear(lora), ins, &[]);
    for (name, dtype) in [
        ("f32 one token", DType::F32),
        ("bf16 one token", DType::BF16),
        ("nf4 one token", DType::Nf4),
        ("nf4-dq one token", DType::Nf4Dq),
    ] {
        let w = In::Normal(Ty::new(dtype, &[F, D]));
        case("linear", name, Attr::Linear(Linear::default()), vec![f32s(&[1, D]), w], &[]);
    }

    let weight_gradient = Matmul { ta: true, tb: false, alpha: 1.0, acc: true };
    let ins = vec![f32s(&[T, F]), f32s(&[T, D]), f32s(&[F, D])];
    case("matmul", "weight gradient", Attr::Matmul(weight_gradient), ins, &[(2, 0)]);
    case("sum_rows", "bias gradient", Attr::Acc(false), vec![f32s(&[T, F])], &[]);

    let norm = |acc| Attr::Norm(Norm { eps: 1e-5, offset: 0.0, acc });
    case("rms_norm", "tokens", norm(false), vec![f32s(&[T, D]), f32s(&[D])], &[]);
    let rstd = || In::Ones(Ty::f32(&[T]));
    let ins = vec![f32s(&[T, D]), f32s(&[T, D]), f32s(&[D]), rstd(), f32s(&[T, D])];
    case("rms_norm_dx", "residual", norm(true), ins, &[(4, 0)]);
    case("rms_norm_dw", "tokens", Attr::Acc(false), vec![f32s(&[T, D]), f32s(&[T, D]), rstd()], &[]);
    case("layer_norm", "tokens", norm(false), vec![f32s(&[T, D]), f32s(&[D]), f32s(&[D])], &[]);
    let mean = || f32s(&[T]);
    let ins = vec![f32s(&[T, D]), f32s(&[T, D]), f32s(&[D]), mean(), rstd(), f32s(&[T, D])];
    case("layer_norm_dx", "residual", norm(true), ins, &[(5, 0)]);
    case("layer_norm_dw", "tokens", Attr::Acc(false), vec![f32s(&[T, D]), f32s(&[T, D]), mean(), rstd()], &[]);

    let rope = Attr::Rope(Rope { heads: HEADS, head_dim: HEAD, inverse: false });
    case("rope", "queries", rope, vec![f32s(&[T, D]), f32s(&[T, HEAD]), positions()], &[(0, 0)]);

    let spec = Attention {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD,
        scale: 0.125,
        causal: true,
        window: None,
        bias: false,
    };
    let (q, kv) = ([T, HEADS * HEAD], [T, KV_HEADS * HEAD]);
    let forward = || vec![f32s(&q), f32s(&kv), f32s(&kv)];
    let ins = forward().into_iter().chain([key_range()]).collect();
    case("attention", "one sequence", Attr::Attention(spec), ins, &[]);
    // What the forward pass gives for lse is about the logarithm of the number of keys.
    let ranges = [key_range(), key_range()];
    let ins = forward().into_iter().chain(ranges).chain([f32s(&q), In::Ones(Ty::f32(&[HEADS, T])), f32s(&q)]).collect();
    case("attention_bwd", "one sequence", Attr::Attention(spec), ins, &[]);

    case("embed", "bf16", Attr::Embed { scale: 1.0 }, vec![ids(T, V), In::Normal(Ty::new(DType::BF16, &[V, D]))], &[]);
    let grad = EmbedGrad { scale: 1.0, rows: V, acc: true };
    case("embed_dw", "tokens", Attr::EmbedGrad(grad), vec![ids(T, V), f32s(&[T, D]), f32s(&[V, D])], &[(2, 0)]);
    let kv = KV_HEADS * HEAD;
    let embed = Attr::Embed { scale: 1.0 };
    case("embed_cols", "tokens", embed, vec![ids(T, V), f32s(&[RANK, V])], &[]);
    let ins = vec![ids(T, V), f32s(&[T, RANK]), f32s(&[RANK, V])];
    case("embed_cols_dw", "tokens", Attr::EmbedGrad(grad), ins, &[(2, 0)]);
    case("token_rows", "tokens", Attr::None, vec![ids(T, V), ids(FEW, V)], &[]);
    let ins = vec![In::Normal(Ty::new(DType::BF16, &[V, D])), f32s(&[FEW, D]), ids(FEW, V)];
    case("replace_rows", "bf16", Attr::None, ins, &[]);
    case("cache_write", "tokens", Attr::None, vec![f32s(&[2 * T, kv]), f32s(&[T, kv]), positions()], &[(0, 0)]);

    case("concat_rows", "virtual tokens", Attr::None, vec![f32s(&[FEW, D]), f32s(&[T, D])], &[]);
    let rows = Attr::Rows(Rows { start: FEW, count: T });
    case("slice_rows", "after virtual tokens", rows, vec![f32s(&[FEW + T, D])], &[]);

    let cols = |acc| Attr::Cols(Cols { start: D, count: D, of: 3 * D, acc });
    case("slice_cols", "keys", cols(false), vec![f32s(&[T, 3 * D])], &[]);
    case("slice_cols_dx", "keys", cols(true), vec![f32s(&[T, D]), f32s(&[T, 3 * D])], &[(1, 0)]);

    case("add", "residual", Attr::None, vec![f32s(&[T, D]), f32s(&[T, D])], &[(0, 0)]);
    case("scale", "tokens", Attr::None, vec![f32s(&[T, D]), scalar()], &[(0, 0)]);
    let gelu = || Attr::Activation(Activation::GeluTanh);
    case("activation", "gelu_tanh", gelu(), vec![f32s(&[T, F])], &[]);
    case("activation_bwd", "gelu_tanh", gelu(), vec![f32s(&[T, F]), f32s(&[T, F])], &[(0, 0)]);
    case("gated_act", "silu", Attr::Activation(Activation::Silu), vec![f32s(&[T, F]), f32s(&[T, F])], &[]);
    let ins = vec![f32s(&[T, F]), f32s(&[T, F]), f32s(&[T, F])];
    case("gated_act_bwd", "silu", Attr::Activation(Activation::Silu), ins, &[]);
    case("dropout", "tokens", Attr::Dropout(Dropout { p: 0.1, site: 1 }), vec![f32s(&[T, D]), rng()], &[]);
    let factor = |acc| Attr::Factor(Factor { factor: 0.5, acc });
    case("add_row", "tokens", factor(false), vec![f32s(&[T, D]), f32s(&[D])], &[(0, 0)]);
    case("add_row_dv", "tokens", factor(false), vec![f32s(&[T, D])], &[]);
    case("cast", "f32 to bf16", Attr::Cast(DType::BF16), vec![f32s(&[T, D])], &[]);
    let row = || In::Ones(Ty::f32(&[D]));
    case("mul_row", "tokens", Attr::None, vec![f32s(&[T, D]), row()], &[(0, 0)]);
    case("div_row", "tokens", Attr::None, vec![f32s(&[T, D]), row()], &[(0, 0)]);
    case("mul_row_dv", "tokens", Attr::Acc(false), vec![f32s(&[T, D]), f32s(&[T, D])], &[]);
    let ins = vec![In::Normal(Ty::new(DType::Nf4, &[F, D])), f32s(&[RANK, D]), f32s(&[F, RANK])];
    case("dora_norm", "nf4", factor(false), ins, &[]);

    for (name, grad_w) in [("frozen head", false), ("trained head", true)] {
        let ins = vec![f32s(&[LOSS_T, D]), f32s(&[V, D]), ids(LOSS_T, V), scalar()];
        case("linear_cross_entropy", name, Attr::Loss(Loss { grad_x: true, grad_w }), ins, &[]);
    }

    let dx = || Attr::Loss(Loss { grad_x: true, grad_w: false });
    let ins = vec![f32s(&[LOSS_T, V]), ids(LOSS_T, V), scalar()];
    case("cross_entropy", "vocabulary", dx(), ins, &[]);
    let rows = || In::Ones(Ty::f32(&[T]));
    for op in ["bce_with_logits", "mse"] {
        case(op, "labels", dx(), vec![f32s(&[T, LABELS]), f32s(&[T, LABELS]), rows(), scalar()], &[]);
    }
    let range = In::Words(Ty::i32(&[1, 2]), vec![0, T as u32]);
    let ins = vec![f32s(&[T, 2]), range, In::Words(Ty::i32(&[1, 2]), vec![3, 5]), scalar()];
    case("range_cross_entropy", "one text", dx(), ins, &[]);

    case("sum_squares", "parameters", Attr::Acc(false), vec![f32s(&[PARAMS])], &[]);
    // As hyper, ones are: a rate of one, and moments that stay. As sum of squares: no clipping.
    let (v, hyper) = (In::Ones(Ty::f32(&[PARAMS])), In::Ones(Ty::f32(&[8])));
    let ins = vec![f32s(&[PARAMS]), f32s(&[PARAMS]), f32s(&[PARAMS]), v, scalar(), hyper];
    case("adamw", "parameters", Attr::None, ins, &[(0, 0), (2, 1), (3, 2)]);
    let hyper = || In::Ones(Ty::f32(&[8]));
    let flat = || f32s(&[PARAMS]);
    case("sgd", "parameters", Attr::None, vec![flat(), flat(), scalar(), hyper()], &[(0, 0)]);
    for op in ["sgd_momentum", "lion"] {
        case(op, "parameters", Attr::None, vec![flat(), flat(), flat(), scalar(), hyper()], &[(0, 0), (2, 1)]);
    }
    let state =
        || [In::Words(Ty::u32(&[PARAMS / 4]), vec![0x9080_4020; PARAMS / 4]), In::Ones(Ty::f32(&[PARAMS / 256]))];
    let ins = [flat(), flat()].into_iter().chain(state()).chain([scalar(), hyper()]).collect();
    case("lion_8bit", "parameters", Attr::None, ins, &[(0, 0), (2, 1), (3, 2)]);
    let ins = [flat(), flat()].into_iter().chain(state()).chain(state()).chain([scalar(), hyper()]).collect();
    case("adamw_8bit", "parameters", Attr::None, ins, &[(0, 0), (2, 1), (3, 2), (4, 3), (5, 4)]);
    let (table, [n, rows, cols]) = optim::table(&[(PARAMS / 1024, 1024)]);
    let ones = |n: usize| In::Ones(Ty::f32(&[n]));
    let table = In::Words(Ty::u32(&[1, table.len()]), table);
    let ins = vec![f32s(&[n]), f32s(&[n]), ones(rows), ones(cols), table, scalar(), hyper()];
    case("adafactor", "a matrix", Attr::None, ins, &[(0, 0), (2, 1), (3, 2)]);
    case("zero", "parameters", Attr::None, vec![f32s(&[PARAMS])], &[(0, 0)]);

    case("nf4_quantize", "double", Attr::Nf4 { double: true }, vec![f32s(&[F, D])], &[]);
    case("nf4_dequantize", "double", Attr::None, vec![In::Normal(Ty::new(DType::Nf4Dq, &[F, D]))], &[]);
    all
}

/// Numbers between −1 and 1 that repeat only after a while; kernels' speed does not depend on them.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

impl Case {
    /// The same with activations in `dtype`, if it has any.
    fn narrow(&self, op: &OpDef, dtype: DType) -> Option<Case> {
        let acts = (op.acts)(&self.attr).ins;
        let narrowed = |(i, input): (usize, &In)| match input {
            In::Normal(ty) if acts.contains(&i) => In::Normal(Ty::new(dtype, &ty.shape)),
            other => other.clone(),
        };
        let ins = self.ins.iter().enumerate().map(narrowed).collect();
        (!acts.is_empty()).then(|| Case { attr: self.attr.clone(), ins, ..*self })
    }
}

impl In {
    fn ty(&self) -> &Ty {
        match self {
            In::Normal(ty) | In::Ones(ty) | In::Words(ty, _) => ty,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            In::Normal(ty) => encode(ty, &numbers(ty.len())),
            In::Ones(ty) => bytemuck::cast_slice(&vec![1f32; ty.len()]).to_vec(),
            In::Words(_, words) => bytemuck::cast_slice(words).to_vec(),
        }
    }
}

fn encode(ty: &Ty, values: &[f32]) -> Vec<u8> {
    match ty.dtype {
        DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        DType::Nf4 | DType::Nf4Dq => nf4::quantize(values, ty.dtype == DType::Nf4Dq).expect("whole blocks"),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

fn bench(c: &mut Criterion, op: &'static OpDef, case: &Case, name: &str) {
    let ins: Vec<Ty> = case.ins.iter().map(|i| i.ty().clone()).collect();
    let outs = op.types(&case.attr, &ins).unwrap_or_else(|e| panic!("{} {}: {e}", case.op, case.name));
    let cost = (op.cost)(&case.attr, &ins, &outs);
    let mut group = c.benchmark_group(case.op);
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
    let work = (op.workspace)(&case.attr, ins, device.caps());
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
    for (slice, operand) in in_slices.iter().zip(&case.ins) {
        let bytes = operand.bytes();
        device.upload(Slice { bytes: bytes.len() as u64, ..*slice }, &bytes).expect("it fits");
    }
    let at = Operands { outs: out_slices, ins: in_slices, work };
    let launches = lower(op, "bench", &case.attr, ins, outs, &at, device.caps()).expect("the device has every op");
    let recording = device.record(&launches).expect("it records");
    (device, recording)
}

fn ops(c: &mut Criterion) {
    let cases = cases();
    // Kept open: a card's context is made once.
    let device = common::device();
    for op in table() {
        let mut of_op = cases.iter().filter(|case| case.op == op.name).peekable();
        assert!(of_op.peek().is_some(), "the op {} has no case here", op.name);
        for case in of_op {
            bench(c, op, case, case.name);
            let narrow = |dtype| Some((dtype, case.narrow(op, dtype)?));
            if let Some((dtype, narrow)) = device.caps().compute_dtype.and_then(narrow) {
                bench(c, op, &narrow, &format!("{}, {dtype}", case.name));
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
