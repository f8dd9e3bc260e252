//! Random graphs: any mix of ops, shapes, views and fan-out that the verifier accepts.

use trimtab::dtype::{DType, Ty};
use trimtab::graph::{Graph, LeafKind, Phase, Val};
use trimtab::ops::{Activation, Attr, Dropout, Linear, Lora, Matmul, elementwise, linear, matmul};

use trimtab::bench::operands::Random;

/// A graph of two phases, and the leaves that hold its results when both have run.
pub struct Sketch {
    pub graph: Graph,
    pub results: Vec<Val>,
}

/// Draws a graph.
pub fn random(seed: u64) -> Sketch {
    let mut s = Sketcher { g: Graph::new(), r: Random::new(seed), values: Vec::new() };
    for _ in 0..1 + s.below(3) {
        let shape = [1 + s.below(40), 1 + s.below(24)];
        let x = s.leaf(&shape);
        s.values.push(x);
    }
    for i in 0..4 + s.below(37) {
        s.g.site = format!("n{i}");
        s.grow();
    }
    let results = s.finish();
    Sketch { graph: s.g, results }
}

struct Sketcher {
    g: Graph,
    r: Random,
    /// Matrices that later nodes may read.
    values: Vec<Val>,
}

impl Sketcher {
    fn below(&mut self, n: usize) -> usize {
        (self.r.word() % n as u64) as usize
    }

    fn leaf(&mut self, shape: &[usize]) -> Val {
        let name = format!("leaf{}", self.g.values.len());
        self.g.leaf(LeafKind::Param, name, Ty::f32(shape))
    }

    fn rng(&mut self) -> Val {
        let name = format!("rng{}", self.g.values.len());
        self.g.leaf(LeafKind::Io, name, Ty::u32(&[4]))
    }

    /// Often a recent value, so that long chains with dead inputs arise; sometimes an old one.
    fn pick(&mut self) -> Val {
        let n = self.values.len();
        let i = if self.below(4) == 0 { self.below(n) } else { n - 1 - self.below(n.min(3)) };
        self.values[i]
    }

    /// Another value of this shape, if chance finds one, else a leaf.
    fn like(&mut self, shape: &[usize]) -> Val {
        let same: Vec<Val> = self.values.iter().copied().filter(|&v| self.g.shape(v) == shape).collect();
        match same.len() {
            0 => self.leaf(shape),
            n => same[self.below(n)],
        }
    }

    fn grow(&mut self) {
        let x = self.pick();
        let (rows, cols) = (self.g.shape(x)[0], self.g.shape(x)[1]);
        let act = Activation::ALL[self.below(Activation::ALL.len())];
        let drop = Dropout { p: 0.25, site: self.g.nodes.len() as u32 };
        let width = 1 + self.below(24);
        let choice = self.below(16);
        let new: Vec<Val> = match choice {
            0 | 1 => {
                let y = self.like(&[rows, cols]);
                vec![self.g.add(x, y).unwrap()]
            }
            2 => {
                let s = self.leaf(&[1]);
                vec![self.g.scale(x, s).unwrap()]
            }
            3 => {
                let b = self.like(&[width, cols]);
                vec![self.g.matmul(x, false, b, true, 0.5).unwrap()]
            }
            4 if cols <= 64 => {
                // xᵀ·x, added to a value of that shape.
                let acc = self.like(&[cols, cols]);
                let attr = Attr::Matmul(Matmul { ta: true, tb: false, alpha: 0.25, acc: true });
                self.g.node(&matmul::MATMUL, attr, &[x, x, acc]).unwrap()
            }
            5 => {
                let w = self.leaf(&[cols]);
                vec![self.g.rms_norm(x, w, 1e-5, 0.0).unwrap()]
            }
            6 => {
                let shape = if rows.is_multiple_of(2) && cols <= 32 { [rows / 2, cols * 2] } else { [cols, rows] };
                vec![self.g.reshape(x, &shape).unwrap()]
            }
            7 => {
                let up = self.like(&[rows, cols]);
                vec![self.g.gated_act(x, up, act).unwrap()]
            }
            8 => {
                let (gate, up) = (self.like(&[rows, cols]), self.like(&[rows, cols]));
                self.g.node(&elementwise::GATED_ACT_BWD, Attr::Activation(act), &[x, gate, up]).unwrap()
            }
            9 => {
                let rng = self.rng();
                vec![self.g.dropout(x, rng, drop).unwrap()]
            }
            10 => {
                let v = self.leaf(&[cols]);
                vec![self.g.add_row(x, v, 0.5).unwrap()]
            }
            11 => {
                let sums = self.g.sum_rows(x).unwrap();
                let v = self.leaf(&[cols]);
                let y = self.g.add_row(x, sums, 0.125).unwrap();
                let row = self.g.reshape(v, &[1, cols]).unwrap();
                vec![y, row]
            }
            12 => {
                let (w, b) = (self.leaf(&[cols]), self.leaf(&[cols]));
                vec![self.g.layer_norm(x, w, b, 1e-5).unwrap()]
            }
            13 => vec![self.g.activation(x, act).unwrap()],
            14 => {
                let dy = self.like(&[rows, cols]);
                self.g.node(&elementwise::ACTIVATION_BWD, Attr::Activation(act), &[dy, x]).unwrap()
            }
            _ => {
                // A quantized weight: on devices that decode it first, scratch memory; and a second output.
                let w = self.g.leaf(
                    LeafKind::Frozen,
                    format!("w{}", self.g.values.len()),
                    Ty::new(DType::Nf4, &[width, cols]),
                );
                let (a, b, rng) = (self.leaf(&[3, cols]), self.leaf(&[width, 3]), self.rng());
                let lora = Some(Lora { scale: 2.0, dropout: Some(drop) });
                self.g
                    .node(&linear::LINEAR, Attr::Linear(Linear { bias: false, lora, acc: false }), &[x, w, a, b, rng])
                    .unwrap()
            }
        };
        self.values.extend(new.into_iter().filter(|&v| self.g.shape(v).len() == 2));
    }

    /// What nothing has read goes, with some of the rest, to leaves; the second phase then works on some of those.
    fn finish(&mut self) -> Vec<Val> {
        let read: Vec<Val> = self.g.nodes.iter().flat_map(|n| &n.ins).map(|&v| self.g.root(v).0).collect();
        let values = self.values.clone();
        let mut results = Vec::new();
        for v in values {
            if !read.contains(&self.g.root(v).0) || self.below(6) == 0 {
                results.push(self.keep(v));
            }
        }
        self.g.phase = Phase::UPDATE;
        for i in 0..results.len() {
            if self.below(2) == 0 {
                let twice = self.g.add(results[i], results[i]).unwrap();
                let kept = self.keep(twice);
                results.push(kept);
            }
        }
        results
    }

    fn keep(&mut self, v: Val) -> Val {
        let shape = self.g.shape(v).to_vec();
        let (nothing, to) = (self.leaf(&shape), self.leaf(&shape));
        self.g.node_into(&elementwise::ADD, Attr::None, &[v, nothing], &[Some(to)]).unwrap();
        to
    }
}
