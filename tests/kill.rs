//! Runs that are killed at any instant, also while they write, go on to the same bits as a run that was never stopped:
//! on other numbers of threads, and with other choices that save memory.

#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::devices::Device;
use common::scratch::{Scratch, copy};

/// A folder with data for a run.
fn begin(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let rows: String = (0..24)
        .map(|row| {
            let ids: Vec<String> = (0..5 + row % 9).map(|i| (1 + (row * 7 + i * 5) % 90).to_string()).collect();
            format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
        })
        .collect();
    std::fs::write(scratch.0.join("data.jsonl"), rows).unwrap();
    scratch
}

impl Scratch {
    fn start(&self, args: &[&str], threads: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args(args).current_dir(&self.0).env("RAYON_NUM_THREADS", threads);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.start(args, "2").wait_with_output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        let talk = talk(&ran);
        assert!(ran.status.success(), "{}: {talk}", args.join(" "));
        talk
    }

    /// What a finished run leaves that does not tell the time.
    fn result(&self, run: &str) -> Vec<Vec<u8>> {
        let dir = self.0.join(run);
        let weights = ["adapter_model.safetensors", "model.safetensors"].map(|name| dir.join(name));
        let weights = weights.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no weights in {run}"));
        vec![std::fs::read(weights).unwrap(), std::fs::read(dir.join("loss.svg")).unwrap()]
    }

    /// Whether something in the run's folder is being written.
    fn writes(&self, run: &str) -> bool {
        [run.to_string(), format!("{run}/checkpoints")].iter().any(|dir| {
            let entries = std::fs::read_dir(self.0.join(dir)).into_iter().flatten().flatten();
            entries.map(|e| e.file_name()).any(|name| name.to_string_lossy().starts_with(".trimtab-"))
        })
    }
}

fn talk(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

fn model() -> String {
    common::root("tests/fixtures/golden/base").display().to_string()
}

/// A run of 24 steps of several micro-batches, of two sizes.
fn bare<'a>(model: &'a str, device: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "--model", model, "--data", "data.jsonl", "--device", device, "--steps", "24"];
    args.extend(["--batch-size", "5", "--max-seq-len", "16", "--save-every", "1"]);
    args
}

/// The same of LoRA, with dropout.
fn train<'a>(model: &'a str, device: &'a str) -> Vec<&'a str> {
    [&bare(model, device)[..], &["--rank", "4", "--dropout", "0.1"]].concat()
}

/// Settings that change nothing of the result, one set a resumption.
const OTHERWISE: [&[&str]; 4] = [
    &[],
    &["--page-optimizer", "on", "--stream", "on"],
    &["--recompute", "all", "--offload", "on"],
    &["--keep", "1", "--max-skips", "3"],
];

struct Case {
    name: &'static str,
    device: &'static str,
    flags: &'static [&'static str],
    kills: usize,
}

const CASES: &[Case] = &[
    Case { name: "lora", device: "cpu", flags: &[], kills: 20 },
    Case {
        name: "everything-away",
        device: "cpu",
        flags: &["--page-optimizer", "on", "--stream", "on", "--offload", "on", "--quantize", "nf4"],
        kills: 15,
    },
    Case { name: "full", device: "cpu", flags: &["--method", "full", "--optimizer", "adamw8bit"], kills: 15 },
    Case { name: "bf16", device: "cpu", flags: &["--dtype", "bf16"], kills: 10 },
    Case { name: "wgpu", device: "wgpu", flags: &["--page-optimizer", "on"], kills: 5 },
];

/// Kills the run again and again until it was killed `kills` times and has ended. Returns how often it was writing.
fn killed(scratch: &Scratch, case: &Case, args: &[&str], usual: Duration) -> usize {
    let (mut kills, mut writing) = (0, 0);
    let mut draw = 0x9E37_79B9u32;
    for round in 0.. {
        assert!(round < 20, "{}: ended before it could be killed, again and again", case.name);
        std::fs::remove_dir_all(scratch.0.join("run")).ok();
        let mut first = true;
        loop {
            // Killed before it had settings, it has to be told them again.
            let begun = scratch.0.join("run/config.toml").exists();
            let otherwise = if begun && !first { OTHERWISE[kills % OTHERWISE.len()] } else { &[] };
            let how = match begun {
                true => [&["train", "--resume", "run"][..], otherwise].concat(),
                false => [args, &["--out", "run", "--resume"]].concat(),
            };
            first = false;
            let mut child = scratch.start(&how, ["1", "2"][kills % 2]);
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let end = Instant::now() + usual.mul_f64(f64::from(draw >> 8) / f64::from(1 << 24));
            // Every other time at the sight of something that is half written.
            let sees = kills % 2 == 1;
            while child.try_wait().unwrap().is_none() && (Instant::now() < end || sees && !scratch.writes("run")) {
                if !sees {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            child.kill().unwrap();
            let ran = child.wait_with_output().unwrap();
            match ran.status.code() {
                None => {
                    kills += 1;
                    writing += usize::from(scratch.writes("run"));
                }
                Some(code) => {
                    assert_eq!(code, 0, "{}: {}: {}", case.name, how.join(" "), talk(&ran));
                    break;
                }
            }
        }
        assert!(scratch.result("run") == scratch.result("never"), "{}: other bytes after {kills} kills", case.name);
        assert!(!scratch.writes("run"), "{}: leftovers", case.name);
        if kills >= case.kills {
            return writing;
        }
    }
    unreachable!()
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_in_the_same_bits() {
    let model = model();
    let (mut kills, mut writing) = (0, 0);
    for case in CASES.iter().filter(|case| case.device == "cpu" || Device::wgpu().is_some()) {
        let scratch = begin(case.name);
        let start = if case.flags.contains(&"--method") { bare } else { train };
        let args = [&start(&model, case.device)[..], case.flags].concat();
        let began = Instant::now();
        scratch.ok(&[&args[..], &["--out", "never"]].concat());
        let usual = began.elapsed();
        kills += case.kills;
        writing += killed(&scratch, case, &args, usual);
        // The control: the bytes tell a run from another.
        scratch.ok(&[&args[..], &["--out", "other", "--seed", "7"]].concat());
        assert!(scratch.result("other") != scratch.result("never"), "{}", case.name);
    }
    assert!(kills >= 50 && writing > 0, "{kills} kills, {writing} of them while something was written");
}

/// Ctrl-C and SIGTERM finish the step and write a checkpoint, whatever --save-every says.
#[test]
fn a_signal_ends_the_run_after_its_step() {
    let (scratch, model) = (begin("signal"), model());
    let mut args = train(&model, "cpu");
    args.extend(["--save-every", "0", "--lr", "1e-5"]);
    args.extend(["--steps", "400"]);
    scratch.ok(&[&args[..], &["--out", "never"]].concat());
    for signal in ["INT", "TERM"] {
        let run = format!("run-{signal}");
        let mut child = scratch.start(&[&args[..], &["--out", &run]].concat(), "2");
        let metrics = scratch.0.join(&run).join("metrics.jsonl");
        while child.try_wait().unwrap().is_none() && !metrics.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ran = child.wait_with_output().unwrap();
        let said = talk(&ran);
        assert_eq!(ran.status.code(), Some(130), "{said}");
        assert!(said.contains(&format!("of 400; `trimtab train --resume {run}` goes on")), "{said}");
        assert!(scratch.ok(&["train", "--resume", &run]).contains("goes on after step"));
        assert!(scratch.result(&run) == scratch.result("never"), "{signal}");
    }
}

/// Its name, and what it does to a file.
type Damage = (&'static str, fn(&Path));

/// Every file of a checkpoint, at every kind of damage: the one before it is taken.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let (scratch, model) = (begin("damage"), model());
    let args = [&train(&model, "cpu")[..], &["--out", "run"]].concat();
    scratch.ok(&args);
    let never = scratch.result("run");
    let last = scratch.0.join("run/checkpoints/step-24");
    let keep = scratch.0.join("kept");
    copy(&last, &keep);
    let damages: [Damage; 4] = [
        ("cut", |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("flipped", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
        ("empty", |path| std::fs::write(path, "").unwrap()),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
    ];
    let names = std::fs::read_dir(&last).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        for (what, damage) in damages {
            damage(&last.join(&name));
            let said = scratch.ok(&["train", "--resume", "run"]);
            let expected = "goes on after step 23, from run/checkpoints/step-23";
            assert!(said.contains("passed over") && said.contains(expected), "{name} {what}: {said}");
            assert!(scratch.result("run") == never, "{name} {what}");
        }
    }
    // The control: what is whole is not passed over.
    assert!(scratch.ok(&["train", "--resume", "run"]).contains("goes on after step 24, from run/checkpoints/step-24"));
}

/// What would change the result is named; what would not is allowed.
#[test]
fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
    let (scratch, model) = (begin("differs"), model());
    scratch.ok(&[&train(&model, "cpu")[..], &["--out", "run"]].concat());
    let data = std::fs::read_to_string(scratch.0.join("data.jsonl")).unwrap();
    std::fs::write(scratch.0.join("other.jsonl"), data.replacen("[1, ", "[2, ", 1)).unwrap();
    std::fs::copy(scratch.0.join("data.jsonl"), scratch.0.join("same.jsonl")).unwrap();
    // The same model with one value changed.
    copy(Path::new(&model), &scratch.0.join("model"));
    let weights = scratch.0.join("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    copy(Path::new(&model), &scratch.0.join("moved"));

    let refused: &[(&[&str], &str)] = &[
        (&["--lr", "0.5"], "lr 0.5"),
        (&["--seed", "1"], "seed 1"),
        (&["--batch-size", "4"], "batch-size 4"),
        (&["--optimizer", "lion"], "optimizer \"lion\""),
        (&["--rank", "8"], "rank 8"),
        (&["--micro-tokens", "32"], "micro-batches of [32] tokens"),
        (&["--steps", "48"], "steps: 48 steps"),
        (&["--steps", "12"], "steps: 12 steps"),
        (&["--warmup", "3"], "3 of them warmup"),
        (&["--data", "other.jsonl"], "data 24 other examples"),
        (&["--model", "model"], "model another model"),
        (&["--no-shuffle", "--dora"], "dora true, shuffle false"),
    ];
    for (flags, expected) in refused {
        let ran = scratch.run(&[&["train", "--resume", "run"][..], flags].concat());
        let said = talk(&ran);
        assert_eq!(ran.status.code(), Some(1), "{flags:?}: {said}");
        assert!(said.contains(expected) && said.contains("run/checkpoints/step-24"), "{flags:?}: {said}");
    }
    let allowed: &[&[&str]] = &[
        &[],
        &["--data", "same.jsonl"],
        &["--model", "moved"],
        &["--stream", "on", "--page-optimizer", "on", "--offload", "on", "--recompute", "all"],
        &["--memory", "1GiB"],
        &["--eval-data", "data.jsonl"],
        &["--save-every", "5", "--keep", "9", "--max-skips", "1"],
        &["--out", "run"],
    ];
    for flags in allowed {
        let said = scratch.ok(&[&["train", "--resume", "run"][..], flags].concat());
        assert!(said.contains("goes on after step 24"), "{flags:?}: {said}");
    }
}

/// A run whose learning rates do not depend on its length can be made longer.
#[test]
fn more_steps_follow_where_they_change_none() {
    let (scratch, model) = (begin("longer"), model());
    let constant = ["--schedule", "constant", "--warmup", "4"];
    let args = [&train(&model, "cpu")[..], &constant].concat();
    scratch.ok(&[&args[..], &["--out", "run"]].concat());
    scratch.ok(&[&args[..], &["--out", "never", "--steps", "40"]].concat());
    scratch.ok(&["train", "--resume", "run", "--steps", "40"]);
    assert!(scratch.result("run") == scratch.result("never"));
}

/// `--resume` starts over where there is no checkpoint yet, and not where a finished run would be lost.
#[test]
fn without_a_checkpoint_a_run_begins_anew() {
    let (scratch, model) = (begin("anew"), model());
    let args = train(&model, "cpu");
    let said = scratch.ok(&[&args[..], &["--out", "run", "--resume"]].concat());
    assert!(said.contains("no checkpoint yet: from the beginning"), "{said}");
    scratch.ok(&[&args[..], &["--out", "none", "--save-every", "0"]].concat());
    assert!(scratch.result("run") == scratch.result("none"));
    let said = talk(&scratch.run(&["train", "--resume", "none"]));
    assert!(said.contains("none, which holds a finished run and no checkpoint"), "{said}");
    for args in [&["train", "--resume", "nowhere"][..], &["train", "--resume", "run", "--out", "other"]] {
        assert_eq!(scratch.run(args).status.code(), Some(2), "{}", args.join(" "));
    }
}

/// A disk on which checkpoints cannot be written is said, and the run goes on.
#[test]
fn a_run_goes_on_without_checkpoints() {
    let (scratch, model) = (begin("nodisk"), model());
    std::fs::create_dir_all(scratch.0.join("run")).unwrap();
    // A file where the folder of checkpoints would be; the lock makes the folder one of a run.
    std::fs::write(scratch.0.join("run/checkpoints"), "").unwrap();
    std::fs::write(scratch.0.join("run/run.lock"), "").unwrap();
    let args = [&train(&model, "cpu")[..], &["--out", "run", "--resume"]].concat();
    let said = scratch.ok(&args);
    assert!(said.contains("no checkpoint after step 1, the run goes on:"), "{said}");
    assert!(scratch.0.join("run/adapter_config.json").exists());
}
