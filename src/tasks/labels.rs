//! Names of labels: from config.json's `id2label`, else from the data, and back into config.json.
//!
//! The rules are transformers': `problem_type` if config.json has it, else regression for one label, one label of several
//! where labels are whole numbers or names, several labels at once where they are lists.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{TaskDef, architecture};
use crate::data::row::Row;
use crate::data::values::shown;
use crate::error::{Error, Result};

/// The names of the labels 0, 1, ….
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    names: Vec<String>,
}

/// The most labels whose number alone is known: names are made of them, however short the file that says the number.
const MOST: usize = 1 << 15;

/// What a sequence's labels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// One of several.
    Single,
    /// Any of several.
    Multi,
    /// Numbers.
    Regression,
}

impl Problem {
    const ALL: [(Problem, &str); 3] = [
        (Problem::Single, "single_label_classification"),
        (Problem::Multi, "multi_label_classification"),
        (Problem::Regression, "regression"),
    ];

    /// config.json's `problem_type`, if it has one.
    pub fn of_config(config: &Value) -> Result<Option<Problem>> {
        let Some(found) = config.get("problem_type").filter(|v| !v.is_null()) else { return Ok(None) };
        match Problem::ALL.iter().find(|(_, name)| found == name) {
            Some((problem, _)) => Ok(Some(*problem)),
            None => {
                let names = Problem::ALL.map(|p| p.1).join(", ");
                Err(Error::config("config.json: problem_type", found.to_string(), format!("one of {names}")))
            }
        }
    }

    fn name(self) -> &'static str {
        Problem::ALL.iter().find(|(problem, _)| *problem == self).map_or("", |p| p.1)
    }
}

impl Labels {
    /// Labels of these names, in this order.
    pub fn new(names: Vec<String>) -> Labels {
        Labels { names }
    }

    /// `LABEL_0`, `LABEL_1`, …, as transformers calls labels without names.
    pub fn numbered(count: usize) -> Labels {
        Labels { names: (0..count).map(generic).collect() }
    }

    /// Those of config.json, if it has any.
    pub fn of_config(config: &Value) -> Result<Option<Labels>> {
        let bad = |found: String| Error::config("config.json: id2label", found, "a name for each of 0, 1, …");
        if let Some(map) = config.get("id2label").and_then(Value::as_object).filter(|map| !map.is_empty()) {
            let name = |i: usize| map.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned);
            let names: Option<Vec<String>> = (0..map.len()).map(name).collect();
            return match names {
                Some(names) => Ok(Some(Labels { names })),
                None => Err(bad(config["id2label"].to_string())),
            };
        }
        match config.get("num_labels").and_then(Value::as_u64).filter(|n| *n > 0) {
            Some(n) if n > MOST as u64 => {
                let expected = format!("at most {MOST}, or an id2label with a name for each");
                Err(Error::config("config.json: num_labels", n.to_string(), expected))
            }
            count => Ok(count.map(|n| Labels::numbered(n as usize))),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// All names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of label `id`.
    pub fn name(&self, id: usize) -> &str {
        self.names.get(id).map_or("", String::as_str)
    }

    /// The number of a label that is given as a number or by name.
    pub fn id(&self, row: &Row, label: &Value) -> Result<i32> {
        let found = match (number(label), label) {
            (Some(x), _) if x.fract() == 0.0 && 0.0 <= x => Some(x as usize).filter(|id| *id < self.len()),
            (None, Value::String(name)) => self.names.iter().position(|n| n == name),
            _ => None,
        };
        match found {
            Some(id) => Ok(id as i32),
            None => Err(row.wrong(
                format!("label {}", shown(label)),
                format!("0 to {}, or one of {}", self.len().saturating_sub(1), self.list()),
            )),
        }
    }

    fn list(&self) -> String {
        const SHOWN: usize = 8;
        let mut text = self.names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if self.len() > SHOWN {
            text += ", …";
        }
        text
    }

    fn is_generic(&self) -> bool {
        self.names.iter().enumerate().all(|(i, name)| *name == generic(i))
    }
}

fn generic(id: usize) -> String {
    format!("LABEL_{id}")
}

/// A number, or a truth value as one.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(yes) => Some(f64::from(*yes)),
        _ => value.as_f64(),
    }
}

/// The labels that data has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    names: BTreeSet<String>,
    /// The largest whole number.
    most: Option<u64>,
    fractions: bool,
    /// A number with a point that is no share: below 0 or above 1.
    beyond: bool,
    /// A whole number below 0.
    negative: Option<f64>,
    /// The longest list.
    list: Option<usize>,
}

impl Seen {
    fn add(&mut self, label: &Value) {
        match (label, number(label)) {
            (Value::Array(labels), _) => {
                self.list = Some(self.list.unwrap_or(0).max(labels.len()));
                labels.iter().for_each(|l| self.add(l));
            }
            (Value::String(name), _) => drop(self.names.insert(name.clone())),
            // Not trained.
            (_, Some(-100.0)) => {}
            (_, Some(x)) if x.fract() == 0.0 && x >= 0.0 && !label.is_f64() => {
                self.most = Some(self.most.unwrap_or(0).max(x as u64));
            }
            (_, Some(x)) if x.fract() == 0.0 && !label.is_f64() => self.negative = Some(x),
            (_, Some(x)) => {
                self.fractions = true;
                self.beyond |= !(0.0..=1.0).contains(&x);
            }
            _ => {}
        }
    }

    fn any(&self) -> bool {
        !self.names.is_empty() || self.most.is_some() || self.fractions || self.negative.is_some()
    }

    /// The labels, where each token has one or each sequence.
    fn labels(&self, of_tokens: bool) -> Result<Labels> {
        let numbers = self.most.is_some() || self.fractions || self.negative.is_some();
        if let Some(x) = self.negative.filter(|_| self.names.is_empty() && self.list.is_none() && !self.fractions) {
            let expected = "classes numbered from 0; for regression numbers with a point, such as -1.0";
            return Err(bad(&format!("label {x}"), expected));
        }
        let labels = match (self.names.is_empty(), self.list.filter(|_| !of_tokens)) {
            (false, _) if numbers => {
                let name = self.names.first().map_or("", String::as_str);
                return Err(bad(&format!("the name {name:?} among numbers"), "names alone, or numbers alone"));
            }
            (false, _) => Labels::new(self.names.iter().cloned().collect()),
            (true, Some(width)) => Labels::numbered(width),
            (true, None) if self.fractions => Labels::numbered(1),
            (true, None) => match self.most {
                Some(most) if most < MOST as u64 => Labels::numbered((most as usize + 1).max(2)),
                Some(most) => {
                    let expected = format!("numbers of classes, below {MOST}; or names, or id2label in config.json");
                    return Err(bad(&format!("label {most}"), &expected));
                }
                None => return Err(bad("none in the data", "a label in each row, or id2label in config.json")),
            },
        };
        Ok(labels)
    }

    /// What labels of `count` classes are, by transformers' rule: several numbers are shares of labels, with a point or without.
    /// Those that cannot be shares are numbers.
    fn problem(&self, count: usize) -> Problem {
        match (count, self.list) {
            (1, _) if self.names.is_empty() => Problem::Regression,
            (_, Some(_)) if self.beyond => Problem::Regression,
            (_, Some(_)) => Problem::Multi,
            (_, None) => Problem::Single,
        }
    }
}

fn bad(found: &str, expected: &str) -> Error {
    Error::config("labels", found, expected)
}

/// Gives each row of the data to a function until that returns false.
pub type Rows<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&Row) -> Result<bool>) -> Result<()>;

/// Completes config.json for `task`: its model class, and where the task has labels their names and kind. Names come from
/// config.json, if its class is one of the task's, or it names them, or they are `known` to be those of a trained head; else
/// from the data, in sorted order.
pub fn settle(task: &TaskDef, config: &mut Value, known: bool, rows: Option<Rows>) -> Result<()> {
    let classes: Vec<String> = match config.get("architectures").and_then(Value::as_array) {
        Some(classes) => classes.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let trained = classes.iter().any(|c| task.architectures.iter().any(|ending| c.ends_with(ending)));
    if let Some(class) = classes.first().filter(|_| !trained).and_then(|class| architecture(class, task)) {
        config["architectures"] = Value::from(vec![class]);
    }
    let trained = trained || known;
    if task.label.is_empty() {
        return Ok(());
    }
    let given = match Labels::of_config(config)? {
        Some(labels) if trained || !labels.is_generic() => Some(labels),
        // transformers does not write the default.
        None if trained => Some(Labels::numbered(2)),
        _ => None,
    };
    let of_tokens = task.of_tokens;
    let decided = of_tokens || Problem::of_config(config)?.is_some() || given.as_ref().is_some_and(|l| l.len() == 1);
    let mut seen = Seen::default();
    if let Some(rows) = rows.filter(|_| given.is_none() || !decided) {
        rows(&mut |row| {
            for label in task.label.iter().filter_map(|name| row.value(name)) {
                if label.is_object() {
                    return Err(row.wrong(format!("label {}", shown(&label)), "a name, a number, or a list of them"));
                }
                seen.add(&label);
            }
            // Of known labels only their kind is wanted.
            Ok(given.is_none() || !seen.any())
        })?;
    }
    let labels = match given {
        Some(labels) => labels,
        None => seen.labels(of_tokens)?,
    };
    let problem = match Problem::of_config(config)? {
        Some(problem) => problem,
        None => seen.problem(labels.len()),
    };
    if problem == Problem::Single && labels.len() < 2 {
        return Err(bad(
            &format!("only one, {:?}", labels.name(0)),
            "two or more in the data, or problem_type regression in config.json",
        ));
    }
    if let Some(config) = config.as_object_mut() {
        let names = || labels.names.iter().enumerate();
        let by_id: Map<String, Value> = names().map(|(i, name)| (i.to_string(), name.as_str().into())).collect();
        let by_name: Map<String, Value> = names().map(|(i, name)| (name.clone(), i.into())).collect();
        config.shift_remove("num_labels");
        config.insert("id2label".into(), by_id.into());
        config.insert("label2id".into(), by_name.into());
        if !of_tokens {
            config.insert("problem_type".into(), problem.name().into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tasks::{sequence_classification, token_classification};

    fn settled(task: &TaskDef, mut config: Value, labels: &[Value]) -> Result<Value> {
        let field = task.label[0];
        let mut rows = |on: &mut dyn FnMut(&Row) -> Result<bool>| {
            for (i, label) in labels.iter().enumerate() {
                let fields = Map::from_iter([(field.to_string(), label.clone())]);
                if !on(&Row { path: "data".as_ref(), line: i + 1, fields, cells: false })? {
                    break;
                }
            }
            Ok(())
        };
        settle(task, &mut config, false, Some(&mut rows)).map(|()| config)
    }

    #[test]
    fn labels_come_from_the_config_or_the_data() {
        let classify = &sequence_classification::DEF;
        let bare = || json!({"architectures": ["LlamaForCausalLM"]});
        let trained = |labels: Value| json!({"architectures": ["LlamaForSequenceClassification"], "id2label": labels});
        let three = || json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"});
        // Config, labels, names, kind.
        let table: &[(Value, &[Value], &[&str], &str)] = &[
            (bare(), &[json!("pos"), json!("neg"), json!("pos")], &["neg", "pos"], "single_label_classification"),
            (bare(), &[json!(0), json!(2)], &["LABEL_0", "LABEL_1", "LABEL_2"], "single_label_classification"),
            (bare(), &[json!(true)], &["LABEL_0", "LABEL_1"], "single_label_classification"),
            (bare(), &[json!(0.5), json!(2)], &["LABEL_0"], "regression"),
            (bare(), &[json!(-1.5), json!(2)], &["LABEL_0"], "regression"),
            (bare(), &[json!(-1.0), json!(1)], &["LABEL_0"], "regression"),
            (bare(), &[json!([0.0, 1.0]), json!([1.0, 0.25])], &["LABEL_0", "LABEL_1"], "multi_label_classification"),
            (bare(), &[json!([0.0, 1.5])], &["LABEL_0", "LABEL_1"], "regression"),
            (bare(), &[json!([0, 1, 1])], &["LABEL_0", "LABEL_1", "LABEL_2"], "multi_label_classification"),
            (bare(), &[json!(["b", "a"]), json!([])], &["a", "b"], "multi_label_classification"),
            (trained(three()), &[json!(1)], &["LABEL_0", "LABEL_1", "LABEL_2"], "single_label_classification"),
            (trained(three()), &[json!([1, 0, 1])], &["LABEL_0", "LABEL_1", "LABEL_2"], "multi_label_classification"),
            (trained(json!({"0": "x"})), &[json!(1)], &["x"], "regression"),
            (trained(Value::Null), &[json!(1)], &["LABEL_0", "LABEL_1"], "single_label_classification"),
            // Names of a model without a trained head count only if they are names.
            (json!({"id2label": three()}), &[json!("b"), json!("a")], &["a", "b"], "single_label_classification"),
            (
                json!({"id2label": {"0": "no", "1": "yes"}}),
                &[json!("yes")],
                &["no", "yes"],
                "single_label_classification",
            ),
        ];
        for (config, labels, names, problem) in table {
            let got = settled(classify, config.clone(), labels).unwrap();
            assert_eq!(Labels::of_config(&got).unwrap().unwrap().names(), *names, "{config} {labels:?}");
            assert_eq!(got["problem_type"], *problem, "{config} {labels:?}");
            assert_eq!(got["label2id"][names[0]], 0);
        }
        let got = settled(classify, bare(), &[json!("a"), json!("b")]).unwrap();
        assert_eq!(got["architectures"], json!(["LlamaForSequenceClassification"]));
        let got = settled(&token_classification::DEF, bare(), &[json!([0, -100, 4]), json!([1])]).unwrap();
        assert_eq!(Labels::of_config(&got).unwrap().unwrap().len(), 5);
        assert_eq!(got.get("problem_type"), None);
        let got = settled(&token_classification::DEF, bare(), &[json!(["O", "B-X"]), json!(["I-X"])]).unwrap();
        assert_eq!(Labels::of_config(&got).unwrap().unwrap().names(), ["B-X", "I-X", "O"]);
    }

    #[test]
    fn labels_that_make_no_sense_are_errors() {
        let classify = &sequence_classification::DEF;
        for labels in [
            &[json!("a"), json!(1)][..],
            &[],
            &[json!("only")],
            &[json!(1u64 << 40)],
            &[json!(-1), json!(1)],
            &[json!({})],
        ] {
            assert!(settled(classify, json!({}), labels).is_err(), "{labels:?}");
        }
        assert!(Labels::of_config(&json!({"id2label": {"0": "a", "2": "b"}})).is_err());
        // A number alone makes no list of names of any length.
        for many in [MOST as u64 + 1, u64::MAX] {
            assert!(Labels::of_config(&json!({"num_labels": many})).is_err(), "{many}");
            assert!(settled(classify, json!({}), &[json!(many - 1)]).is_err(), "{many}");
        }
        assert_eq!(Labels::of_config(&json!({"num_labels": MOST})).unwrap().unwrap().len(), MOST);
        assert!(Problem::of_config(&json!({"problem_type": "ranking"})).is_err());
    }
}
