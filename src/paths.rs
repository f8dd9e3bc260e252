//! Paths that lead nowhere: what is there instead, and how to get what was meant.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::nearest::nearest;

/// An error if there is nothing at `path`, which should be `what`: "a model's folder or a .gguf file". It names what the
/// folder has of a name like it and, where `fetched`, how to fetch what the hub has of this name.
pub fn need(path: &Path, what: &str, fetched: bool) -> Result<()> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(missing(path, what, fetched)),
        Err(e) => Err(Error::io(path, e)),
        Ok(_) => Ok(()),
    }
}

fn missing(path: &Path, what: &str, fetched: bool) -> Error {
    let mut expected = what.to_owned();
    if let Some(near) = neighbour(path) {
        expected += &format!("; the nearest name there is {}", near.display());
    }
    if let Some((id, name)) = hub_id(path).filter(|_| fetched) {
        expected += &format!("; `hf download {id} --local-dir {name}` fetches the hub's, then use {name}");
    }
    let folder = folder(path);
    let found = match folder.is_dir() {
        true => "nothing of this name".to_owned(),
        false => format!("nothing: there is no folder {}", folder.display()),
    };
    Error::file(path, found, expected)
}

/// The folder that `path` would be in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What there is beside `path` of a name like its.
fn neighbour(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let names = std::fs::read_dir(folder(path)).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    // The same name with another end is nearer than any other name.
    let stem = |name: &str| Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let same = names.iter().find(|other| stem(other) == stem(name)).map(String::as_str);
    let near = same.or_else(|| nearest(name, names.iter().map(String::as_str)))?;
    Some(path.with_file_name(near))
}

/// `org/name` and `name` of a path that may be meant as the hub's.
fn hub_id(path: &Path) -> Option<(&str, &str)> {
    let mut parts = path.components();
    let (Some(Component::Normal(org)), Some(Component::Normal(name)), None) =
        (parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let (id, name) = (path.to_str()?, name.to_str()?);
    let file = [".gguf", ".jsonl", ".json", ".txt", ".safetensors"].iter().any(|end| name.ends_with(end));
    // A folder of this name is a place on this machine.
    (plain(org.to_str()?) && plain(name) && !file && !Path::new(org).is_dir() && id.matches('/').count() == 1)
        .then_some((id, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_is_there() {
        let dir = std::env::temp_dir().join(format!("trimtab-paths-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("base")).unwrap();
        std::fs::write(dir.join("rows.json"), "").unwrap();
        let error = |path: PathBuf| need(&path, "a thing", true).unwrap_err().to_string();
        let shown = dir.display();
        let table = [
            ("bsae", format!("found nothing of this name, expected a thing; the nearest name there is {shown}/base")),
            ("rows.jsonl", format!("the nearest name there is {shown}/rows.json")),
            ("no/base", format!("found nothing: there is no folder {shown}/no, expected a thing")),
        ];
        for (name, want) in table {
            let error = error(dir.join(name));
            assert!(error.contains(&want) && !error.contains("hf download"), "{error}\nis not {want}");
        }
        let unlike = error(dir.join("elsewhere"));
        assert!(unlike.ends_with("found nothing of this name, expected a thing"), "{unlike}");
        need(&dir.join("base"), "a thing", true).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn names_of_the_hub_are_known() {
        let of = |path: &'static str| hub_id(Path::new(path));
        assert_eq!(of("some-org/Model-1.5B"), Some(("some-org/Model-1.5B", "Model-1.5B")));
        for path in ["model", "./a/b", "/a/b", "a/b/c", "../b", "src/b", "a/b.gguf", "a b/c"] {
            assert_eq!(of(path), None, "{path}");
        }
        let error = need("some-org/Model".as_ref(), "a model", true).unwrap_err().to_string();
        assert!(error.contains("`hf download some-org/Model --local-dir Model`"), "{error}");
        let error = need("some-org/Model".as_ref(), "a file", false).unwrap_err().to_string();
        assert!(!error.contains("hf download"), "{error}");
    }
}
