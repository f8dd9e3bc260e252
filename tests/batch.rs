//! Nodes that share launches: on CUDA, neighbours that do not need one another are problems of one launch, and each has the
//! bits that it has alone.

mod common;

use common::devices::Device;
#[cfg(feature = "cuda")]
use trimtab::backend::{Caps, cuda::caps};
use trimtab::bench::operands::{Random, encode};
use trimtab::dtype::{DType, Ty};
use trimtab::exec::Exec;
use trimtab::graph::{Def, Graph, LeafKind, Phase, Val, batch};
use trimtab::ops::linear::{LINEAR, LINEAR_DX};
use trimtab::ops::matmul::MATMUL;
use trimtab::ops::rope::ROPE;
use trimtab::ops::{Attr, Linear, Lora, Matmul, OpDef, Rope};
use trimtab::plan::Plan;

const TOKENS: usize = 70;
const RANK: usize = 5;
const FEATURES: usize = 96;

/// A node to be: the names and types of its inputs, by which they have values.
struct Part {
    op: &'static OpDef,
    attr: Attr,
    ins: Vec<(String, Ty)>,
}

fn act(shape: &[usize]) -> Ty {
    Ty::new(DType::BF16, shape)
}

fn part(op: &'static OpDef, attr: Attr, number: usize, ins: &[Ty]) -> Part {
    let named = |(i, ty): (usize, &Ty)| (format!("{}.{number}.{i}", op.name), ty.clone());
    Part { op, attr, ins: ins.iter().enumerate().map(named).collect() }
}

/// Projections of one x, as of attention, forward and backward.
fn projections(widths: [usize; 3], stored: DType) -> [Vec<Part>; 2] {
    let lora = Attr::Linear(Linear { lora: Some(Lora { scale: 2.0, dropout: None }), ..Linear::default() });
    let weight = |n: usize| Ty::new(stored, &[n, FEATURES]);
    let forward = widths.iter().enumerate().map(|(i, &n)| {
        let ins = [act(&[TOKENS, FEATURES]), weight(n), Ty::f32(&[RANK, FEATURES]), Ty::f32(&[n, RANK])];
        part(&LINEAR, lora.clone(), i, &ins)
    });
    let backward = widths.iter().enumerate().map(|(i, &n)| {
        let ins = [act(&[TOKENS, n]), weight(n), act(&[TOKENS, RANK]), Ty::f32(&[RANK, FEATURES])];
        part(&LINEAR_DX, lora.clone(), i, &ins)
    });
    [forward.collect(), backward.collect()]
}

/// Projections, their low-rank gradients, and rotations.
fn groups() -> Vec<(Vec<Part>, usize)> {
    let widths = [130, 40, 33];
    let [forward, backward] = projections(widths, DType::Nf4Dq);
    let gradient = |number, m, n, alpha| {
        let attr = Attr::Matmul(Matmul { ta: true, tb: false, alpha, acc: false });
        part(&MATMUL, attr, number, &[act(&[TOKENS, m]), act(&[TOKENS, n])])
    };
    let of_a = widths.iter().enumerate().map(|(i, _)| gradient(i, RANK, FEATURES, 1.0));
    let of_b = widths.iter().enumerate().map(|(i, &n)| gradient(3 + i, n, RANK, 2.0));
    let rotations = [4, 2].iter().enumerate().map(|(i, &heads)| {
        let attr = Attr::Rope(Rope { heads, head_dim: 16, inverse: false });
        part(&ROPE, attr, i, &[act(&[TOKENS, 16 * heads]), Ty::f32(&[TOKENS, 16]), Ty::new(DType::I32, &[TOKENS])])
    });
    // With the launches that are left: xa of all and y of all; dx; dA and dB; q and k.
    vec![(forward, 2), (backward, 1), (of_a.chain(of_b).collect(), 1), (rotations.collect(), 1)]
}

/// The parts as neighbours of a graph, each with a leaf that its first output overwrites.
fn graph(parts: &[&Part]) -> (Graph, Vec<Val>) {
    let mut g = Graph::new();
    let outs = parts.iter().map(|part| {
        let ins: Vec<Val> =
            part.ins.iter().map(|(name, ty)| g.leaf(LeafKind::Frozen, name.clone(), ty.clone())).collect();
        let types: Vec<Ty> = part.ins.iter().map(|(_, ty)| ty.clone()).collect();
        let out = part.op.types(&part.attr, &types).unwrap()[0].clone();
        (ins, out)
    });
    let leaves: Vec<(Vec<Val>, Ty)> = outs.collect();
    let outs: Vec<Val> = leaves.iter().map(|(_, ty)| g.leaf(LeafKind::Io, "out", ty.clone())).collect();
    for ((part, (ins, _)), &out) in parts.iter().zip(&leaves).zip(&outs) {
        g.node_into(part.op, part.attr.clone(), ins, &[Some(out)]).unwrap();
    }
    (g, outs)
}

/// How many launches the parts take, and the bytes that they leave.
fn run(device: &Device, parts: &[&Part]) -> (usize, Vec<Vec<u8>>) {
    let (g, outs) = graph(parts);
    let backend = device.open();
    let plan = Plan::new(&g, backend.caps()).unwrap();
    let launches = plan.launches[0].len();
    let mut exec = Exec::new(backend, g, plan).unwrap();
    for v in (0..exec.graph.values.len() as u32).map(Val) {
        let value = exec.graph.value(v).clone();
        if value.def != Def::Leaf(LeafKind::Frozen) {
            continue;
        }
        let mut random = Random::named(&value.name);
        let fill = (0..value.ty.len()).map(|i| if value.ty.dtype == DType::I32 { i as f64 } else { random.normal() });
        exec.upload(v, &encode(&value.ty, &fill.collect::<Vec<_>>()).unwrap()).unwrap();
    }
    exec.run(Phase::MICRO).unwrap();
    (launches, outs.iter().map(|&v| exec.download(v).unwrap()).collect())
}

#[test]
fn a_batch_shares_launches_and_gives_each_its_own_bits() {
    let Some(device) = Device::ptx(80) else { return };
    shared(&device, groups());
}

/// Of products by wgmma, whose blocks take tiles in turns, two of three are on an interpreted Hopper of two multiprocessors: one is of
/// rows that tensor copies cannot read, backward, and of an odd number of columns, forward.
#[cfg(feature = "cuda")]
#[test]
fn a_batch_by_wgmma_shares_launches_and_gives_each_its_own_bits() {
    let caps = Caps { multiprocessors: Some(2), ..caps("".into(), 90) };
    let Some(device) = Device::ptx_of("Hopper of two multiprocessors", caps) else { return };
    let [forward, backward] = projections([520, 264, 257], DType::BF16);
    // With the launch of all xa.
    shared(&device, vec![(forward, 3), (backward, 2)]);
}

fn shared(device: &Device, groups: Vec<(Vec<Part>, usize)>) {
    for (parts, expected) in groups {
        let name = parts[0].op.name;
        let (launches, together) = run(device, &parts.iter().collect::<Vec<_>>());
        assert_eq!(launches, expected, "{name}");
        for (i, part) in parts.iter().enumerate() {
            let (_, alone) = run(device, &[part]);
            assert!(alone[0] == together[i], "{name}: the bits of {i}");
            assert!(alone[0].iter().any(|&b| b != 0), "{name}: {i} is nothing but zeros");
        }
    }
}

/// The control: what needs another is in no batch with it, and elsewhere than on CUDA nothing shares launches.
#[test]
fn what_needs_another_is_in_no_batch_with_it() {
    let mut g = Graph::new();
    let mut leaf = |name: &str, shape: &[usize]| g.leaf(LeafKind::Frozen, name, Ty::f32(shape));
    let [x, a, b] = [leaf("x", &[8, 8]), leaf("a", &[8, 8]), leaf("b", &[8, 8])];
    let first = g.matmul(x, false, a, false, 1.0).unwrap();
    let second = g.matmul(x, false, b, false, 1.0).unwrap();
    let third = g.matmul(first, false, b, false, 1.0).unwrap();
    assert_eq!([batch::end(&g, 0), batch::end(&g, 1), batch::end(&g, 2)], [2, 3, 3]);
    assert_eq!([batch::start(&g, 3), batch::start(&g, 2)], [1, 0]);
    // Read first, overwritten then: not at the same time.
    g.node_into(
        &MATMUL,
        Attr::Matmul(Matmul { ta: false, tb: false, alpha: 1.0, acc: false }),
        &[x, third],
        &[Some(b)],
    )
    .unwrap();
    assert_eq!(batch::start(&g, 4), 3);
    // Another block is another part of the model, which may be streamed or computed again by itself.
    g.block += 1;
    g.matmul(x, false, a, false, 1.0).unwrap();
    assert_eq!(batch::end(&g, 3), 4);
    assert!(second != third);
}

/// The backward pass brings the nodes of a batch's gradients together.
#[test]
fn gradients_of_a_batch_are_neighbours() {
    let mut g = Graph::new();
    let x = g.leaf(LeafKind::Param, "x", Ty::f32(&[8, 8]));
    let [a, b] = ["a", "b"].map(|name| g.leaf(LeafKind::Param, name, Ty::f32(&[8, 8])));
    let [y, z] = [a, b].map(|w| g.linear(x, w, None, None).unwrap());
    let [dy, dz] = ["dy", "dz"].map(|name| g.leaf(LeafKind::Io, name, Ty::f32(&[8, 8])));
    trimtab::autograd::backward(&mut g, &[(y, dy), (z, dz)], &[x, a, b]).unwrap();
    let ops: Vec<&str> = g.nodes.iter().map(|node| node.op.name).collect();
    assert_eq!(ops, ["linear", "linear", "linear_dx", "linear_dx", "matmul", "matmul", "add"]);
}
