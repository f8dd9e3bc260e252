//! Where the time of a run's steps went, by op: a table for people, JSON for `metrics.jsonl`.

use std::fmt;

use serde_json::{Value, json};

use crate::backend::profile::OpTime;

/// Sums over the timed steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How many: all of the run but the first, which is left out where others follow.
    pub steps: u64,
    /// From packing the tokens to reading the loss.
    pub seconds: f64,
    /// The longest first.
    pub ops: Vec<OpTime>,
}

impl Report {
    /// The line of event `profile`; sums, not means.
    pub fn json(&self) -> Value {
        let op = |o: &OpTime| {
            json!({
                "op": o.op,
                "launches": o.launches,
                "seconds": o.time.as_secs_f64(),
                "flops": o.flops,
                "bytes": o.bytes,
            })
        };
        let ops: Vec<Value> = self.ops.iter().map(op).collect();
        json!({"event": "profile", "steps": self.steps, "seconds": self.seconds, "ops": ops})
    }
}

impl fmt::Display for Report {
    /// A line an op, means of a step; what is no launch (packing, inputs, transfers, results) is the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.max(1) as f64;
        let width = self.ops.iter().map(|o| o.op.len()).max().unwrap_or(0).max("the rest".len());
        let whole = self.seconds / steps;
        writeln!(f, "time by op, a step (mean of {}), each launch waited for", self.steps)?;
        let heads = ["launches", "ms", "share", "GFLOP", "GFLOP/s", "GB", "GB/s"];
        write!(f, "  {:<width$}", "op")?;
        heads.iter().try_for_each(|h| write!(f, "  {h:>8}"))?;
        let share = |seconds: f64| 100.0 * seconds / whole.max(1e-12);
        let mut rest = whole;
        for o in &self.ops {
            let seconds = o.time.as_secs_f64() / steps;
            let (gflop, gb) = (o.flops as f64 / steps / 1e9, o.bytes as f64 / steps / 1e9);
            let rate = |amount: f64| amount / seconds.max(1e-12);
            rest -= seconds;
            write!(f, "\n  {:<width$}  {:>8.0}", o.op, o.launches as f64 / steps)?;
            write!(f, "  {:>8.2}  {:>7.1}%", 1e3 * seconds, share(seconds))?;
            write!(f, "  {gflop:>8.2}  {:>8.1}  {gb:>8.3}  {:>8.1}", rate(gflop), rate(gb))?;
        }
        for (name, seconds) in [("the rest", rest.max(0.0)), ("step", whole)] {
            write!(f, "\n  {name:<width$}  {:>8}  {:>8.2}  {:>7.1}%", "", 1e3 * seconds, share(seconds))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_table_holds_means_and_what_is_left() {
        let op = |op: &str, launches, millis, flops, bytes| OpTime {
            op: op.into(),
            launches,
            time: Duration::from_millis(millis),
            flops,
            bytes,
        };
        let report = Report {
            steps: 2,
            seconds: 4.0,
            ops: vec![op("linear", 20, 3000, 300_000_000_000, 6_000_000_000), op("add", 4, 500, 0, 1_000_000)],
        };
        let expected = "\
time by op, a step (mean of 2), each launch waited for
  op        launches        ms     share     GFLOP   GFLOP/s        GB      GB/s
  linear          10   1500.00     75.0%    150.00     100.0     3.000       2.0
  add              2    250.00     12.5%      0.00       0.0     0.001       0.0
  the rest              250.00     12.5%
  step                 2000.00    100.0%";
        assert_eq!(report.to_string(), expected);
        let json = report.json();
        assert_eq!((&json["event"], &json["steps"], &json["seconds"]), (&"profile".into(), &2.into(), &4.0.into()));
        assert_eq!(json["ops"][1], json!({"op": "add", "launches": 4, "seconds": 0.5, "flops": 0, "bytes": 1000000}));
        // Nothing measured is a table too.
        assert!(!Report::default().to_string().contains("NaN"));
    }
}
