//! Values of rows that JSON has not, and values as messages show them.

use serde_json::{Value, json};

/// Key of an object that stands for a value which JSON has not, such as Python's NaN: no reader takes it for a value.
const NO_JSON: &str = "a value that JSON has not";

/// What stands for a value that JSON has not; `text` is how messages show it.
pub(super) fn no_json(text: &str) -> Value {
    json!({ NO_JSON: text })
}

/// A number; one that JSON has not as what stands for it.
#[cfg(feature = "parquet")]
pub(super) fn float(x: f64) -> Value {
    match serde_json::Number::from_f64(x) {
        Some(number) => number.into(),
        None if x.is_nan() => no_json("NaN"),
        None => no_json(if x > 0.0 { "Infinity" } else { "-Infinity" }),
    }
}

/// A value for messages: short, and what JSON has not as the file has it.
pub(crate) fn shown(value: &Value) -> String {
    const SHOWN: usize = 80;
    let text = value.to_string();
    let before = format!("{{\"{NO_JSON}\":\"");
    let mut parts = text.split(&before);
    let mut short = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| short += &part.replacen("\"}", "", 1));
    match short.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &short[..end]),
        None => short,
    }
}

/// What the text of a table's cell stands for where no text is asked for: a number, a truth value, a list or an object of
/// JSON, or `True` or `False` as Python writes them. None if it stands for nothing but itself.
pub(super) fn of_cell(text: &str) -> Option<Value> {
    match text.trim() {
        "True" => Some(true.into()),
        "False" => Some(false.into()),
        text => serde_json::from_str(text).ok().filter(|value: &Value| !value.is_null() && !value.is_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_the_file_has_them() {
        let table = [
            (no_json("NaN"), "NaN"),
            (json!([1, no_json("-Infinity"), { "c": no_json("Infinity") }]), r#"[1,-Infinity,{"c":Infinity}]"#),
            (json!("{\"a value that JSON has not\":\"x\"}"), r#""{\"a value that JSON has not\":\"x\"}""#),
            (json!("short"), "\"short\""),
        ];
        for (value, want) in table {
            assert_eq!(shown(&value), want);
        }
        assert_eq!(shown(&Value::from("x".repeat(100))).chars().count(), 81);
    }

    #[test]
    fn cells_stand_for_values() {
        let table = [
            ("1", Some(json!(1))),
            (" -2.5 ", Some(json!(-2.5))),
            ("True", Some(json!(true))),
            ("false", Some(json!(false))),
            ("[1, 2]", Some(json!([1, 2]))),
            ("{\"text\": [\"a\"]}", Some(json!({"text": ["a"]}))),
            // Names of labels, numbers of houses and lists of Python are what they are.
            ("good", None),
            ("007", None),
            ("['a']", None),
            ("NaN", None),
            ("null", None),
            ("\"1\"", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(of_cell(text), want, "{text}");
        }
    }
}
