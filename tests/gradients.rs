//! Every gradient rule against finite differences of the op's definition, in float64.
//!
//! For an op y(x), random dy and a random direction v, the rule's gradient g must satisfy
//! ⟨g, v⟩ = d/dh ⟨dy, y(x + h·v)⟩ at h = 0, which a central difference gives to some ten digits. The backward graph is
//! run by the definitions of its ops too, so what is tested is the rule alone; kernels are tested by `op_matrix`.

mod common;

use common::interpret::Values;
use trimtab::autograd::backward;
use trimtab::bench::operands::{Random, operands};
use trimtab::dtype::{DType, Ty};
use trimtab::error::Error;
use trimtab::graph::{Graph, LeafKind, Val};
use trimtab::ops::{self, Grad, OpDef, Sample, Tensor};

const STEP: f64 = 1e-5;
/// Of the sum of what is added up in ⟨g, v⟩. Central differences err by about STEP² and 10⁻¹⁶/STEP.
const TOLERANCE: f64 = 1e-6;

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.data.iter().zip(&b.data).map(|(x, y)| x * y).sum()
}

fn normal(shape: &[usize], random: &mut Random) -> Tensor {
    Tensor::new(shape, (0..shape.iter().product()).map(|_| random.normal()).collect())
}

/// A graph of one op with its backward pass.
struct Built {
    graph: Graph,
    ins: Vec<Val>,
    /// The gradient of the first output, given.
    dy: Val,
    /// The gradients of the inputs.
    grads: Vec<Option<Val>>,
}

/// The sample's op as a graph with those inputs trainable that `wants` says.
fn build(op: &'static OpDef, sample: &Sample, wants: &[bool]) -> Result<Built, Error> {
    let mut graph = Graph::new();
    let leaf = |(i, input): (usize, &trimtab::ops::SampleIn)| {
        let class = if wants[i] { LeafKind::Param } else { LeafKind::Frozen };
        graph.leaf(class, format!("in{i}"), input.ty.clone())
    };
    let ins: Vec<Val> = sample.ins.iter().enumerate().map(leaf).collect();
    let y = graph.node(op, sample.attr.clone(), &ins)?[0];
    let dy = graph.leaf(LeafKind::Io, "dy", graph.ty(y).clone());
    let grads = backward(&mut graph, &[(y, dy)], &ins)?;
    Ok(Built { graph, ins, dy, grads })
}

/// Ok: the inputs whose gradient was checked.
fn check(op: &'static OpDef, sample: &Sample) -> Result<Vec<usize>, String> {
    let (_, x) = operands(op.name, sample).unwrap();
    // An operand that nothing trains (a table of angles), and gradients that the sample's attributes exclude, are
    // refused with an error that names the op.
    let refused = |e: &Error| match e {
        Error::NoGradient { op: named, .. } | Error::Graph { op: named, .. } => named.starts_with(op.name),
        _ => false,
    };
    let mut wants = vec![false; sample.ins.len()];
    for (i, input) in sample.ins.iter().enumerate().filter(|(_, input)| input.ty.dtype == DType::F32) {
        let alone: Vec<bool> = (0..wants.len()).map(|j| j == i).collect();
        match build(op, sample, &alone) {
            Ok(_) => wants[i] = true,
            Err(e) if refused(&e) => eprintln!("{} ({}), input {i} {}: {e}", op.name, sample.name, input.ty),
            Err(e) => return Err(e.to_string()),
        }
    }
    if !wants.contains(&true) {
        return Ok(Vec::new());
    }
    let Built { graph: g, ins, dy, grads } = build(op, sample, &wants).map_err(|e| e.to_string())?;
    let mut random = Random::named(&format!("{}/{}", op.name, sample.name));
    let seed = normal(g.shape(dy), &mut random);
    let leaves = ins.iter().copied().zip(x.iter().cloned()).chain([(dy, seed.clone())]);
    let values = Values::of(&g, leaves);
    let mut checked = Vec::new();
    for (i, grad) in grads.iter().enumerate().filter(|&(i, _)| wants[i]) {
        let Some(grad) = grad else { return Err(format!("no gradient for input {i}, and no error")) };
        let grad = values.get(*grad);
        if grad.shape != x[i].shape {
            return Err(format!("the gradient of input {i} has shape {:?}, the input {:?}", grad.shape, x[i].shape));
        }
        let direction = normal(&x[i].shape, &mut random);
        let along = |h: f64| {
            let mut moved = x.clone();
            moved[i].data.iter_mut().zip(&direction.data).for_each(|(x, d)| *x += h * d);
            dot(&(op.reference)(&sample.attr, &moved)[0], &seed)
        };
        let numeric = (along(STEP) - along(-STEP)) / (2.0 * STEP);
        let analytic = dot(&grad, &direction);
        let scale: f64 = grad.data.iter().zip(&direction.data).map(|(g, d)| (g * d).abs()).sum();
        let allowed = TOLERANCE * scale.max(numeric.abs()) + 1e-9 * along(0.0).abs();
        let off = (numeric - analytic).abs();
        if off > allowed || off.is_nan() {
            return Err(format!("input {i}: the rule gives {analytic}, differences give {numeric}"));
        }
        checked.push(i);
    }
    Ok(checked)
}

#[test]
fn every_rule_is_the_derivative_of_its_definition() {
    let mut wrong = Vec::new();
    for op in ops::table().filter(|op| matches!(op.grad, Grad::Rule(_))) {
        let mut checked = 0;
        for sample in (op.samples)() {
            match check(op, &sample) {
                Ok(inputs) => checked += inputs.len(),
                Err(e) => wrong.push(format!("{} ({}): {e}", op.name, sample.name)),
            }
        }
        if checked == 0 {
            wrong.push(format!("{}: no sample has a gradient", op.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_no_gradient_says_so() {
    for op in ops::table() {
        for sample in (op.samples)() {
            let Some(input) = sample.ins.iter().position(|i| i.ty.dtype == DType::F32) else { continue };
            let wants: Vec<bool> = (0..sample.ins.len()).map(|i| i == input).collect();
            if matches!(op.grad, Grad::Stop) {
                let mut g = Graph::new();
                let ins: Vec<Val> = sample.ins.iter().map(|i| g.leaf(LeafKind::Param, "in", i.ty.clone())).collect();
                let outs = g.node(op, sample.attr.clone(), &ins).unwrap();
                assert!(outs.iter().all(|&o| !g.needs_grad(o)), "{}: what stops gradients wants one", op.name);
                continue;
            }
            match (op.grad, build(op, &sample, &wants)) {
                (Grad::Missing, Err(Error::NoGradient { op: named, parameter, .. })) => {
                    assert_eq!((named, parameter), (op.name, format!("in{input}")));
                }
                (Grad::Missing, other) => panic!("{}: no error but {:?}", op.name, other.map(|b| b.grads)),
                (Grad::Rule(_) | Grad::Stop, _) => {}
            }
        }
    }
}

/// What autograd makes of a row that accumulates: without its last operand the result is less by just that.
#[test]
fn rows_that_accumulate_add_their_last_operand() {
    let differs = |op: &OpDef, sample: &Sample| -> Option<String> {
        let mut sample = sample.clone();
        let Some(attr) = op.accumulating(&sample.attr, false) else {
            let asks = sample.attr.acc().is_some_and(|acc| *acc);
            return asks.then(|| "its sample asks for what the row says it cannot".into());
        };
        let x = operands(op.name, &sample).unwrap().1;
        let (last, rest) = x.split_last().unwrap();
        let (with, without) = ((op.reference)(&sample.attr, &x), (op.reference)(&attr, rest));
        let others = with.iter().zip(&without).skip(1);
        if with.len() != without.len() || others.into_iter().any(|(a, b)| a.data != b.data) {
            return Some("other outputs than the first differ".into());
        }
        let (with, without) = (&with[0], &without[0]);
        let sum = Tensor::new(&without.shape, without.data.iter().zip(&last.data).map(|(a, b)| a + b).collect());
        let largest = with.data.iter().map(|x| x.abs()).fold(1.0, f64::max);
        let off = with.data.iter().zip(&sum.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        (off > 1e-9 * largest || last.shape != with.shape).then(|| format!("the results differ by {off} more"))
    };
    let mut wrong = Vec::new();
    for op in ops::table() {
        let samples = (op.samples)();
        let found = samples.iter().filter_map(|s| differs(op, s).map(|e| format!("{} ({}): {e}", op.name, s.name)));
        wrong.extend(found);
        let asks = |s: &&Sample| op.accumulating(&s.attr, false).is_some();
        if op.accumulates && !samples.iter().any(|s| asks(&s)) {
            wrong.push(format!("{}: no sample accumulates", op.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The controls: a row that leaves the operand out, and one that does not say that it accumulates.
    let row = ops::table().find(|op| op.name == "sum_rows").unwrap();
    let sample = (row.samples)().into_iter().find(|s| row.accumulating(&s.attr, false).is_some()).unwrap();
    let facts = |accumulates| OpDef { accumulates, reference: row.reference, ..OpDef::COMPUTE };
    assert_eq!(differs(&facts(true), &sample), None);
    assert!(differs(&facts(false), &sample).is_some_and(|e| e.contains("cannot")));
    let forgets = OpDef { reference: |_, ins| vec![Tensor::zeros(&[ins[0].cols()])], ..facts(true) };
    assert!(differs(&forgets, &sample).is_some_and(|e| e.contains("differ")));
}

/// Rows gathered from what a graph computes: −1 stands for a row of zeros, whose gradient goes nowhere.
#[test]
fn a_gather_of_computed_rows_knows_ids_without_a_row() {
    for dtype in [DType::F32, DType::BF16] {
        let mut g = Graph::new();
        let x = g.leaf(LeafKind::Param, "x", Ty::f32(&[3, 2]));
        let ids = g.leaf(LeafKind::Io, "ids", Ty::i32(&[4]));
        let twice = g.add(x, x).unwrap();
        let table = g.cast(twice, dtype).unwrap();
        let y = g.embed(ids, table, 1.0).unwrap();
        let dy = g.leaf(LeafKind::Io, "dy", g.ty(y).clone());
        let dx = backward(&mut g, &[(y, dy)], &[x]).unwrap()[0].unwrap();
        assert_eq!((g.ty(y), g.ty(dx)), (&Ty::f32(&[4, 2]), &Ty::f32(&[3, 2])));
        let leaves = [
            (x, Tensor::new(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            (ids, Tensor::new(&[4], vec![2.0, -1.0, 0.0, 2.0])),
            (dy, Tensor::new(&[4, 2], vec![1.0, 2.0, 100.0, 200.0, 10.0, 20.0, 3.0, 4.0])),
        ];
        let values = Values::of(&g, leaves);
        assert_eq!(values.get(y).data, [10.0, 12.0, 0.0, 0.0, 2.0, 4.0, 10.0, 12.0]);
        assert_eq!(values.get(dx).data, [20.0, 40.0, 0.0, 0.0, 8.0, 12.0]);
    }
}

/// What reaches x around a norm is added by the norm's gradient, and not by a node of its own.
#[test]
fn residual_gradients_are_added_by_the_norm() {
    use trimtab::ops::{Attr, elementwise};
    for name in ["rms_norm", "layer_norm"] {
        let op = ops::table().find(|op| op.name == name).unwrap();
        let sample = (op.samples)().into_iter().find(|s| s.name == "odd").unwrap();
        let (_, x) = operands(op.name, &sample).unwrap();
        let mut random = Random::named(name);
        // The gradient of x behind x + norm(x), or behind the norm alone.
        let gradient = |residual: bool| {
            let mut g = Graph::new();
            let ins: Vec<Val> = sample.ins.iter().map(|i| g.leaf(LeafKind::Param, "in", i.ty.clone())).collect();
            let mut y = g.node(op, sample.attr.clone(), &ins).unwrap()[0];
            if residual {
                y = g.node(&elementwise::ADD, Attr::None, &[ins[0], y]).unwrap()[0];
            }
            let dy = g.leaf(LeafKind::Io, "dy", g.ty(y).clone());
            let grads = backward(&mut g, &[(y, dy)], &ins).unwrap();
            let adds = g.nodes.iter().filter(|n| n.op.name == "add").count();
            assert_eq!(adds, residual as usize, "{name}: gradients are added by a node of their own");
            (g, ins, dy, grads[0].unwrap())
        };
        let (alone, around) = (gradient(false), gradient(true));
        let seed = normal(&x[0].shape, &mut random);
        let value = |(g, ins, dy, grad): &(Graph, Vec<Val>, Val, Val)| {
            let leaves = ins.iter().copied().zip(x.iter().cloned()).chain([(*dy, seed.clone())]);
            Values::of(g, leaves).get(*grad)
        };
        let (alone, around) = (value(&alone), value(&around));
        for ((a, b), dy) in alone.data.iter().zip(&around.data).zip(&seed.data) {
            assert!((a + dy - b).abs() <= 1e-12 * (1.0 + b.abs()), "{name}: {a} + {dy} is not {b}");
        }
    }
}

/// A gradient that two operands share takes in no sum of one of them: `norm(a + b) + a + b` is the same in a and in b.
#[test]
fn a_shared_gradient_takes_in_no_sum() {
    use trimtab::ops::{Attr, elementwise};
    for name in ["rms_norm", "layer_norm"] {
        let op = ops::table().find(|op| op.name == name).unwrap();
        let sample = (op.samples)().into_iter().find(|s| s.name == "odd").unwrap();
        let (_, x) = operands(op.name, &sample).unwrap();
        let mut random = Random::named(name);
        let mut g = Graph::new();
        let ins: Vec<Val> = sample.ins.iter().map(|i| g.leaf(LeafKind::Param, "in", i.ty.clone())).collect();
        let (a, b) = (ins[0], g.leaf(LeafKind::Param, "b", sample.ins[0].ty.clone()));
        let add = |g: &mut Graph, x: Val, y: Val| g.node(&elementwise::ADD, Attr::None, &[x, y]).unwrap()[0];
        let sum = add(&mut g, a, b);
        let normed = g.node(op, sample.attr.clone(), &[&[sum], &ins[1..]].concat()).unwrap()[0];
        let y = add(&mut g, normed, a);
        let y = add(&mut g, y, b);
        let dy = g.leaf(LeafKind::Io, "dy", g.ty(y).clone());
        let grads = backward(&mut g, &[(y, dy)], &[a, b]).unwrap();
        let leaves = ins.iter().copied().zip(x.iter().cloned());
        let other = normal(&x[0].shape, &mut random);
        let values = Values::of(&g, leaves.chain([(b, other), (dy, normal(&x[0].shape, &mut random))]));
        let [of_a, of_b] = [grads[0], grads[1]].map(|grad| values.get(grad.unwrap()));
        assert!(of_a.data.iter().any(|x| *x != 0.0));
        assert_eq!(of_a.data, of_b.data, "{name}");
    }
}

/// Of a layer norm only what trains has a gradient: nothing is computed for what is frozen.
#[test]
fn a_frozen_layer_norm_costs_one_node() {
    let op = &ops::norm::LAYER_NORM;
    let sample = &(op.samples)()[0];
    for (wants, nodes) in [
        ([true, false, false], vec!["layer_norm_dx"]),
        ([false, true, false], vec!["layer_norm_dw"]),
        ([false, false, true], vec!["sum_rows"]),
        ([true, true, true], vec!["layer_norm_dx", "layer_norm_dw", "sum_rows"]),
    ] {
        let built = build(op, sample, &wants).unwrap();
        let found: Vec<&str> = built.graph.nodes[1..].iter().map(|n| n.op.name).collect();
        assert_eq!(found, nodes, "{wants:?}");
    }
}

/// A rule that forgets a factor must fail.
#[test]
fn a_wrong_rule_is_seen() {
    use trimtab::ops::{Attr, Cost, SampleIn};
    const TWICE: OpDef = OpDef {
        name: "twice",
        infer: |_, ins| Ok(vec![ins[0].clone()]),
        reference: |_, ins| vec![Tensor::new(&ins[0].shape, ins[0].data.iter().map(|x| 2.0 * x).collect())],
        grad: Grad::Rule(|g, _, dys, _| {
            let dy = dys[0];
            Ok(vec![dy.map(|dy| g.add(dy, dy)).transpose()?])
        }),
        cost: |_, _, _| Cost { flops: 1, terms: 1 },
        ..OpDef::COMPUTE
    };
    static RIGHT: OpDef = TWICE;
    static WRONG: OpDef = OpDef { grad: Grad::Rule(|_, _, dys, _| Ok(vec![dys[0]])), ..TWICE };
    let sample = Sample::new("control", Attr::None, vec![SampleIn::normal(Ty::f32(&[5, 3]))]);
    assert_eq!(check(&RIGHT, &sample), Ok(vec![0]));
    let found = check(&WRONG, &sample);
    assert!(found.as_ref().is_err_and(|e| e.contains("differences give")), "{found:?}");
}
