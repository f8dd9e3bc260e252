//! Replays the corpora of the fuzz targets (`fuzz/`), and each of their files cut and with bytes changed: the same functions
//! and the same limit on memory as when fuzzing, on a stable compiler.

#[path = "common/scratch.rs"]
mod scratch;

use scratch::Scratch;
use std::path::Path;
use std::process::Command;

#[path = "../fuzz/src/limit.rs"]
mod limit;
#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

#[global_allocator]
static ALLOCATOR: limit::Limited = limit::Limited;

/// Bytes that all corpora may have.
const MOST: u64 = 300 << 10;

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The file itself, cut at some places, and with some bytes changed; always the same.
fn variants(file: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![file.to_vec()];
    all.extend((0..4).map(|i| file[..file.len() * i / 4].to_vec()));
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ file.len() as u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..if file.is_empty() { 0 } else { 12 } {
        let mut changed = file.to_vec();
        let at = draw() % file.len();
        changed[at] = [0, 0xFF, b'9', b'"', b'-', draw() as u8][draw() % 6];
        all.push(changed);
    }
    all
}

/// One test, since the limit is the process's.
#[test]
fn corpora_are_read_within_the_limit() {
    targets::prepare();
    // The report of a panic is not an input's.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        limit::off();
        report(panic);
    }));
    let mut bytes = 0;
    for target in targets::TARGETS {
        let folder = Scratch::new(target.name);
        // What is made once is no input's.
        (target.run)(&[], &folder.0);
        let files = corpus(target.name);
        assert!(files.len() >= 4, "{}: {} files", target.name, files.len());
        for (name, file) in files {
            bytes += file.len() as u64;
            for variant in variants(&file) {
                let run = || limit::within(variant.len(), || (target.run)(&variant, &folder.0));
                let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                let text = String::from_utf8_lossy(&variant);
                assert!(run.is_ok(), "{}/{name}, or as this: {text}", target.name);
            }
        }
    }
    assert!(bytes <= MOST, "{bytes} bytes of corpora");
}

/// The control: what goes past the limit ends the process.
#[test]
#[ignore = "ends the process; the next test runs it"]
fn goes_past_the_limit() {
    let bytes = limit::BASE + limit::FACTOR * 3;
    limit::within(3, || drop(std::hint::black_box(vec![1u8; bytes - (1 << 16)])));
    limit::within(3, || drop(std::hint::black_box(vec![0u8; bytes + 1])));
}

#[test]
fn the_limit_holds() {
    let control = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "goes_past_the_limit", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&control.stderr);
    assert!(!control.status.success() && said.contains("allocation limit"), "{said}");
}
