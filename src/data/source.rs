//! The files of data: what each is, and their rows, one after another.
//!
//! Data is named by paths, patterns (`data/*.parquet`), folders, and `-` for standard input. Each may have a weight after a
//! colon, `a.jsonl:0.3`: the share of its examples among those of an epoch. A path that exists is a path, whatever is in it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::INPUT_IDS;
use super::formats::{self, FormatDef, Input};
use super::row::Row;
use super::split::Split;
use crate::error::{Error, Result};
use crate::{paths, system};

/// Names standard input.
pub const STDIN: &str = "-";

/// Data that is to be read.
#[derive(Clone)]
pub struct Data {
    files: Vec<DataFile>,
    parts: Vec<Part>,
    columns: Vec<(String, String)>,
    split: Option<Split>,
}

/// The files of one path, pattern or folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// As it was named, without its weight.
    pub name: String,
    /// The share of its examples among those of an epoch, relative to the weights of other parts.
    pub weight: Option<f64>,
    /// Which files of [`Data::files`] it has.
    pub files: Range<usize>,
}

/// One file of it.
#[derive(Clone)]
pub struct DataFile {
    /// Where it is.
    path: Arc<Kept>,
    /// What messages call it.
    pub name: PathBuf,
    /// What it is.
    pub format: &'static FormatDef,
}

/// A file that is there, or is kept as long as it is read.
enum Kept {
    There(PathBuf),
    Temporary(PathBuf),
}

impl Kept {
    fn path(&self) -> &Path {
        let (Kept::There(path) | Kept::Temporary(path)) = self;
        path
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Kept::Temporary(path) = self {
            // What cannot be removed is in a folder that is cleaned by itself.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Data {
    /// What `sources` name, in files of this format or of the one that each is found to be. `columns` are (name that a task
    /// reads, name in the file). No more of a file is read than its first bytes and its first row, which must have those
    /// columns.
    pub fn open<S: AsRef<str>>(
        sources: &[S],
        format: Option<&'static FormatDef>,
        columns: &[(String, String)],
    ) -> Result<Data> {
        let mut data = Data { files: Vec::new(), parts: Vec::new(), columns: columns.into(), split: None };
        for source in sources {
            let (name, weight) = weighted(source.as_ref())?;
            let first = data.files.len();
            for file in files(name)? {
                data.files.push(DataFile::open(file, format)?);
            }
            data.parts.push(Part { name: name.into(), weight, files: first..data.files.len() });
        }
        let without = data.parts.iter().find(|part| part.weight.is_none());
        if let (Some(part), Some(_)) = (without, data.parts.iter().find(|part| part.weight.is_some())) {
            let expected = "a weight for each, such as a.jsonl:0.3, or for none";
            return Err(Error::config("data", format!("{} without a weight beside weights", part.name), expected));
        }
        data.files.iter().try_for_each(|file| data.rows_of(file, &mut |_| Ok(false)).map(drop))?;
        Ok(data)
    }

    /// The one file at `path`, whatever its name.
    pub fn of(path: &Path, format: Option<&'static FormatDef>, columns: &[(String, String)]) -> Result<Data> {
        paths::need(path, WHAT, false)?;
        let file = DataFile::open((Kept::There(path.into()), path.into()), format)?;
        let part = Part { name: path.display().to_string(), weight: None, files: 0..1 };
        let data = Data { files: vec![file], parts: vec![part], columns: columns.into(), split: None };
        data.rows_of(&data.files[0], &mut |_| Ok(false))?;
        Ok(data)
    }

    /// Its rows on one side of a split alone.
    pub fn side(&self, split: Option<Split>) -> Data {
        Data { split, ..self.clone() }
    }

    /// Its files, in the order in which they are read.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// What was named, in the order of the files.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Which side of a split it has; none: all rows.
    pub fn split(&self) -> Option<Split> {
        self.split
    }

    /// The first file of plain text.
    pub fn text(&self) -> Option<&DataFile> {
        self.files.iter().find(|file| !file.format.has_rows())
    }

    /// Gives each row to `on`, until that returns false. Plain text has none.
    pub fn rows(&self, on: &mut dyn FnMut(&Row) -> Result<bool>) -> Result<()> {
        for file in &self.files {
            if !self.rows_of(file, on)? {
                break;
            }
        }
        Ok(())
    }

    /// Gives each row of a file to `on`, until that returns false. Returns what it returned last.
    pub(super) fn rows_of(&self, file: &DataFile, on: &mut dyn FnMut(&Row) -> Result<bool>) -> Result<bool> {
        let mut goes_on = true;
        if file.format.has_rows() {
            let cells = file.format.cells;
            file.input()?.rows(file.format, &mut |line, fields| {
                if self.split.is_none_or(|split| split.has_row(&fields)) {
                    let row = Row { path: &file.name, line, fields, cells };
                    goes_on = on(&renamed(row, &self.columns)?)?;
                }
                Ok(goes_on)
            })?;
        }
        Ok(goes_on)
    }

    /// Whether the first row holds token ids, so that no tokenizer is needed.
    pub fn is_tokenized(&self) -> bool {
        let mut tokenized = false;
        // What is wrong with a row is said when it is read.
        let _ = self.rows(&mut |row| {
            tokenized = row.has(INPUT_IDS);
            Ok(false)
        });
        tokenized && self.text().is_none()
    }
}

const WHAT: &str = "a file of rows or plain text";

impl DataFile {
    fn open((path, name): (Kept, PathBuf), format: Option<&'static FormatDef>) -> Result<DataFile> {
        let (_, format) = formats::open(path.path(), &name, format)?;
        Ok(DataFile { path: Arc::new(path), name, format })
    }

    /// Opens it again.
    pub(super) fn input(&self) -> Result<Input<'_>> {
        formats::open(self.path.path(), &self.name, Some(self.format)).map(|(input, _)| input)
    }
}

/// The files and their formats.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        for (i, file) in self.files.iter().take(SHOWN).enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{} ({})", file.name.display(), file.format.name)?;
        }
        match self.files.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A source without its weight, and the weight.
fn weighted(source: &str) -> Result<(&str, Option<f64>)> {
    let parts = source.rsplit_once(':').filter(|_| !Path::new(source).exists());
    let Some((name, weight)) = parts.and_then(|(name, weight)| Some((name, weight.parse::<f64>().ok()?))) else {
        return Ok((source, None));
    };
    match weight.is_finite() && weight > 0.0 && !name.is_empty() {
        true => Ok((name, Some(weight))),
        false => Err(Error::config("data", source, "a path with a weight above 0, such as a.jsonl:0.3")),
    }
}

/// The files that a source without its weight names, each with what messages call it.
fn files(source: &str) -> Result<Vec<(Kept, PathBuf)>> {
    let path = Path::new(source);
    if source == STDIN {
        return Ok(vec![(stdin()?, "standard input".into())]);
    }
    let found = match path.exists() {
        false if source.contains(['*', '?', '[']) => matching(source)?,
        _ => {
            paths::need(path, WHAT, false)?;
            if path.is_dir() { inside(path)? } else { vec![path.into()] }
        }
    };
    Ok(found.into_iter().map(|path| (Kept::There(path.clone()), path)).collect())
}

/// The files of a pattern, sorted.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |found: String| Error::config("data", found, "a pattern of files, such as data/*.jsonl");
    let all = glob::glob(pattern).map_err(|e| wrong(format!("{pattern} ({e})")))?;
    let mut files = Vec::new();
    for path in all {
        let path = path.map_err(|e| Error::io(e.path(), io::Error::from(e.error().kind())))?;
        if path.is_file() {
            files.push(path);
        }
    }
    match files.is_empty() {
        true => Err(wrong(format!("{pattern}, which no file matches"))),
        false => Ok(files),
    }
}

/// The files of a folder that have the names of data, sorted: those of rows, or else those of text.
fn inside(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match formats::of_name(&path).filter(|_| !hidden && path.is_file()) {
            Some(format) if format.has_rows() => rows.push(path),
            Some(_) => texts.push(path),
            None => {}
        }
    }
    let mut found = if rows.is_empty() { texts } else { rows };
    found.sort();
    match found.is_empty() {
        true => {
            Err(Error::file(folder, "a folder without files of data", "files such as rows.jsonl in it, or a pattern"))
        }
        false => Ok(found),
    }
}

/// What standard input holds, in a file, since data is read more than once.
fn stdin() -> Result<Kept> {
    let name = "standard input";
    if io::stdin().is_terminal() {
        return Err(Error::file(name, "a terminal", "a pipe or a file: `trimtab … --data - < rows.jsonl`"));
    }
    let path = system::temp_dir().join(format!("trimtab-{}-standard-input", system::process_id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| Error::io(&path, e))?;
    let kept = Kept::Temporary(path);
    io::copy(&mut io::stdin().lock(), &mut file).map_err(|e| Error::io(name, e))?;
    Ok(kept)
}

/// The row with the names that a task reads.
fn renamed<'a>(mut row: Row<'a>, columns: &[(String, String)]) -> Result<Row<'a>> {
    // All are taken out before any is put back, so that two may change places.
    let mut moved = Vec::with_capacity(columns.len());
    for (name, actual) in columns {
        match row.fields.shift_remove(actual) {
            Some(value) => moved.push((name.clone(), value)),
            None => {
                let found = format!("no column {actual} among {}", row.names());
                return Err(row.wrong(found, "the columns that --columns names, as NAME=COLUMN"));
            }
        }
    }
    row.fields.extend(moved);
    Ok(row)
}

/// A folder for the files of one test, which goes when the test ends.
#[cfg(test)]
pub(super) struct Scratch(pub PathBuf);

#[cfg(test)]
impl Scratch {
    pub(super) fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trimtab-data-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    /// Writes a file; returns its path as text.
    pub(super) fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().into()
    }
}

#[cfg(test)]
impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of all rows, each after its file's name.
    fn texts(data: &Data) -> Vec<String> {
        let mut all = Vec::new();
        data.rows(&mut |row| {
            let file = row.path.file_name().unwrap().to_string_lossy().into_owned();
            all.push(format!("{file}:{} {}", row.line, row.need::<String>("text")?));
            Ok(true)
        })
        .unwrap();
        all
    }

    fn open(sources: &[&str]) -> Result<Data> {
        Data::open(sources, None, &[])
    }

    #[test]
    fn files_folders_and_patterns_are_read_in_order() {
        let scratch = Scratch::new("sources");
        let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
        let b = scratch.write("data/b.jsonl", &row("b1"));
        let a = scratch.write("data/a.csv", "text\na1\na2\n");
        scratch.write("data/README.md", "About the data.");
        scratch.write("data/.hidden.jsonl", &row("hidden"));
        scratch.write("texts/one.txt", "One.");
        let odd = scratch.write("c:0.5", "{\"text\": \"c\"}");
        let folder = scratch.0.join("data").to_str().unwrap().to_owned();
        let all = ["a.csv:2 a1", "a.csv:3 a2", "b.jsonl:1 b1"];
        assert_eq!(texts(&open(&[&folder]).unwrap()), all);
        assert_eq!(texts(&open(&[&format!("{folder}/[ab].*")]).unwrap()), all);
        assert_eq!(texts(&open(&[&b, &a]).unwrap()), ["b.jsonl:1 b1", "a.csv:2 a1", "a.csv:3 a2"]);
        assert!(open(&[scratch.0.join("texts").to_str().unwrap()]).unwrap().text().is_some());
        // A path that exists is a path.
        let data = open(&[&odd]).unwrap();
        assert_eq!((texts(&data), data.parts()[0].weight), (vec!["c:0.5:1 c".into()], None));
        let data = open(&[&format!("{b}:0.25"), &format!("{folder}/*.csv:3")]).unwrap();
        let parts: Vec<_> = data.parts().iter().map(|part| (part.weight, part.files.clone())).collect();
        assert_eq!(parts, [(Some(0.25), 0..1), (Some(3.0), 1..2)]);
        assert!(data.to_string().contains("b.jsonl (jsonl), ") && data.to_string().ends_with("a.csv (csv)"), "{data}");

        let empty = scratch.0.join("empty");
        std::fs::create_dir_all(&empty).unwrap();
        for (sources, want) in [
            (vec![format!("{b}:0.5"), a.clone()], "a.csv without a weight beside weights, expected a weight for each"),
            (vec![format!("{b}:0")], "expected a path with a weight above 0"),
            (vec![format!("{b}:-1")], "expected a path with a weight above 0"),
            (vec![format!("{b}:nan")], "expected a path with a weight above 0"),
            (vec![format!("{folder}/*.parquet")], "which no file matches"),
            (vec![format!("{folder}/[")], "a pattern of files"),
            (vec![empty.to_str().unwrap().into()], "found a folder without files of data"),
            (vec![format!("{folder}/c.csv")], "the nearest name there is"),
        ] {
            let error = Data::open(&sources, None, &[]).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(want), "{error}\nis not: {want}");
        }
    }

    #[test]
    fn the_sides_of_a_split_make_all_rows() {
        let scratch = Scratch::new("sides");
        let rows: Vec<String> = (0..60).map(|i| format!("{{\"text\": \"row {i}\"}}\n")).collect();
        let (all, back) = (rows.concat(), rows.iter().rev().cloned().collect::<String>());
        let one = open(&[&scratch.write("rows.jsonl", &all)]).unwrap();
        let other = open(&[&scratch.write("back.jsonl", &back)]).unwrap();
        let side = |data: &Data, held_out| {
            let mut texts = texts(&data.side(Some(Split { share: 0.2, held_out })));
            texts.iter_mut().for_each(|text| *text = text.split_once(' ').unwrap().1.to_owned());
            texts.sort();
            texts
        };
        let (kept, held) = (side(&one, false), side(&one, true));
        assert_eq!((side(&other, false), side(&other, true)), (kept.clone(), held.clone()));
        assert_eq!(kept.len() + held.len(), 60);
        assert!(held.len() > 3 && held.iter().all(|text| !kept.contains(text)), "{held:?}");
    }
}
