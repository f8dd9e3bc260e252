//! A result beside an earlier one: what changed by more than the noise of both.

use serde_json::{Map, Value};

use super::stats::Stats;
use super::table::{Report, number};
use crate::error::{Error, Result};

/// What is within this share is no change, whatever the noise: a machine is not the same on two days.
const LEAST: f64 = 0.02;
/// Standard deviations of the difference of two medians.
const SURE: f64 = 3.0;

/// What became of the figures of an earlier result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Name, and the new median over the old.
    pub worse: Vec<(String, f64)>,
    /// The same.
    pub better: Vec<(String, f64)>,
    /// How many are within the noise.
    pub same: usize,
    /// What only one of the two has.
    pub alone: Vec<String>,
    /// What differs between the machines and settings.
    pub differs: Vec<String>,
}

/// Compares `new` with the result in `old`, the text of a file that `name` says the name of.
pub fn compare(new: &Report, old: &str, name: &str) -> Result<Changes> {
    let wrong = |found: String| Error::file(name, found, format!("what `bench {} --json` printed", new.bench));
    let old: Value = serde_json::from_str(old).map_err(|e| wrong(e.to_string()))?;
    let bench = old["bench"].as_str().unwrap_or_default();
    if bench != new.bench {
        return Err(wrong(format!("a result of bench {bench:?}")));
    }
    let Some(rows) = old["rows"].as_array() else { return Err(wrong("no rows".into())) };
    let before: Vec<(&str, Stats)> = rows.iter().filter_map(Value::as_object).filter_map(figure).collect();
    let mut changes = Changes::default();
    for key in ["device", "driver", "threads", "processor", "sizes", "model"] {
        let of = |map: Option<&Value>| map.and_then(|v| v.get(key)).cloned().unwrap_or(Value::Null);
        let (was, is) = (of(old.get("environment")), new.environment.get(key).cloned().unwrap_or(Value::Null));
        let (was, is) = if was.is_null() && is.is_null() {
            (of(old.get("facts")), new.facts.get(key).cloned().unwrap_or(Value::Null))
        } else {
            (was, is)
        };
        if was != is {
            changes.differs.push(format!("{key}: {was} before, {is} now"));
        }
    }
    for row in &new.rows {
        let Some((name, now)) = figure(row) else { continue };
        let Some((_, then)) = before.iter().find(|(n, _)| *n == name) else {
            changes.alone.push(format!("{name} (new)"));
            continue;
        };
        let ratio = now.median / then.median;
        let noise = SURE * now.uncertainty().hypot(then.uncertainty());
        // Of logarithms, so that half is as far as double.
        if !ratio.is_finite() || ratio.ln().abs() <= noise.max(LEAST) {
            changes.same += 1;
            continue;
        }
        let lower = row.get("better").and_then(Value::as_str) == Some("lower");
        let list = if (ratio < 1.0) == lower { &mut changes.better } else { &mut changes.worse };
        list.push((name.to_owned(), ratio));
    }
    let gone = before.iter().filter(|(n, _)| !new.rows.iter().any(|row| row.get("name") == Some(&Value::from(*n))));
    changes.alone.extend(gone.map(|(n, _)| format!("{n} (gone)")));
    Ok(changes)
}

/// Name and figure of a row.
fn figure(row: &Map<String, Value>) -> Option<(&str, Stats)> {
    let float = |key: &str| row.get(key).and_then(Value::as_f64);
    let samples = row.get("samples")?.as_u64()?.max(1) as usize;
    let stats = Stats { samples, median: float("median")?, p20: float("p20")?, p80: float("p80")?, cv: float("cv")? };
    Some((row.get("name")?.as_str()?, stats))
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.differs {
            writeln!(f, "not the same: {line}")?;
        }
        let mut list = |word: &str, changed: &[(String, f64)]| {
            changed.iter().try_for_each(|(name, ratio)| writeln!(f, "{word}: {name}, {}×", number(*ratio)))
        };
        list("worse", &self.worse)?;
        list("better", &self.better)?;
        for name in &self.alone {
            writeln!(f, "only in one: {name}")?;
        }
        let (worse, better) = (self.worse.len(), self.better.len());
        write!(f, "{worse} worse, {better} better, {} within the noise", self.same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::{Better, row, tests::report};

    fn stats(median: f64, spread: f64) -> Stats {
        Stats { samples: 16, median, p20: median * (1.0 - spread), p80: median * (1.0 + spread), cv: spread }
    }

    #[test]
    fn what_is_beyond_the_noise_is_told_by_name() {
        let named = |rows: &[(&str, Better, f64, f64)]| {
            report(
                rows.iter()
                    .map(|(name, better, median, spread)| row(name, "s", *better, &stats(*median, *spread)))
                    .collect(),
            )
        };
        use Better::{Higher, Lower};
        let before = named(&[
            ("slower", Lower, 1.0, 0.01),
            ("noisy", Lower, 1.0, 0.4),
            ("a rate", Higher, 100.0, 0.01),
            ("a little", Lower, 1.0, 0.0),
            ("gone", Lower, 1.0, 0.0),
        ]);
        let now = named(&[
            ("slower", Lower, 1.1, 0.01),
            ("noisy", Lower, 1.1, 0.4),
            ("a rate", Higher, 120.0, 0.01),
            ("a little", Lower, 1.01, 0.0),
            ("new", Lower, 1.0, 0.0),
        ]);
        let changes = compare(&now, &before.json().to_string(), "old.json").unwrap();
        let names = |list: &[(String, f64)]| list.iter().map(|c| c.0.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&changes.worse), names(&changes.better), changes.same),
            (vec!["slower".into()], vec!["a rate".into()], 2)
        );
        assert_eq!(changes.alone, ["new (new)", "gone (gone)"]);
        assert!(changes.to_string().ends_with("1 worse, 1 better, 2 within the noise"), "{changes}");
        // The control: against itself nothing has changed.
        let same = compare(&now, &now.json().to_string(), "now.json").unwrap();
        assert_eq!(same, Changes { same: 5, ..Changes::default() });
        for (text, what) in
            [("{", "old.json"), ("{\"bench\":\"step\",\"rows\":[]}", "step"), ("{\"bench\":\"kernels\"}", "rows")]
        {
            let refused = compare(&now, text, "old.json").unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
    }
}
