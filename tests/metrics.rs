//! Metrics against scikit-learn, scipy, seqeval and the rules of SQuAD's scripts (golden/generate_metrics.py). Each is
//! computed twice, in one batch and in several, and each test is shown a wrong value.

use serde_json::Value;
use trimtab::tasks::metrics::{
    Answers, Classification, Entities, Language, MultiLabel, Regression, Squad, Values, argmax,
};

/// Sums of at most some hundred terms in float64, in another order.
const TOLERANCE: f64 = 1e-12;

fn cases(metric: &str) -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metrics.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden[metric].as_array().unwrap().clone();
    assert!(cases.len() > 5, "{metric}");
    cases
}

/// What is wrong about the values of a case, or nothing.
fn differs(found: &Values, expected: &Value) -> Option<String> {
    let expected = expected.as_object().unwrap();
    if found.len() != expected.len() {
        return Some(format!("found {found:?}, expected {expected:?}"));
    }
    found.iter().find_map(|(name, value)| {
        let Some(golden) = expected.get(*name) else { return Some(format!("{name} is not expected")) };
        // NaN is null.
        let right = match golden.as_f64() {
            Some(golden) => (value - golden).abs() <= TOLERANCE * golden.abs().max(1.0),
            None => value.is_nan(),
        };
        (!right).then(|| format!("{name}: found {value}, expected {golden}"))
    })
}

fn agrees(found: &Values, case: &Value, expected: &Value) {
    if let Some(wrong) = differs(found, expected) {
        panic!("{wrong} in {case}");
    }
}

fn list<T>(value: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(one).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    list(value, |v| v.as_f64().unwrap() as f32)
}

fn indices(value: &Value) -> Vec<usize> {
    list(value, |v| v.as_u64().unwrap() as usize)
}

fn name(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// How many of these values, which belong to other predictions, are not the expected ones: the control.
fn told_apart(wrong: impl IntoIterator<Item = (Values, Value)>) -> usize {
    wrong.into_iter().filter(|(found, expected)| differs(found, expected).is_some()).count()
}

#[test]
fn classification() {
    let mut shifted = Vec::new();
    for case in cases("classification") {
        let classes = case["classes"].as_u64().unwrap() as usize;
        let (predicted, labels) = (indices(&case["predicted"]), indices(&case["labels"]));
        let mut whole = Classification::new(classes);
        whole.add(&predicted, &labels).unwrap();
        agrees(&whole.finish(), &case, &case["expected"]);
        let mut parts = Classification::new(classes);
        for (p, l) in predicted.chunks(3).zip(labels.chunks(3)) {
            parts.add(p, l).unwrap();
        }
        assert_eq!(parts.finish(), whole.finish());

        let other: Vec<usize> = predicted.iter().map(|p| (p + 1) % classes).collect();
        let mut wrong = Classification::new(classes);
        wrong.add(&other, &labels).unwrap();
        if !labels.is_empty() {
            shifted.push((wrong.finish(), case["expected"].clone()));
        }
    }
    let n = shifted.len();
    assert_eq!(told_apart(shifted), n, "the control: other predictions");
    let mut metric = Classification::new(2);
    assert!(metric.add(&[0, 1], &[0]).is_err() && metric.add(&[2], &[0]).is_err() && metric.add(&[0], &[2]).is_err());
}

#[test]
fn multilabel() {
    let mut flipped = Vec::new();
    for case in cases("multilabel") {
        let classes = case["classes"].as_u64().unwrap() as usize;
        let (logits, labels) = (numbers(&case["logits"]), numbers(&case["labels"]));
        let mut whole = MultiLabel::new(classes);
        whole.add(&logits, &labels).unwrap();
        agrees(&whole.finish(), &case, &case["expected"]);
        let mut parts = MultiLabel::new(classes);
        for (p, l) in logits.chunks(2 * classes).zip(labels.chunks(2 * classes)) {
            parts.add(p, l).unwrap();
        }
        assert_eq!(parts.finish(), whole.finish());

        let mut wrong = MultiLabel::new(classes);
        wrong.add(&logits.iter().map(|l| if *l > 0.0 { 0.0 } else { 1.0 }).collect::<Vec<_>>(), &labels).unwrap();
        if !labels.is_empty() {
            flipped.push((wrong.finish(), case["expected"].clone()));
        }
    }
    let n = flipped.len();
    assert_eq!(told_apart(flipped), n, "the control: other predictions");
    let mut metric = MultiLabel::new(2);
    assert!(metric.add(&[0.0; 2], &[0.0; 4]).is_err());
    assert!(metric.add(&[0.0; 3], &[0.0; 3]).is_err());
    assert!(metric.add(&[0.0; 2], &[0.0, 1.5]).is_err());
    assert!(MultiLabel::new(0).add(&[], &[]).is_err());
}

#[test]
fn regression() {
    let mut moved = Vec::new();
    for case in cases("regression") {
        let (predicted, labels) = (numbers(&case["predicted"]), numbers(&case["labels"]));
        let mut whole = Regression::new();
        whole.add(&predicted, &labels).unwrap();
        agrees(&whole.finish(), &case, &case["expected"]);
        let mut parts = Regression::new();
        for (p, l) in predicted.chunks(2).zip(labels.chunks(2)) {
            parts.add(p, l).unwrap();
        }
        agrees(&parts.finish(), &case, &case["expected"]);

        let mut wrong = Regression::new();
        wrong.add(&predicted.iter().map(|p| 1.0 - p).collect::<Vec<_>>(), &labels).unwrap();
        // Each value by itself, so that a wrong correlation cannot hide after a wrong error.
        for (name, value) in wrong.finish() {
            if let Some(right) = case["expected"][name].as_f64() {
                assert!((value - right).abs() > 1e-3, "the control: {name} of other predictions in {case}");
                moved.push(name);
            }
        }
    }
    for name in ["mse", "mae", "pearson", "spearmanr"] {
        assert!(moved.iter().filter(|n| **n == name).count() > 4, "{name}");
    }
    let mut metric = Regression::new();
    assert!(metric.add(&[1.0], &[]).is_err());
    metric.add(&[1.0, f32::NAN, 2.0], &[1.0, 2.0, 3.0]).unwrap();
    assert!(metric.finish().iter().all(|(_, value)| value.is_nan()));
}

#[test]
fn entities() {
    let (mut perfect, mut split, mut found) = (Vec::new(), 0, 0);
    for case in cases("entities") {
        let names = list(&case["names"], name);
        let labels = list(&case["labels"], |s| list(s, |v| v.as_i64().unwrap() as i32));
        let predicted = list(&case["predicted"], indices);
        let read = |of: &dyn Fn(&mut Entities)| {
            let mut metric = Entities::new(&names).unwrap();
            of(&mut metric);
            metric.finish()
        };
        let right = read(&|m| predicted.iter().zip(&labels).for_each(|(p, l)| m.add(p, l).unwrap()));
        agrees(&right, &case, &case["expected"]);
        found += usize::from(right[2].1 > 0.0 && right[2].1 < 1.0);

        let one = read(&|m| m.add(&predicted.concat(), &labels.concat()).unwrap());
        split += usize::from(differs(&one, &case["expected"]).is_some());
        if right[3].1 < 1.0 && labels.iter().flatten().any(|l| *l >= 0) {
            let truth = |l: &[i32]| l.iter().map(|l| usize::try_from(*l).unwrap_or(0)).collect::<Vec<_>>();
            let best = read(&|m| labels.iter().for_each(|l| m.add(&truth(l), l).unwrap()));
            perfect.push((best, case["expected"].clone()));
        }
    }
    assert!(found > 10 && split > 1, "{found} cases have some entities right, {split} depend on where sequences end");
    let n = perfect.len();
    assert!(n > 10 && told_apart(perfect) == n, "the control: predictions that are all right");

    let names = ["O", "B-X"].map(String::from);
    let mut metric = Entities::new(&names).unwrap();
    assert!(metric.add(&[2], &[0]).is_err() && metric.add(&[0], &[2]).is_err() && metric.add(&[0], &[-1]).is_err());
    assert!(metric.add(&[0, 1], &[0]).is_err());
    assert!(Entities::new(&["O".into(), String::new()]).is_err());
}

#[test]
fn answers() {
    let mut perfect = Vec::new();
    let mut rules_differ = 0;
    for case in cases("answers") {
        let questions = list(&case["questions"], |q| (name(&q[0]), list(&q[1], name)));
        for (rules, key) in [(Squad::V1, "v1"), (Squad::V2, "v2")] {
            if case[key].as_object().unwrap().is_empty() {
                continue;
            }
            let mut metric = Answers::new(rules);
            questions.iter().for_each(|(predicted, references)| metric.add(predicted, references));
            agrees(&metric.finish(), &case, &case[key]);

            let mut best = Answers::new(rules);
            for (_, references) in &questions {
                best.add(references.first().map_or("", |r| r), references);
            }
            let all_right = metric.finish()[0].1 == 100.0;
            if !questions.is_empty() && !all_right {
                perfect.push((best.finish(), case[key].clone()));
            }
        }
        rules_differ += usize::from(!case["v1"]["f1"].is_null() && case["v1"]["f1"] != case["v2"]["f1"]);
    }
    assert!(rules_differ > 3, "{rules_differ}");
    let n = perfect.len();
    assert!(n > 50 && told_apart(perfect) == n, "the control: predictions that are all right");
}

#[test]
fn language() {
    for case in cases("language") {
        let batches =
            list(&case["batches"], |b| (b[0].as_f64().unwrap(), b[1].as_u64().unwrap(), b[2].as_u64().unwrap()));
        let mut metric = Language::new();
        batches.iter().for_each(|&(loss, tokens, right)| metric.add(loss, tokens, right));
        agrees(&metric.finish(), &case, &case["expected"]);
        metric.add(3.0, 1, 0);
        assert!(differs(&metric.finish(), &case["expected"]).is_some(), "the control: one token more");
    }
    let mut metric = Language::new();
    metric.add(1e9, 1, 0);
    assert_eq!(metric.finish()[0].1, f64::INFINITY);
}

#[test]
fn argmax_is_the_first_largest() {
    for (row, expected) in [
        (&[1.0, 3.0, 3.0, 2.0][..], 1),
        (&[], 0),
        (&[f32::NAN, -1.0, 2.0, f32::NAN], 2),
        (&[f32::NAN, f32::NAN], 0),
        (&[f32::NEG_INFINITY, f32::NEG_INFINITY], 0),
        (&[0.0, f32::INFINITY], 1),
    ] {
        assert_eq!(argmax(row), expected, "{row:?}");
    }
}
