//! Several adapters made into one folder: what `trimtab adapters merge` does.

use std::path::{Path, PathBuf};

use super::output::{self, Output};
use crate::error::{Error, Result};
use crate::hub;
use crate::peft::combine::{How, Weighted, combine};
use crate::peft::files;

/// What was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// Folders that were read, each with its weight.
    pub adapters: Vec<(PathBuf, f64)>,
    /// The way that was taken.
    pub method: &'static str,
    /// Modules that are adapted.
    pub modules: usize,
    /// Rank of the result.
    pub rank: usize,
    /// Values of all tensors.
    pub parameters: u64,
    /// What there is to say.
    pub notes: Vec<String>,
}

/// A folder or a name on the hub with its weight after a colon, as `--data` has it; without one the weight is 1.
pub fn weighted(text: &str) -> Result<(PathBuf, f64)> {
    let parts = text.rsplit_once(':').filter(|_| !Path::new(text).exists());
    let Some((dir, weight)) = parts.and_then(|(dir, weight)| Some((dir, weight.parse::<f64>().ok()?))) else {
        return Ok((text.into(), 1.0));
    };
    match weight.is_finite() && !dir.is_empty() {
        true => Ok((dir.into(), weight)),
        false => Err(Error::config("--adapter", text, "a folder with a weight, such as runs/mine:0.7")),
    }
}

/// Combines adapters, each as [`weighted`] reads it, into the folder `out`.
pub fn write(adapters: &[String], how: &How, out: &Path) -> Result<Report> {
    how.check()?;
    let mut read = Vec::new();
    for text in adapters {
        let (named, weight) = weighted(text)?;
        read.push(Weighted::read(&hub::local(&named, hub::Kind::Adapter)?, weight)?);
    }
    let inputs: Vec<(&str, &Path)> = read.iter().map(|w| ("adapter", w.dir.as_path())).collect();
    let output = Output::folder(out, &inputs)?;
    let made = combine(&read, how)?;
    let parameters: usize = made.tensors.values().map(|t| t.data.len()).sum();
    output::has_room(output.dir(), 4 * parameters as u64)?;
    let adapters: Vec<(PathBuf, f64)> = read.iter().map(|w| (w.dir.clone(), w.weight)).collect();
    drop(read);
    let of: Vec<String> = adapters.iter().map(|(dir, weight)| format!("{}:{weight}", dir.display())).collect();
    let what = format!("Made of {} by {}.", of.join(", "), made.way.name);
    let tensors = made.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    files::write_combined(output.dir(), &made.config, &what, files::Tensors::held(tensors))?;
    output.finish()?;
    let modules = made.tensors.keys().filter(|name| name.ends_with("_A") || name.ends_with("_A.weight")).count();
    let (rank, parameters) = (made.config.rank, parameters as u64);
    Ok(Report { adapters, method: made.way.name, modules, rank, parameters, notes: made.notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_a_colon() {
        let table = [
            ("runs/a", Some(("runs/a", 1.0))),
            ("runs/a:0.7", Some(("runs/a", 0.7))),
            ("runs/a:-1", Some(("runs/a", -1.0))),
            ("C:\\runs\\a", Some(("C:\\runs\\a", 1.0))),
            ("C:\\runs\\a:2", Some(("C:\\runs\\a", 2.0))),
            ("runs/a:b", Some(("runs/a:b", 1.0))),
            ("runs/a:inf", None),
            ("runs/a:NaN", None),
            (":0.5", None),
        ];
        for (text, wanted) in table {
            let found = weighted(text).ok();
            assert_eq!(found, wanted.map(|(dir, weight)| (dir.into(), weight)), "{text}");
        }
    }
}
