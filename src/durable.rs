//! Files that are there whole or not at all, whatever stops the program or the machine.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::system;

/// How the names of files begin that are not whole yet; what is left of a program that was stopped may be deleted.
const UNFINISHED: &str = ".trimtab-";

/// Lets `write` fill a file beside `path`, waits until the disk has it, and only then gives it the name `path`: a reader
/// never sees half a file, nor none where one was.
pub fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let unfinished = beside(path);
    let io = |e| Error::io(path, e);
    let whole = || -> Result<()> {
        let mut out = BufWriter::new(File::create(&unfinished).map_err(io)?);
        write(&mut out)?;
        out.flush().map_err(io)?;
        out.get_ref().sync_all().map_err(io)?;
        std::fs::rename(&unfinished, path).map_err(io)
    };
    let done = whole();
    if done.is_err() {
        // The error that matters is the first one; a leftover is only untidy.
        let _ = std::fs::remove_file(&unfinished);
    }
    done
}

/// The same of bytes that are there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |out| out.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// The name that `path`, a file or a folder, has until it is whole.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{}-{name}", system::process_id()))
}

/// Whether a file or folder of this name was not finished.
pub fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(UNFINISHED)
}

/// Waits until the disk has the names in a folder. Not every file system can; without, a file that was replaced may be
/// the old one after a crash of the machine, but is whole.
pub fn sync_folder(path: &Path) {
    if cfg!(unix)
        && let Ok(folder) = File::open(path)
    {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let dir = system::temp_dir().join(format!("trimtab-durable-{}", system::process_id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file.json");
        write(&path, b"first").unwrap();
        let failed = replace(&path, |out| {
            out.write_all(b"half of the sec").map_err(|e| Error::io(&path, e))?;
            assert_eq!(std::fs::read(&path).unwrap(), b"first", "written in place");
            Err(Error::Cancelled)
        });
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        write(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file.json"], "leftovers");
        assert!(is_unfinished(beside(&path).file_name().unwrap()) && !is_unfinished(path.file_name().unwrap()));
        // As any new file: readable by whom the umask lets.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            File::create(dir.join("plain")).unwrap();
            let mode = |p: PathBuf| std::fs::metadata(p).unwrap().permissions().mode();
            assert_eq!(mode(path), mode(dir.join("plain")));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
