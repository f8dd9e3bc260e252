//! A folder for the files of one test.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// It is removed when the value is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Empty. `name` is the test's own among all tests of its binary.
    pub fn new(name: &str) -> Scratch {
        let binary = std::env::current_exe().unwrap();
        let binary = binary.file_stem().unwrap().to_string_lossy().into_owned();
        let dir = std::env::temp_dir().join(format!("trimtab-{binary}-{}-{name}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Copies the files of a folder, not those in folders of it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
