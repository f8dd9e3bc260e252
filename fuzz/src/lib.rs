//! Fuzz targets: every parser that reads what users hand to the engine. `cargo +nightly fuzz run NAME`.
//!
//! A target is a function of bytes in `targets/`; `tests/corpus.rs` of the engine replays the corpora through the same
//! functions on a stable compiler.

pub mod limit;
pub mod targets;

use std::path::PathBuf;
use std::sync::OnceLock;

#[global_allocator]
static ALLOCATOR: limit::Limited = limit::Limited;

/// Gives an input to the target of a name, with the limit on memory. Files are in a folder in memory.
pub fn run(target: &str, input: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = parent.join(format!("trimtab-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the files of an input");
        folder
    });
    static TARGET: OnceLock<&'static targets::Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let target = targets::named(target);
        // The `tokenizers` crate panics on some files, and the engine makes errors of it: those may unwind. If the
        // engine did not, they end the process where the target returns.
        const CAUGHT: [&str; 3] = ["/tokenizers-", "/spm_precompiled-", "/onig-"];
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            limit::off();
            if !panic.location().is_some_and(|at| CAUGHT.iter().any(|name| at.file().contains(name))) {
                abort(panic);
            }
        }));
        targets::prepare();
        // What is made once is not an input's.
        (target.run)(&[], folder);
        target
    });
    limit::within(input.len(), || (target.run)(input, folder));
}
