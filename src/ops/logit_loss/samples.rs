//! What the losses of logits are tested on: odd sizes, one column, many columns, rows and ranges that do not count, and
//! logits whose exponential no float holds.

use crate::dtype::Ty;
use crate::ops::loss::IGNORE;
use crate::ops::{Attr, Loss, Sample, SampleIn};

/// Rows and columns. The last two are beyond what a block or a binding of little memory takes at once.
const SHAPES: [(&str, usize, usize); 9] = [
    ("one logit", 1, 1),
    ("one column", 70, 1),
    ("two columns", 33, 2),
    ("odd", 7, 33),
    ("aligned", 17, 128),
    ("crooked", 3, 1031),
    ("many short rows", 2100, 3),
    ("many rows", 600, 35),
    ("a vocabulary", 3, 16320),
];

fn inv(value: f64) -> SampleIn {
    SampleIn::values(Ty::f32(&[1]), vec![value])
}

fn labels(shape: &[usize], values: &[i32]) -> SampleIn {
    SampleIn::values(Ty::i32(shape), values.iter().map(|&l| l as f64).collect())
}

/// With the gradient and without.
fn each(name: &str, ins: &[SampleIn]) -> [Sample; 2] {
    [false, true].map(|grad_x| {
        let name = format!("{name}{}", if grad_x { ", dx" } else { "" });
        Sample::new(name, Attr::Loss(Loss { grad_x, grad_w: false }), ins.to_vec())
    })
}

/// Far apart, equal, and one far from all others.
const LARGE: [f64; 20] = [
    1e4, -1e4, 0.0, 5.0, //
    -1e4, -1e4, -1e4, -1e4, //
    1e4, 9999.0, 1e4, -3.0, //
    2.0, 1e4, 3.0, 4.0, //
    -1e4, 1.0, 2.0, -1e4, //
];

pub fn cross_entropy() -> Vec<Sample> {
    let mut all = Vec::new();
    for (name, n, c) in SHAPES {
        // Every third row is not trained on, and some labels are beyond the columns.
        let label = |r: usize| match r {
            4 => c as i32,
            5 => i32::MAX,
            7 => -1,
            10 => i32::MIN,
            r if r % 3 == 1 => IGNORE,
            r => (r * 7 % c) as i32,
        };
        let values: Vec<i32> = (0..n).map(label).collect();
        all.extend(each(name, &[SampleIn::normal(Ty::f32(&[n, c])), labels(&[n], &values), inv(0.25)]));
    }
    let logits = || SampleIn::normal(Ty::f32(&[5, 9]));
    all.extend(each("nothing trained", &[logits(), labels(&[5], &[IGNORE, -1, 9, IGNORE, IGNORE]), inv(1.0)]));
    let large = || SampleIn::values(Ty::f32(&[5, 4]), LARGE.to_vec());
    all.extend(each("large logits", &[large(), labels(&[5], &[1, 0, 2, 1, 1]), inv(0.2)]));
    all
}

fn elements(targets: fn(Ty) -> SampleIn) -> Vec<Sample> {
    let mut all = Vec::new();
    for (name, n, c) in SHAPES {
        // Every third row does not count, and every fifth one half.
        let weight = |r: usize| match r {
            r if r % 3 == 1 => 0.0,
            r if r % 5 == 2 => 0.5,
            _ => 1.0,
        };
        let (ty, weight) = (Ty::f32(&[n, c]), SampleIn::values(Ty::f32(&[n]), (0..n).map(weight).collect()));
        all.extend(each(name, &[SampleIn::normal(ty.clone()), targets(ty), weight, inv(0.25)]));
    }
    let ty = Ty::f32(&[5, 9]);
    let nothing = SampleIn::values(Ty::f32(&[5]), vec![0.0; 5]);
    all.extend(each("nothing counts", &[SampleIn::normal(ty.clone()), targets(ty), nothing, inv(1.0)]));
    all
}

pub fn bce_with_logits() -> Vec<Sample> {
    let mut all = elements(|ty| SampleIn::uniform(ty, 0.0, 1.0));
    let row = |values: Vec<f64>| SampleIn::values(Ty::f32(&[1, values.len()]), values);
    let one = || SampleIn::values(Ty::f32(&[1]), vec![1.0]);
    let x = row(vec![1e4, -1e4, 1e4, -1e4, 100.0, -100.0, 0.0, 80.0, -90.0]);
    let t = row(vec![0.0, 1.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 1.0]);
    all.extend(each("large logits", &[x, t, one(), inv(0.2)]));
    // What is left of the loss is small, and is the logarithm of nearly 1.
    let (x, t) = (row(vec![9.0, -11.0, 10.0, -13.0, 14.5]), row(vec![1.0, 0.0, 1.0, 0.0, 1.0]));
    all.extend(each("nearly right", &[x, t, one(), inv(1.0)]));
    all
}

pub fn mse() -> Vec<Sample> {
    let mut all = elements(SampleIn::normal);
    let far = SampleIn { ty: Ty::f32(&[3, 7]), fill: crate::ops::Fill::Normal(1e4) };
    let weight = SampleIn::values(Ty::f32(&[3]), vec![1.0; 3]);
    all.extend(each("far off", &[SampleIn::normal(Ty::f32(&[3, 7])), far, weight, inv(0.5)]));
    all
}

pub fn range_cross_entropy() -> Vec<Sample> {
    /// Name, rows, columns, ranges, labels.
    type Case = (&'static str, usize, usize, &'static [i32], &'static [i32]);
    const CASES: [Case; 9] = [
        ("one row", 1, 1, &[0, 1], &[0]),
        ("one column", 19, 1, &[2, 11, 11, 19], &[8, 3]),
        ("question answering", 37, 2, &[0, 10, 10, 11, 12, 30, 30, 37], &[3, 9, 0, 0, 1, 17, 6, 0]),
        // Empty ranges, labels before and after theirs, and rows of no range.
        ("some do not count", 37, 2, &[1, 9, 9, 9, 20, 12, 20, 33], &[2, 8, 0, 0, 1, 1, IGNORE, 12]),
        ("ranges outside", 21, 3, &[-1, 5, 5, 11, 11, 22, i32::MIN, i32::MAX, 12, i32::MIN], &[1; 15]),
        ("all ignored", 13, 2, &[0, 6, 6, 13], &[-1, 6, IGNORE, 7]),
        ("out of order", 40, 2, &[25, 40, 0, 20], &[14, 0, 19, 7]),
        ("a long text", 1500, 2, &[3, 1490], &[1400, 7]),
        ("several columns", 300, 5, &[0, 33, 40, 299], &[1, 32, 4, 0, 33, 200, 258, 0, 1, -7]),
    ];
    let mut all = Vec::new();
    for (name, t, c, ranges, values) in CASES {
        let ins = [
            SampleIn::normal(Ty::f32(&[t, c])),
            labels(&[ranges.len() / 2, 2], ranges),
            labels(&[ranges.len() / 2, c], values),
            inv(0.5),
        ];
        all.extend(each(name, &ins));
    }
    let large = SampleIn::values(Ty::f32(&[10, 2]), LARGE.to_vec());
    all.extend(each(
        "large logits",
        &[large, labels(&[2, 2], &[0, 4, 4, 9]), labels(&[2, 2], &[1, 2, 0, 3]), inv(0.5)],
    ));
    all
}
