//! Rows out of Parquet files by the `parquet` crate, which is given no file whose schema or whose columns' places are wrong,
//! and whose panics are errors.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::super::On;
use super::{MAGIC, schema};
use crate::data::guard::guarded;
use crate::data::values::{float, no_json};
use crate::error::{Error, Result};

/// Gives the rows of a file to `on`, with their numbers from 1.
pub(super) fn rows(name: &Path, path: &Path, on: On) -> Result<()> {
    let io = |e| Error::io(name, e);
    let broken = |place: &dyn std::fmt::Display, found: String| {
        Error::file(
            place.to_string(),
            found,
            "a whole Parquet file, of pages that are not compressed, or by snappy, zstd, gzip or lz4",
        )
    };
    let shown = name.display();
    let text = |e: Box<dyn std::error::Error + Send + Sync>| format!("a Parquet file that is broken ({e})");
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if let Some(found) = wrong_end(&mut file, length).map_err(io)? {
        return Err(broken(&shown, found.into()));
    }
    let reader = guarded(|| Ok(SerializedFileReader::new(file)?)).map_err(|e| broken(&shown, text(e)))?;
    if let Some(found) = guarded(|| Ok(wrong_columns(&reader, length))).map_err(|e| broken(&shown, text(e)))? {
        return Err(broken(&shown, found));
    }
    let mut rows = guarded(|| Ok(RowIter::from_file(None, &reader)?)).map_err(|e| broken(&shown, text(e)))?;
    for number in 1.. {
        let row = guarded(|| Ok(rows.next().transpose()?));
        let row = row.map_err(|e| broken(&format!("{shown}:{number}"), format!("a row that is broken ({e})")))?;
        let Some(row) = row else { break };
        if !on(number, fields(&row))? {
            break;
        }
    }
    Ok(())
}

fn fields(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// What JSON has for a value; for what it has not, text.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float16(x) => float(x.to_f64()),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Decimal(_) => field.to_string().parse().map_or(Value::Null, float),
        Field::Str(text) => text.as_str().into(),
        // Some writers do not say that bytes are text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => no_json(&format!("{} bytes that are no text", bytes.len())),
        },
        Field::Group(row) => fields(row).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            map.entries().iter().map(|(name, field)| (key(name), value(field))).collect::<Map<_, _>>().into()
        }
        // Times, as text.
        other => other.to_string().into(),
    }
}

/// What is wrong with the end of a file, where its schema is.
fn wrong_end(file: &mut File, length: u64) -> std::io::Result<Option<&'static str>> {
    const CUT: Option<&str> = Some("a Parquet file that is cut short");
    let mut tail = [0; 8];
    if length < 12 {
        return Ok(CUT);
    }
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    if &magic == b"PARE" {
        return Ok(Some("a Parquet file that is encrypted"));
    }
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != MAGIC || footer > length - 12 {
        return Ok(CUT);
    }
    let mut bytes = vec![0; footer as usize];
    file.seek(SeekFrom::Start(length - 8 - footer))?;
    file.read_exact(&mut bytes)?;
    Ok(schema::wrong(&bytes))
}

/// What is wrong with the places of columns in a file, or with what they are compressed by.
fn wrong_columns(reader: &SerializedFileReader<File>, length: u64) -> Option<String> {
    let mut columns = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
    columns.find_map(|column| {
        let (start, count) = column.byte_range();
        let inside = start.checked_add(count).is_some_and(|end| end <= length);
        match column.compression() {
            _ if !inside => Some("a column that is not in the file".into()),
            Compression::BROTLI(_) | Compression::LZO => Some(format!("pages compressed by {}", column.compression())),
            _ => None,
        }
    })
}
