//! TensorBoard's event files: a run's numbers, and its settings as a text.
//!
//! A file is a list of records, each framed by its length and checksums as a TFRecord; a record is an `Event` in protobuf's
//! encoding. Of both only what a run tells is written here: `event.proto` and `summary.proto` of TensorFlow name the fields.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::metrics::Event;
use crate::error::{Error, Result};
use crate::system;

/// How the names of event files begin; TensorBoard reads no others.
const PREFIX: &str = "events.out.tfevents.";

/// The event files in a folder, in the order in which TensorBoard reads them.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// An event file of a run. It is begun at the first step, as `metrics.jsonl` is; each record is handed to the system at once. A
/// run that goes on begins a file of its own, which takes back what the older ones tell of steps that come again.
pub struct TensorBoard {
    dir: PathBuf,
    file: Option<(PathBuf, File)>,
    /// Steps done before.
    done: u64,
    /// The settings, until the file is begun.
    settings: String,
}

impl TensorBoard {
    /// For the run folder `dir`.
    pub fn new(dir: &Path) -> TensorBoard {
        TensorBoard { dir: dir.into(), file: None, done: 0, settings: String::new() }
    }

    /// The run goes on after `step`.
    pub fn resume(&mut self, step: u64) {
        self.done = step;
    }

    /// Writes what an event says that TensorBoard can show; errs if the file cannot be written.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Run { config, .. } => {
                self.settings = text_of(config);
                Ok(())
            }
            Event::Step(s) => {
                let scalars = [
                    ("train/loss", f64::from(s.loss)),
                    ("train/learning_rate", s.lr),
                    ("train/grad_norm", f64::from(s.grad_norm)),
                    ("train/tokens", s.tokens as f64),
                    ("train/trained_tokens", s.trained_tokens as f64),
                    ("train/tokens_per_second", s.tokens_per_second),
                    ("train/skipped", s.skipped as f64),
                ];
                self.scalars(s.step, scalars.map(|(tag, x)| (tag.to_owned(), x)).into())
            }
            Event::Eval { step, evaluated } => {
                let loss = [("eval/loss".to_owned(), evaluated.loss)];
                let metrics = evaluated.metrics.iter().map(|(name, x)| (format!("eval/{name}"), *x));
                self.scalars(*step, loss.into_iter().chain(metrics).collect())
            }
            _ => Ok(()),
        }
    }

    fn scalars(&mut self, step: u64, scalars: Vec<(String, f64)>) -> Result<()> {
        let values = scalars.iter().flat_map(|(tag, x)| message(1, &scalar(tag, *x as f32)));
        let summary: Vec<u8> = values.collect();
        self.append(step, &message(SUMMARY, &summary))
    }

    /// One record: when it is, the step, and what happened.
    fn append(&mut self, step: u64, what: &[u8]) -> Result<()> {
        if self.file.is_none() {
            self.begin()?;
        }
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        file.write_all(&record(&event(step, what))).map_err(|e| Error::io(&*path, e))
    }

    fn begin(&mut self) -> Result<()> {
        // Files are read in the order of their names.
        let second = |path: &PathBuf| -> Option<u64> {
            path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
        };
        let last = files(&self.dir)?.iter().filter_map(second).max();
        let now = (system::unix_time() as u64).max(last.map_or(0, |last| last.saturating_add(1)));
        let path = self.dir.join(format!("{PREFIX}{now:010}.{}.trimtab", system::process_id()));
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        self.file = Some((path, file));
        // What is of this step or a later one comes again: a session that starts says so.
        let from = if self.done == 0 { 0 } else { self.done + 1 };
        self.append(0, &message(FILE_VERSION, b"brain.Event:2"))?;
        self.append(from, &message(SESSION_LOG, &number(1, SESSION_START)))?;
        let settings = std::mem::take(&mut self.settings);
        self.append(from, &message(SUMMARY, &message(1, &text("settings", &settings))))
    }
}

/// The settings as Markdown: lines that are set apart are shown as they are.
fn text_of(config: &Value) -> String {
    let settings = config.as_object().into_iter().flatten();
    let set = settings.filter(|(_, value)| !value.is_null());
    set.map(|(name, value)| format!("    {} = {value}\n", name.replace('_', "-"))).collect()
}

// Fields of `Event`.
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
/// `SessionLog.START`.
const SESSION_START: u64 = 1;
/// `DT_STRING`.
const STRING: u64 = 7;
/// `DATA_CLASS_TENSOR`.
const TENSOR: u64 = 2;

fn event(step: u64, what: &[u8]) -> Vec<u8> {
    let mut out = tag(1, 1);
    out.extend(system::unix_time().to_le_bytes());
    out.extend(number(2, step));
    out.extend(what);
    out
}

/// A `Summary.Value` of a number.
fn scalar(name: &str, x: f32) -> Vec<u8> {
    let mut out = message(1, name.as_bytes());
    out.extend(tag(2, 5));
    out.extend(x.to_le_bytes());
    out
}

/// A `Summary.Value` of a text: a tensor of one string, and that the plugin for texts shows it.
fn text(name: &str, text: &str) -> Vec<u8> {
    let plugin = message(1, &message(1, b"text"));
    let metadata = [plugin, number(4, TENSOR)].concat();
    let tensor = [number(1, STRING), message(2, &[]), message(8, text.as_bytes())].concat();
    [message(1, name.as_bytes()), message(9, &metadata), message(8, &tensor)].concat()
}

/// The number of a field and the kind of what follows: 0 a varint, 1 eight bytes, 2 bytes after their count, 5 four bytes.
fn tag(field: u32, kind: u32) -> Vec<u8> {
    varint(u64::from(field << 3 | kind))
}

fn number(field: u32, x: u64) -> Vec<u8> {
    [tag(field, 0), varint(x)].concat()
}

fn message(field: u32, bytes: &[u8]) -> Vec<u8> {
    [&tag(field, 2), &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while x > 0x7f {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

/// A TFRecord: length, its checksum, the bytes, their checksum.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), bytes, &masked(bytes).to_le_bytes()].concat()
}

/// A checksum as TFRecords have it, so that one of bytes which hold checksums is no odd one.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn checksums_are_castagnolis() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        let table: [(&[u8], u32); 6] = [
            (b"", 0),
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&up, 0x46dd_794e),
            (&down, 0x113f_db5c),
        ];
        for (bytes, crc) in table {
            assert_eq!(crc32c(bytes), crc, "{bytes:?}");
        }
        // The control: that of zlib is another polynomial's.
        assert_ne!(crc32c(b"123456789"), 0xcbf4_3926);
        // The length of TensorFlow's first record of every file, 24 bytes, and its checksum.
        assert_eq!(record(&[0; 24])[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn numbers_are_protobufs() {
        // The examples of protobuf's documentation of its encoding.
        assert_eq!(number(1, 150), [0x08, 0x96, 0x01]);
        assert_eq!(message(2, b"testing"), *b"\x12\x07testing");
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }
}
