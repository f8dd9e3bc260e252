//! Results as rows, and what they are shown as: columns for people, Markdown, CSV, JSON.

use serde_json::{Map, Value, json};

use super::stats::Stats;

/// How a column shows its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Show {
    /// As it is.
    Text,
    /// A time, with the unit that suits it.
    Seconds,
    /// A number with three digits that count.
    Number,
    /// A part of one as percent.
    Percent,
    /// Bytes.
    Bytes,
}

/// A column: the key of its values in rows, and its heading.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Key in rows, in JSON and CSV.
    pub key: &'static str,
    /// Heading for people.
    pub head: &'static str,
    /// How values are shown.
    pub show: Show,
}

/// A column of a key, heading and kind.
pub const fn column(key: &'static str, head: &'static str, show: Show) -> Column {
    Column { key, head, show }
}

/// What tells that a change of a figure is for the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times.
    Lower,
    /// Rates.
    Higher,
}

/// The result of one bench.
#[derive(Clone, Debug)]
pub struct Report {
    /// `kernels`, `step`, `generate` or `links`.
    pub bench: &'static str,
    /// Where it was measured ([`super::environment`]).
    pub environment: Map<String, Value>,
    /// What the device gives at most, measured in the same run, and other facts that rows are to be read by.
    pub facts: Map<String, Value>,
    /// What people are shown.
    pub columns: &'static [Column],
    /// Each has a `name`, and its figure: `unit`, `better`, `median`, `p20`, `p80`, `cv`, `samples`; and what columns show.
    pub rows: Vec<Map<String, Value>>,
}

/// A row of this name and figure.
pub fn row(name: &str, unit: &str, better: Better, stats: &Stats) -> Map<String, Value> {
    let Stats { samples, median, p20, p80, cv } = *stats;
    let better = if better == Better::Lower { "lower" } else { "higher" };
    let object = json!({
        "name": name, "unit": unit, "better": better,
        "median": median, "p20": p20, "p80": p80, "cv": cv, "samples": samples,
    });
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Report {
    /// One JSON object.
    pub fn json(&self) -> Value {
        let Report { bench, environment, facts, rows, .. } = self;
        json!({"bench": bench, "environment": environment, "facts": facts, "rows": rows})
    }

    /// Values with commas between them, a row a line, keys first; what columns do not show too.
    pub fn csv(&self) -> String {
        let mut keys: Vec<&str> = Vec::new();
        for key in self.rows.iter().flat_map(Map::keys) {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        let cell = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        let rows = self.rows.iter().map(|row| keys.iter().map(|key| cell(row.get(*key))).collect());
        for record in std::iter::once(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()).chain(rows) {
            // Rows of as many cells as there are keys, into memory: nothing can be wrong with that.
            let _ = writer.write_record(record);
        }
        String::from_utf8_lossy(&writer.into_inner().unwrap_or_default()).into_owned()
    }

    /// A table in Markdown, after the facts.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let heads: Vec<String> = self.columns.iter().map(|c| c.head.to_owned()).collect();
        let rule = self.columns.iter().map(|c| if c.show == Show::Text { "---|" } else { "---:|" });
        let escaped = |row| self.cells(row).iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
        let rows = self.rows.iter().map(|row| line(&escaped(row)));
        let facts = self.about().replace('\n', "  \n");
        format!("{facts}\n\n{}|{}\n{}", line(&heads), rule.collect::<String>(), rows.collect::<String>())
    }

    /// A table for a terminal, after the facts.
    pub fn text(&self) -> String {
        let heads: Vec<String> = self.columns.iter().map(|c| c.head.to_owned()).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| self.cells(row)).collect();
        let width = |i: usize| rows.iter().chain([&heads]).map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let line = |cells: &Vec<String>| {
            let pad = |(i, cell): (usize, &String)| match self.columns[i].show {
                Show::Text => format!("{cell:<w$}", w = widths[i]),
                _ => format!("{cell:>w$}", w = widths[i]),
            };
            cells.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let rows: String = rows.iter().map(line).collect();
        format!("{}\n\n{}{rows}", self.about(), line(&heads))
    }

    /// Where it was measured and by what it is to be read, a line each.
    fn about(&self) -> String {
        let lines = self.environment.iter().chain(&self.facts).filter(|(_, value)| !value.is_null());
        let spoken = |key: &str| key.replace("_gb_s", " GB/s").replace("_gflop_s", " GFLOP/s").replace('_', " ");
        let lines = lines.map(|(key, value)| format!("{}: {}", spoken(key), plain(value)));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn cells(&self, row: &Map<String, Value>) -> Vec<String> {
        let timed = row.get("unit").is_none_or(|unit| unit == "s");
        let show = |column: &Column| if column.show == Show::Seconds && !timed { Show::Number } else { column.show };
        self.columns.iter().map(|column| shown(row.get(column.key), show(column))).collect()
    }
}

/// A fact as people read it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

fn shown(value: Option<&Value>, show: Show) -> String {
    match (value, value.and_then(Value::as_f64)) {
        (Some(Value::String(text)), _) => text.clone(),
        (_, Some(x)) => match show {
            Show::Seconds => seconds(x),
            Show::Percent => format!("{:.0} %", 100.0 * x),
            Show::Bytes => crate::units::human(x as u64),
            Show::Number | Show::Text => number(x),
        },
        _ => String::new(),
    }
}

/// 0.00123 as 1.23 ms.
pub fn seconds(x: f64) -> String {
    let (scale, unit) = match x.abs() {
        x if x < 1e-6 => (1e9, "ns"),
        x if x < 1e-3 => (1e6, "µs"),
        x if x < 1.0 => (1e3, "ms"),
        _ => (1.0, "s"),
    };
    format!("{} {unit}", number(x * scale))
}

/// Three digits that count.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if a < 0.001 => format!("{x:.1e}"),
        a if a < 0.995 => format!("{x:.3}"),
        a if a < 9.995 => format!("{x:.2}"),
        a if a < 99.95 => format!("{x:.1}"),
        _ => crate::units::grouped(x.abs().round() as u64),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn report(rows: Vec<Map<String, Value>>) -> Report {
        const COLUMNS: &[Column] = &[
            column("name", "kernel", Show::Text),
            column("median", "time", Show::Seconds),
            column("share", "of", Show::Percent),
        ];
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        Report {
            bench: "kernels",
            environment: map(json!({"device": "a, \"b\"", "driver": null})),
            facts: map(json!({"copy_gb_s": 12.3456})),
            columns: COLUMNS,
            rows,
        }
    }

    #[test]
    fn one_table_in_four_forms() {
        let stats = Stats { samples: 5, median: 0.00123, p20: 0.001, p80: 0.002, cv: 0.1 };
        let mut first = row("linear, nf4", "s", Better::Lower, &stats);
        first.insert("share".into(), json!(0.514));
        let rate = Stats { median: 348.2, ..stats };
        assert!(report(vec![row("a rate", "tokens/s", Better::Higher, &rate)]).text().ends_with("a rate   348\n"));
        let report = report(vec![first, row("a|b", "s", Better::Lower, &Stats { median: 12.0, ..stats })]);
        let text = "device: a, \"b\"\ncopy GB/s: 12.3\n\n\
                    kernel          time    of\nlinear, nf4  1.23 ms  51 %\na|b           12.0 s\n";
        assert_eq!(report.text(), text);
        let markdown = "device: a, \"b\"  \ncopy GB/s: 12.3\n\n| kernel | time | of |\n|---|---:|---:|\n\
                        | linear, nf4 | 1.23 ms | 51 % |\n| a\\|b | 12.0 s |  |\n";
        assert_eq!(report.markdown(), markdown);
        let csv = "name,unit,better,median,p20,p80,cv,samples,share\n\
                   \"linear, nf4\",s,lower,0.00123,0.001,0.002,0.1,5,0.514\na|b,s,lower,12.0,0.001,0.002,0.1,5,\n";
        assert_eq!(report.csv(), csv);
        let json = report.json();
        assert_eq!((&json["bench"], &json["rows"][1]["median"]), (&json!("kernels"), &json!(12.0)));
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases =
            [(0.0, "0"), (0.0001234, "1.2e-4"), (0.0123, "0.012"), (1.0, "1.00"), (9.996, "10.0"), (12345.6, "12,346")];
        cases.iter().for_each(|(x, text)| assert_eq!(&number(*x), text));
        assert_eq!([1.5e-9, 2e-5, 0.1, 3.0].map(seconds), ["1.50 ns", "20.0 µs", "100 ms", "3.00 s"]);
    }
}
