//! Rows that are held out for evaluation. Which side a row is on depends on what is in it and on nothing else: not on its
//! place, on other rows, on the seed or on the format of its file. So a row never changes sides as data grows, is shuffled
//! or is put into other files, equal rows are on one side, and a larger share holds out what a smaller one does.

use blake3::Hasher;
use serde_json::{Map, Value};

/// One side of a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// The share of rows that is held out, between 0 and 1.
    pub share: f64,
    /// Whether this is the side that is held out.
    pub held_out: bool,
}

impl Split {
    /// Whether a row of these fields is on this side.
    pub fn has_row(self, fields: &Map<String, Value>) -> bool {
        let mut hasher = Hasher::new();
        object(&mut hasher, fields);
        self.has(&hasher)
    }

    /// Whether a window of a text is on this side.
    pub fn has_window(self, ids: &[i32]) -> bool {
        self.has(Hasher::new().update(bytemuck::cast_slice(ids)))
    }

    fn has(self, hasher: &Hasher) -> bool {
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        // The first 53 bits: exact as a float.
        let at = (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64;
        (at < self.share) == self.held_out
    }
}

/// Fields count by their names, not by their order; what is null counts as absent, as for tasks.
fn object(hasher: &mut Hasher, fields: &Map<String, Value>) {
    let mut fields: Vec<(&String, &Value)> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
    fields.sort_by_key(|(name, _)| *name);
    hasher.update(b"{").update(&(fields.len() as u64).to_le_bytes());
    for (name, field) in fields {
        text(hasher, name);
        value(hasher, field);
    }
}

fn value(hasher: &mut Hasher, of: &Value) {
    match of {
        Value::Null => drop(hasher.update(b"0")),
        Value::Bool(yes) => drop(hasher.update(if *yes { b"t" } else { b"f" })),
        // A number counts as what it is, whichever way it is written.
        Value::Number(number) => {
            let bits = number.as_f64().map_or(0, f64::to_bits);
            hasher.update(b"n").update(&bits.to_le_bytes());
        }
        Value::String(string) => text(hasher, string),
        Value::Array(values) => {
            hasher.update(b"[").update(&(values.len() as u64).to_le_bytes());
            values.iter().for_each(|of| value(hasher, of));
        }
        Value::Object(fields) => object(hasher, fields),
    }
}

fn text(hasher: &mut Hasher, text: &str) {
    hasher.update(b"\"").update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn held(share: f64, row: &Value) -> bool {
        Split { share, held_out: true }.has_row(row.as_object().unwrap())
    }

    #[test]
    fn a_row_is_on_one_side_and_never_changes_it() {
        let rows: Vec<Value> = (0..4000).map(|i| json!({"text": format!("row {i}"), "label": i % 3})).collect();
        let count = |share| rows.iter().filter(|row| held(share, row)).count() as f64;
        for share in [0.02f64, 0.05, 0.5] {
            // Five standard deviations of a binomial.
            let (mean, deviation) = (4000.0 * share, (4000.0 * share * (1.0 - share)).sqrt());
            assert!((count(share) - mean).abs() < 5.0 * deviation, "{share}: {}", count(share));
        }
        for row in &rows {
            let other = Split { share: 0.05, held_out: false }.has_row(row.as_object().unwrap());
            assert_ne!(held(0.05, row), other);
            assert!(!held(0.02, row) || held(0.05, row), "what a smaller share holds out, a larger one does");
        }
        // Written down: another hash would let rows change sides from one version to the next.
        let first: Vec<usize> = (0..4000).filter(|i| held(0.002, &rows[*i])).collect();
        assert_eq!(first, [377, 490, 643, 1042, 1105, 1381, 2591, 2795, 3746]);
    }

    #[test]
    fn what_is_in_a_row_counts_and_nothing_else() {
        let share = 0.5;
        let same = [
            (json!({"a": 1, "b": [true, "x"]}), json!({"b": [true, "x"], "a": 1.0, "c": null})),
            (json!({"a": {"x": 1, "y": 2}}), json!({"a": {"y": 2, "x": 1}})),
        ];
        for (one, other) in same {
            assert_eq!(held(share, &one), held(share, &other), "{one} {other}");
        }
        // Rows that differ in where a text ends, or in a type, are hashed as others: over many, sides differ as often as not.
        let differ = |f: fn(usize) -> (Value, Value)| {
            let differ = (0..400).filter(|i| held(share, &f(*i).0) != held(share, &f(*i).1)).count();
            assert!(differ.abs_diff(200) < 50, "{differ}");
        };
        differ(|i| (json!({"a": format!("{i}x"), "b": "y"}), json!({"a": format!("{i}"), "b": "xy"})));
        differ(|i| (json!({"a": i}), json!({"a": i.to_string()})));
        differ(|i| (json!({"a": [i, [1]]}), json!({"a": [i, 1]})));
    }
}
