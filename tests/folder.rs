//! The folder of a run: what it may be, who else may write it, and what stays in it.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::scratch::{Scratch, copy};
use trimtab::config::{Flags, RunConfig};
use trimtab::error::{Error, Result};
use trimtab::run::folder::Start;
use trimtab::run::metrics::Event;
use trimtab::run::training;

/// A folder with a model and data for a run.
fn begin(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    copy(&common::root("tests/fixtures/golden/base"), &scratch.0.join("model"));
    std::fs::write(scratch.0.join("data.jsonl"), "{\"input_ids\": [1, 5, 9, 13, 2]}\n").unwrap();
    scratch
}

impl Scratch {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Two steps into `out`, with `more` settings.
    fn run(
        &self,
        out: &Path,
        start: Start,
        more: &[(&str, &str)],
        on: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let [model, data] = ["model", "data.jsonl"].map(|name| self.path(name).display().to_string());
        let out = out.display().to_string();
        let flags = [("model", model.as_str()), ("data", &data), ("out", &out), ("device", "cpu"), ("steps", "2")];
        let flags = [&flags[..], &[("max_seq_len", "16")], more].concat();
        let flags: Vec<(&str, &str)> = flags.into_iter().collect();
        training::run(&RunConfig::resolve(None, &Flags::of(&flags)?)?, start, on).map(|_| ())
    }

    fn train(&self, out: &str, start: Start, more: &[(&str, &str)]) -> Result<()> {
        self.run(&self.path(out), start, more, &mut |_| Ok(()))
    }
}

/// Every file below a folder.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

/// Whatever is in a folder that a run may not have stays as it is, to the byte; nothing new comes to be.
#[test]
fn a_folder_of_something_else_is_refused_and_untouched() {
    let scratch = begin("refused");
    scratch.train("run", Start::New, &[]).unwrap();
    scratch.train("adapter", Start::New, &[]).unwrap();
    std::fs::create_dir_all(scratch.path("project")).unwrap();
    std::fs::write(scratch.path("project/README.md"), "mine").unwrap();
    std::fs::write(scratch.path("project/config.toml"), "[mine]").unwrap();
    std::fs::write(scratch.path("a-file"), "mine").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(scratch.path("model"), scratch.path("link")).unwrap();
    let adapter = scratch.path("adapter").display().to_string();
    let adapter = [("adapter", adapter.as_str())];
    type Row<'a> = (&'a str, &'a [Start], &'a [(&'a str, &'a str)], &'a str);
    let all = &[Start::New, Start::Overwrite, Start::Resume][..];
    let rows: &[Row] = &[
        ("model", all, &[], "which is the --model"),
        ("model", all, &[("method", "full")], "which is the --model"),
        ("model/run", all, &[], "which is in the --model"),
        ("model/../model/a/b", all, &[], "which is in the --model"),
        ("adapter", all, &adapter, "which is the --adapter"),
        ("project", all, &[], "something that is not a run"),
        (".", all, &[], "something that is not a run"),
        ("a-file", all, &[], ""),
        ("run", &[Start::New], &[], "which holds a run"),
        #[cfg(unix)]
        ("link", all, &[], "which is the --model"),
        #[cfg(unix)]
        ("link/run", all, &[], "which is in the --model"),
    ];
    let before = files(&scratch.0);
    for (out, starts, more, expected) in rows {
        for &start in *starts {
            let error = scratch.train(out, start, more).unwrap_err().to_string();
            assert!(error.contains(expected), "{out} {start:?}: {error}");
            assert!(files(&scratch.0) == before, "{out} {start:?}: something was written");
        }
    }
    // The control: what is allowed writes.
    std::fs::create_dir_all(scratch.path("empty")).unwrap();
    std::fs::write(scratch.path("empty/.gitkeep"), "").unwrap();
    for (out, start) in [("empty", Start::New), ("run", Start::Overwrite), ("new/deep", Start::Resume)] {
        scratch.train(out, start, &[]).unwrap();
    }
}

/// A run that fails before its first step leaves the folder as it was, so that it can be tried again.
#[test]
fn a_run_that_does_not_begin_leaves_no_trace() {
    let scratch = begin("trace");
    scratch.train("run", Start::New, &[]).unwrap();
    std::fs::create_dir_all(scratch.path("empty")).unwrap();
    let before = files(&scratch.0);
    for more in [[("memory", "1")], [("targets", "nothing_like_it")], [("adapter", "nowhere")]] {
        for (out, start) in [("new", Start::New), ("empty", Start::New), ("run", Start::Overwrite)] {
            scratch.train(out, start, &more).unwrap_err();
            // The lock of a run that was there is its own.
            let mut after = files(&scratch.0);
            after.insert(scratch.path("run/run.lock"), before[&scratch.path("run/run.lock")].clone());
            assert!(after == before, "{more:?} {out}");
            assert!(!scratch.path("new").exists() && scratch.path("empty").exists(), "{more:?}");
        }
    }
}

/// Nothing of the older run is left to be taken for the new one's.
#[test]
fn an_overwritten_run_leaves_nothing_of_itself() {
    let scratch = begin("overwritten");
    scratch.train("run", Start::New, &[("method", "full"), ("steps", "5")]).unwrap();
    std::fs::write(scratch.path("run/notes.txt"), "mine").unwrap();
    // Stopped in the middle: the older run's model must not be there.
    let stopped =
        scratch.run(&scratch.path("run"), Start::Overwrite, &[("save_every", "0")], &mut |event| match event {
            Event::Step(_) => Err(Error::unsupported("the rest", "stopped by the test")),
            _ => Ok(()),
        });
    assert!(stopped.is_err());
    let names = |dir: &str| -> Vec<String> {
        let all = files(&scratch.path(dir)).into_keys();
        all.map(|path| path.strip_prefix(scratch.path(dir)).unwrap().display().to_string()).collect()
    };
    assert_eq!(names("run"), ["config.toml", "metrics.jsonl", "notes.txt", "run.lock"]);
    let metrics = std::fs::read_to_string(scratch.path("run/metrics.jsonl")).unwrap();
    let kinds = ["run", "examples", "step"].map(|kind| format!("\"event\":\"{kind}\""));
    let told = metrics.lines().zip(&kinds).filter(|(line, kind)| line.contains(*kind)).count();
    assert_eq!((told, metrics.lines().count()), (3, 3), "{metrics}");
}

/// Two runs never write one folder.
#[test]
fn a_folder_in_which_a_run_is_on_is_refused() {
    let scratch = begin("lock");
    let mut tried = 0;
    scratch
        .run(&scratch.path("run"), Start::New, &[], &mut |event| {
            if matches!(event, Event::Step(_)) {
                for start in [Start::Overwrite, Start::Resume] {
                    let error = scratch.train("run", start, &[]).unwrap_err().to_string();
                    assert!(error.contains("in which a run is on (process"), "{error}");
                    tried += 1;
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(tried, 4);
    // The control: after its end the lock is free.
    scratch.train("run", Start::Overwrite, &[]).unwrap();
}

/// A disk that is too small is told before anything is loaded.
#[test]
fn too_little_room_is_said_before_the_run() {
    let scratch = begin("room");
    // As many checkpoints as no disk can hold.
    let many = [("keep", "9000000000000000000")];
    let mut steps = 0;
    let error = scratch.run(&scratch.path("run"), Start::New, &many, &mut |event| {
        steps += usize::from(matches!(event, Event::Step(_)));
        Ok(())
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("free for") && error.contains("--save-every 0") && steps == 0, "{error}");
    assert!(!scratch.path("run").exists());
    scratch.train("run", Start::New, &[&many[..], &[("save_every", "0")]].concat()).unwrap();
}

/// Whoever may read files of this user may read these.
#[cfg(unix)]
#[test]
fn files_have_ordinary_modes() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = begin("modes");
    scratch.train("run", Start::New, &[]).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    let plain = mode(&scratch.path("data.jsonl"));
    let all = files(&scratch.path("run"));
    assert!(all.len() >= 6);
    for path in all.keys() {
        assert_eq!(mode(path), plain, "{}", path.display());
    }
}
