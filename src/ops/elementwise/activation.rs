//! Activations, alone and as gates: `act(x)`, `act(gate)·up` and their gradients.

use super::{SIZES, Slot, by_fours, elements, map, samples, zip};
use crate::cpu::math;
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::{
    Activation, Acts, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Sizes, WgslDispatch, check,
};

/// `kernel` compiled for one activation, which is what lets its loops vectorize.
macro_rules! by_kind {
    ($act:expr, $kernel:ident, $call:expr) => {
        match $act {
            Activation::Silu => $kernel::<Silu>($call),
            Activation::GeluTanh => $kernel::<GeluTanh>($call),
            Activation::Gelu => $kernel::<Gelu>($call),
            Activation::Relu => $kernel::<Relu>($call),
            Activation::Tanh => $kernel::<Tanh>($call),
            Activation::QuickGelu => $kernel::<QuickGelu>($call),
        }
    };
}

/// `activation` [x F32[..]] → act(x).
pub static ACTIVATION: OpDef = OpDef {
    name: "activation",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Activation(_), [x]) => {
            check::float("x", x)?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x and Activation", attr, ins)),
    },
    reference: |attr, ins| vec![map(&ins[0], |x| act64(act(attr), x).0)],
    grad: Grad::Rule(|g, node, grads, _| {
        let Some(dy) = grads[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.node(&ACTIVATION_BWD, node.attr.clone(), &[dy, node.ins[0]])?[0])])
    }),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: 12 * outs[0].len() as u64, terms: 4 },
    host: |call| by_kind!(act(call.attr), host_activation, call),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        Ok(match l.shared[0] {
            Some(_) => dispatches(l, &ACTIVATION, vec!["PLAIN", "INPLACE"], &[Slot::Out(0)]),
            None => dispatches(l, &ACTIVATION, vec!["PLAIN"], &[Slot::Out(0), Slot::In(0)]),
        })
    },
    cuda: super::cuda::activation,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || act_samples(1, 0, false),
    cases: |s| vec![case(s, Activation::GeluTanh, 1)],
    ..OpDef::COMPUTE
};

/// `activation_bwd` [dy, x F32[..]] → dx = dy·act′(x). The slope of ReLU at 0 is 0, as PyTorch has it.
pub static ACTIVATION_BWD: OpDef = OpDef {
    name: "activation_bwd",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Activation(_), [dy, x]) => {
            check::float("x", x)?;
            check::is("dy", dy, x)?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("dy, x and Activation", attr, ins)),
    },
    reference: |attr, ins| vec![zip(&ins[0], &ins[1], |dy, x| dy * act64(act(attr), x).1)],
    grad: Grad::Missing,
    in_place: &[(0, 0), (1, 0)],
    cost: |_, _, outs| Cost { flops: 16 * outs[0].len() as u64, terms: 6 },
    host: |call| by_kind!(act(call.attr), host_activation_bwd, call),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        let (mut defines, mut slots) = (vec!["PLAIN_BWD"], vec![Slot::Out(0)]);
        match l.shared[0] {
            Some(0) => defines.push("INPLACE_DY"),
            _ => slots.push(Slot::In(0)),
        }
        match l.shared[0] {
            Some(1) => defines.push("INPLACE_X"),
            _ => slots.push(Slot::In(1)),
        }
        Ok(dispatches(l, &ACTIVATION_BWD, defines, &slots))
    },
    cuda: super::cuda::activation_bwd,
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || act_samples(2, 1, true),
    cases: |s| vec![case(s, Activation::GeluTanh, 2).in_place(&[(1, 0)])],
    ..OpDef::COMPUTE
};

/// `gated_act` [gate F32[T,F], up F32[T,F]] → act(gate)·up.
pub static GATED_ACT: OpDef = OpDef {
    name: "gated_act",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Activation(_), [gate, up]) => {
            check::float("gate", gate)?;
            check::is("up", up, gate)?;
            Ok(vec![gate.clone()])
        }
        _ => Err(check::refuse("gate, up and Activation", attr, ins)),
    },
    reference: |attr, ins| vec![zip(&ins[0], &ins[1], |g, u| act64(act(attr), g).0 * u)],
    grad: Grad::Rule(|g, node, grads, _| {
        let Some(dh) = grads[0] else { return Ok(vec![None, None]) };
        let outs = g.node(&GATED_ACT_BWD, node.attr.clone(), &[dh, node.ins[0], node.ins[1]])?;
        Ok(vec![Some(outs[0]), Some(outs[1])])
    }),
    in_place: &[(0, 0), (1, 0)],
    cost: |_, _, outs| Cost { flops: 12 * outs[0].len() as u64, terms: 4 },
    host: |call| by_kind!(act(call.attr), host_gated, call),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        Ok(match l.shared[0] {
            Some(0) => dispatches(l, &GATED_ACT, vec!["GATED", "INPLACE_GATE"], &[Slot::Out(0), Slot::In(1)]),
            Some(_) => dispatches(l, &GATED_ACT, vec!["GATED", "INPLACE_UP"], &[Slot::Out(0), Slot::In(0)]),
            None => dispatches(l, &GATED_ACT, vec!["GATED"], &[Slot::Out(0), Slot::In(0), Slot::In(1)]),
        })
    },
    cuda: super::cuda::gated_act,
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || act_samples(2, 0, false),
    cases: |s| vec![case(s, Activation::Silu, 2)],
    ..OpDef::COMPUTE
};

/// `gated_act_bwd` [dh, gate, up F32[T,F]] → dgate = dh·up·act′(gate), dup = dh·act(gate).
pub static GATED_ACT_BWD: OpDef = OpDef {
    name: "gated_act_bwd",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Activation(_), [dh, gate, up]) => {
            check::float("gate", gate)?;
            check::is("up", up, gate)?;
            check::is("dh", dh, gate)?;
            Ok(vec![gate.clone(), gate.clone()])
        }
        _ => Err(check::refuse("dh, gate, up and Activation", attr, ins)),
    },
    reference: |attr, ins| {
        let both = zip(&ins[1], &ins[0], |g, dh| dh * act64(act(attr), g).1);
        vec![zip(&both, &ins[2], |d, u| d * u), zip(&ins[1], &ins[0], |g, dh| dh * act64(act(attr), g).0)]
    },
    grad: Grad::Missing,
    in_place: &[(1, 0), (2, 1)],
    cost: |_, _, outs| Cost { flops: 24 * outs[0].len() as u64, terms: 6 },
    host: |call| by_kind!(act(call.attr), host_gated_bwd, call),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        let mut defines = vec!["GATED_BWD"];
        let mut slots = vec![Slot::Out(0), Slot::Out(1), Slot::In(0)];
        match l.shared[0] {
            Some(_) => defines.push("INPLACE_GATE"),
            None => slots.push(Slot::In(1)),
        }
        match l.shared[1] {
            Some(_) => defines.push("INPLACE_UP"),
            None => slots.push(Slot::In(2)),
        }
        Ok(dispatches(l, &GATED_ACT_BWD, defines, &slots))
    },
    cuda: super::cuda::gated_act_bwd,
    acts: |_| Acts { ins: &[0, 1, 2], outs: &[0, 1] },
    samples: || act_samples(3, 1, true),
    cases: |s| vec![case(s, Activation::Silu, 3)],
    ..OpDef::COMPUTE
};

impl Graph {
    /// act(x).
    pub fn activation(&mut self, x: Val, act: Activation) -> Result<Val> {
        Ok(self.node(&ACTIVATION, Attr::Activation(act), &[x])?[0])
    }

    /// act(gate)·up.
    pub fn gated_act(&mut self, gate: Val, up: Val, act: Activation) -> Result<Val> {
        Ok(self.node(&GATED_ACT, Attr::Activation(act), &[gate, up])?[0])
    }
}

fn act(attr: &Attr) -> Activation {
    match attr {
        Attr::Activation(a) => *a,
        _ => unreachable!("infer refused it"),
    }
}

/// The activation's number in `shaders/elementwise_activation.wgsl` and `kernels/elementwise.cu`.
pub fn kind(attr: &Attr) -> u32 {
    match act(attr) {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
        Activation::QuickGelu => 5,
    }
}

/// act(x) and act′(x).
fn act64(act: Activation, x: f64) -> (f64, f64) {
    match act {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044715 * x * x * x)).tanh();
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Activation::Gelu => {
            let normal = 0.5 * (1.0 + erf64(x / std::f64::consts::SQRT_2));
            (x * normal, normal + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
        }
        Activation::Relu => (if x < 0.0 { 0.0 } else { x }, if x <= 0.0 { 0.0 } else { 1.0 }),
        Activation::Tanh => {
            let t = x.tanh();
            (t, 1.0 - t * t)
        }
        Activation::QuickGelu => {
            let s = 1.0 / (1.0 + (-1.702 * x).exp());
            (x * s, s * (1.0 + 1.702 * x * (1.0 - s)))
        }
    }
}

/// erf(x) = 2/√π · e^(−x²) Σ_n 2ⁿ x^(2n+1) / (2n+1)!! : all terms have one sign, so nothing cancels.
fn erf64(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1;
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// An activation as CPU kernels compute it.
trait Function {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
    #[inline(always)]
    fn both(x: f32) -> [f32; 2] {
        [Self::value(x), Self::slope(x)]
    }
}

struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        math::silu(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        math::silu_grad(x)
    }
    /// With one exponential and one division.
    #[inline(always)]
    fn both(x: f32) -> [f32; 2] {
        let s = math::sigmoid(x);
        [x * s, s * (1.0 + x * (1.0 - s))]
    }
}

/// Activations of a value and a slope that share nothing.
macro_rules! functions {
    ($($name:ident: $value:ident, $slope:ident;)*) => {$(
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn value(x: f32) -> f32 {
                math::$value(x)
            }
            #[inline(always)]
            fn slope(x: f32) -> f32 {
                math::$slope(x)
            }
        }
    )*};
}

functions! {
    GeluTanh: gelu_tanh, gelu_tanh_grad;
    Gelu: gelu, gelu_grad;
    Relu: relu, relu_grad;
    Tanh: tanh, tanh_grad;
    QuickGelu: quick_gelu, quick_gelu_grad;
}

fn host_activation<F: Function>(call: &HostCall) {
    call.map(0, [0], |[x]| F::value(x));
}

fn host_activation_bwd<F: Function>(call: &HostCall) {
    call.map(0, [0, 1], |[dy, x]| dy * F::slope(x));
}

fn host_gated<F: Function>(call: &HostCall) {
    call.map(0, [0, 1], |[g, u]| F::value(g) * u);
}

fn host_gated_bwd<F: Function>(call: &HostCall) {
    call.map_many([0, 1], [0, 1, 2], |[dh, g, u]| {
        let [value, slope] = F::both(g);
        [dh * u * slope, dh * value]
    });
}

/// [`elements`] of the activations' shader, to which the kind is a constant.
fn dispatches(l: &Lower, op: &OpDef, defines: Vec<&'static str>, slots: &[Slot]) -> Vec<WgslDispatch> {
    let mut all = elements(l, op, defines, slots, &[]);
    for d in &mut all {
        d.shader = "elementwise_activation";
        d.constants = vec![("KIND", kind(l.attr) as f64)];
    }
    all
}

/// `x`: the operand that the activation is of. `corner`: x = 0 of ReLU, too; differences across it say nothing about a
/// gradient, so ops with a rule do without.
fn act_samples(operands: usize, x: usize, corner: bool) -> Vec<Sample> {
    let mut all = Vec::new();
    for act in Activation::ALL {
        all.extend(samples(&format!(", {act:?}"), SIZES, |ty| {
            (Attr::Activation(act), vec![SampleIn::normal(ty); operands])
        }));
        let mut values = vec![-100.0, -30.0, -12.0, -4.0, -0.5, 0.0, 1e-3, 0.7, 5.0, 11.0, 40.0, 100.0];
        values.retain(|&v| v != 0.0 || corner || act != Activation::Relu);
        let ty = Ty::f32(&[1, values.len()]);
        let mut ins = vec![SampleIn::normal(ty.clone()); operands];
        ins[x] = SampleIn::values(ty, values);
        all.push(Sample::new(format!("far from zero, {act:?}"), Attr::Activation(act), ins));
    }
    all
}

/// The MLP's activation, named as in Hugging Face's configs.
fn case(s: &Sizes, act: Activation, operands: usize) -> Case {
    let name = if act == Activation::Silu { "silu" } else { "gelu_tanh" };
    Case::new(name, Attr::Activation(act), vec![SampleIn::f32(&[s.tokens, s.mlp]); operands])
}
