//! Data files that pyarrow, pandas and datasets wrote are read as those read them, and broken ones are errors. The files are of
//! tests/golden/generate_formats.py.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::data::formats;
use crate::data::row::Row;
use crate::data::source::{Data, Scratch};
use crate::error::Result;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats")
}

fn golden(key: &str) -> Value {
    let text = std::fs::read_to_string(folder().join("rows.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[key].take()
}

/// The rows of a file, as they are.
fn rows(path: &Path) -> Result<Value> {
    let mut all = Vec::new();
    Data::of(path, None, &[])?.rows(&mut |row| {
        all.push(Value::from(row.fields.clone()));
        Ok(true)
    })?;
    Ok(all.into())
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;

    const READ: [&str; 7] = ["plain", "snappy", "zstd", "gzip", "lz4", "delta", "split"];

    #[test]
    fn files_of_pyarrow_and_datasets_are_read() {
        let want = golden("parquet");
        assert_eq!(want.as_array().unwrap().len(), 12);
        for name in READ {
            let read = rows(&folder().join(format!("{name}.parquet"))).unwrap();
            assert_eq!(read, want, "{name}");
        }
        assert_eq!(rows(&folder().join("datasets.parquet")).unwrap(), golden("datasets"));
        assert_ne!(golden("datasets"), want);
        let error = rows(&folder().join("brotli.parquet")).unwrap_err().to_string();
        assert!(error.contains("pages compressed by BROTLI") && error.contains("zstd"), "{error}");
    }

    /// Whatever is wrong with a file, it is told: nothing panics, and no row is of another file's.
    #[test]
    fn broken_files_are_errors() {
        let scratch = Scratch::new("broken");
        let path = scratch.0.join("rows.parquet");
        let whole = std::fs::read(folder().join("snappy.parquet")).unwrap();
        for cut in (4..whole.len()).step_by(61).chain([whole.len() - 1]) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = rows(&path).unwrap_err().to_string();
            assert!(error.contains("rows.parquet: found a Parquet file that is cut short"), "{cut}: {error}");
        }
        let (mut told, mut read) = (0, 0);
        for name in ["snappy", "zstd"] {
            let whole = std::fs::read(folder().join(format!("{name}.parquet"))).unwrap();
            for at in (4..whole.len() - 8).step_by(17) {
                let mut bytes = whole.clone();
                bytes[at] ^= 0xFF;
                std::fs::write(&path, &bytes).unwrap();
                match rows(&path) {
                    Ok(_) => read += 1,
                    Err(_) => told += 1,
                }
            }
        }
        // Values and statistics may be anything; most of a small file is what the values are found by.
        assert!(told > 300 && read > 50, "{told} of {}", told + read);
        // The control: nothing is wrong with the file.
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(rows(&path).unwrap(), golden("parquet"));
    }
}

#[test]
fn tables_of_pandas_are_read() {
    let mut want = golden("cells");
    for row in want.as_array_mut().unwrap() {
        for cell in row.as_object_mut().unwrap().values_mut().filter(|cell| *cell == "") {
            *cell = Value::Null;
        }
    }
    for name in ["pandas.csv", "pandas.tsv", "pandas.csv.gz"] {
        assert_eq!(rows(&folder().join(name)).unwrap(), want, "{name}");
    }
}

/// What is asked for says what a cell is.
#[test]
fn cells_are_what_is_asked_for() {
    let fields = [("text", "007"), ("label", "1"), ("name", "good"), ("input_ids", "[5, 6]"), ("flag", "True")];
    let fields: Map<String, Value> = fields.map(|(name, cell)| (name.into(), cell.into())).into_iter().collect();
    let row = |cells| Row { path: "f".as_ref(), line: 3, fields: fields.clone(), cells };
    let cells = row(true);
    assert_eq!(cells.need::<String>("text").unwrap(), "007");
    assert_eq!(cells.need::<String>("label").unwrap(), "1");
    assert_eq!(cells.need::<i64>("label").unwrap(), 1);
    assert_eq!(cells.need::<Vec<i64>>("input_ids").unwrap(), [5, 6]);
    let values = ["label", "name", "flag", "absent"].map(|name| cells.value(name));
    assert_eq!(values, [Some(json!(1)), Some(json!("good")), Some(json!(true)), None]);
    let error = cells.need::<Vec<i64>>("name").unwrap_err().to_string();
    assert_eq!(error, "f:3: found name \"good\", expected a list");
    // The control: a string of JSON is a string.
    let strings = row(false);
    assert!(strings.need::<i64>("label").is_err() && strings.need::<Vec<i64>>("input_ids").is_err());
    assert_eq!(strings.value("label"), Some(json!("1")));
}

#[test]
fn a_format_that_is_asked_for_overrules() {
    let scratch = Scratch::new("overruled");
    let path = scratch.0.join("prose.txt");
    std::fs::write(&path, "text,label\ngood,1\nbad,0\n").unwrap();
    let of = |format: Option<&str>| Data::of(&path, format.map(|name| formats::named(name).unwrap()), &[]);
    let shown = |format| of(format).unwrap().to_string().rsplit_once(' ').unwrap().1.to_owned();
    assert_eq!(shown(None), "(csv)");
    assert_eq!(shown(Some("text")), "(text)");
    assert_eq!(shown(Some("tsv")), "(tsv)");
    for (format, want) in
        [("jsonl", "prose.txt:1: found `text,label`"), ("parquet", "a Parquet file that is cut short")]
    {
        let error = of(Some(format)).err().unwrap().to_string();
        assert!(error.contains(want), "{format}: {error}");
    }
}
