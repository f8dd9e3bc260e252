//! The program on a CUDA card that is none: the driver that it opens is `tests/fakecuda`, which runs the kernels' PTX on
//! the CPU, and ends the process at the first call that breaks a rule.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::devices::Device;
use super::scratch::Scratch;

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The driver as a program finds it: a folder for the loader's path.
pub struct Card {
    scratch: Scratch,
}

/// What a run left.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    /// What the driver counted; null if it was not asked for anything.
    pub report: Value,
}

impl Card {
    /// None if there is no NVRTC to compile kernels.
    pub fn new(name: &str) -> Option<Card> {
        Device::ptx(80)?;
        let scratch = Scratch::new(name);
        let built = std::env::current_exe().unwrap().parent().unwrap().join("libfakecuda.so");
        std::fs::copy(&built, scratch.0.join("libcuda.so")).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
        // The same file, so that the loader opens it once: one card under both names.
        std::fs::hard_link(scratch.0.join("libcuda.so"), scratch.0.join("libcublasLt.so")).unwrap();
        Some(Card { scratch })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Runs the built program in this folder; `told` are settings of the driver.
    pub fn run(&self, args: &[&str], told: &[(&str, &str)]) -> Ran {
        self.start(Path::new(env!("CARGO_BIN_EXE_trimtab")), args, told)
    }

    /// Runs any program so.
    pub fn start(&self, program: &Path, args: &[&str], told: &[(&str, &str)]) -> Ran {
        let name = |end: &str| self.path(&format!("{:?}.{end}", std::thread::current().id()));
        let (out, err, report) = (name("out"), name("err"), name("report"));
        std::fs::remove_file(&report).ok();
        let folder = self.scratch.0.as_os_str().to_owned();
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.scratch.0).env("LD_LIBRARY_PATH", folder).env("RAYON_NUM_THREADS", "2");
        command.env("FAKECUDA_REPORT", &report).envs(told.iter().copied());
        if std::env::var_os("TRIMTAB_CACHE").is_none() {
            command.env("TRIMTAB_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
        }
        command.stdin(Stdio::null());
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if began.elapsed() > PATIENCE => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("{}: no end after {PATIENCE:?}", args.join(" "));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let text = |path: &PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        let report = std::fs::read(&report).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
        Ran { code: status.code(), out: text(&out), err: text(&err), report }
    }

    /// A run that succeeds; its standard output and the driver's report.
    pub fn ok(&self, args: &[&str], told: &[(&str, &str)]) -> (String, Value) {
        let ran = self.run(args, told);
        assert_eq!(ran.code, Some(0), "{} {told:?}: {}{}", args.join(" "), ran.out, ran.err);
        (ran.out, ran.report)
    }

    /// (loss, gradient's norm) of each step of the run in a folder.
    pub fn steps(&self, run: &str) -> Vec<(f64, f64)> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let steps = events.filter(|e| e["event"] == "step");
        steps.map(|e| (e["loss"].as_f64().unwrap(), e["grad_norm"].as_f64().unwrap())).collect()
    }
}
