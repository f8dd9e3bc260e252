//! A file of data: rows and their fields, or text.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Found, broken};
use crate::data::source::Data;
use crate::error::Result;

/// A file of rows or of text.
pub fn file(path: &Path) -> Found {
    look(path).unwrap_or_else(|error| broken("data", error))
}

fn look(path: &Path) -> Result<Found> {
    let mut found = Found::new("data");
    let bytes = std::fs::metadata(path).map_or(0, |about| about.len());
    found.say("bytes", bytes);
    let data = Data::of(path, None, &[])?;
    if data.text().is_some() {
        found.say("format", "text");
        let text = std::fs::read(path).unwrap_or_default();
        found.say("lines", text.iter().filter(|b| **b == b'\n').count());
        return Ok(found);
    }
    found.say("format", data.files().first().map_or("rows", |file| file.format.name));
    let mut fields: Vec<(String, Field)> = Vec::new();
    let mut rows = 0u64;
    let read = data.rows(&mut |row| {
        rows += 1;
        for (name, value) in &row.fields {
            let at = fields.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                fields.push((name.clone(), Field::default()));
                fields.len() - 1
            });
            fields[at].1.add(value);
        }
        Ok(true)
    });
    found.say("rows", rows);
    let fields: Map<String, Value> = fields.into_iter().map(|(name, field)| (name, field.told(rows))).collect();
    found.say("fields", fields);
    match read {
        Err(error) => found.faults.push(error.to_string()),
        Ok(()) if rows == 0 => found.faults.push("no rows".into()),
        Ok(()) => {}
    }
    Ok(found)
}

/// What a field holds.
#[derive(Default)]
struct Field {
    kinds: Vec<(&'static str, u64)>,
    /// Characters of texts, or items of lists: least, most.
    lengths: Option<(usize, usize)>,
}

impl Field {
    fn add(&mut self, value: &Value) {
        let (kind, length) = match value {
            Value::Null => ("null", None),
            Value::Bool(_) => ("boolean", None),
            Value::Number(_) => ("number", None),
            Value::String(text) => ("text", Some(text.chars().count())),
            Value::Array(list) => ("list", Some(list.len())),
            Value::Object(_) => ("object", None),
        };
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, n)) => *n += 1,
            None => self.kinds.push((kind, 1)),
        }
        if let Some(n) = length {
            let (least, most) = self.lengths.unwrap_or((n, n));
            self.lengths = Some((least.min(n), most.max(n)));
        }
    }

    fn told(self, rows: u64) -> Value {
        let kinds: Map<String, Value> = self.kinds.iter().map(|(kind, n)| (kind.to_string(), json!(n))).collect();
        let in_rows: u64 = self.kinds.iter().map(|(_, n)| n).sum();
        let mut told = json!({"kinds": kinds, "missing": rows - in_rows});
        if let Some((least, most)) = self.lengths {
            told["lengths"] = json!([least, most]);
        }
        told
    }
}
