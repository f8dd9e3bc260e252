//! Parquet files, which the hub has data sets in. Reading them is the feature `parquet`.

#[cfg(feature = "parquet")]
mod read;
#[cfg(feature = "parquet")]
mod schema;

use super::{FormatDef, Input, On};
use crate::error::Result;

/// The format.
pub static DEF: FormatDef = FormatDef {
    name: "parquet",
    endings: &["parquet"],
    cells: false,
    is: |start| start.bytes.starts_with(MAGIC),
    rows: Some(rows),
};

/// Such a file begins and ends with it.
const MAGIC: &[u8] = b"PAR1";

#[cfg(feature = "parquet")]
fn rows(input: Input, on: On) -> Result<()> {
    read::rows(input.name, input.path, on)
}

#[cfg(not(feature = "parquet"))]
fn rows(input: Input, _: On) -> Result<()> {
    Err(crate::error::Error::unsupported(
        format!("{}: Parquet in a build without the feature `parquet`", input.name.display()),
        "build with it, or write JSON Lines: DataFrame.to_json(\"rows.jsonl\", orient=\"records\", lines=True) of pandas",
    ))
}
