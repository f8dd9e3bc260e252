//! docs/errors.md is a list of cases: each command in it is run on the inputs that it names, and has to end with the
//! message and the exit code that the document has. `TRIMTAB_BLESS=1` writes them there, for review.

use std::path::{Path, PathBuf};
use std::process::Command;

use trimtab::config::FIELDS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> PathBuf {
    root().join("docs/errors.md")
}

/// What a console block of the document says.
#[derive(Clone, Debug, PartialEq)]
struct Case {
    command: String,
    /// Standard error. `…` stands for any text.
    told: String,
    code: i32,
}

/// The sections of a document, each with its cases.
fn sections(text: &str) -> Vec<(String, Vec<Case>)> {
    let mut sections: Vec<(String, Vec<Case>)> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            sections.push((title.into(), Vec::new()));
        }
        if line == "```console" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let (_, cases) = sections.last_mut().expect("a section");
            cases.push(case(&block));
        }
    }
    sections
}

/// `$ trimtab …`, what it tells, and the exit code as the shell shows it, unless it is 0.
fn case(block: &[&str]) -> Case {
    let command = block[0].strip_prefix("$ trimtab ").unwrap_or_else(|| panic!("{block:?}")).to_owned();
    let (told, code) = match block[1..].iter().position(|line| *line == "$ echo $?") {
        Some(at) => (&block[1..=at], block[at + 2].parse().unwrap()),
        None => (&block[1..], 0),
    };
    Case { command, told: told.join("\n"), code }
}

impl Case {
    fn block(&self) -> String {
        let code = if self.code == 0 { String::new() } else { format!("$ echo $?\n{}\n", self.code) };
        format!("```console\n$ trimtab {}\n{}\n{code}```", self.command, self.told)
    }

    fn run(&self, folder: &Path) -> Case {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        let command = command.args(words(&self.command)).current_dir(folder);
        let command = command.env("HF_HOME", folder.join("hub")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        let output = command.output();
        let output = output.unwrap();
        let told = String::from_utf8(output.stderr).unwrap().trim_end().to_owned();
        let told = if cfg!(windows) { told.replace('\\', "/") } else { told };
        Case { command: self.command.clone(), told, code: output.status.code().unwrap() }
    }

    /// Without what was told of the run before the error.
    fn shortened(&self) -> Case {
        let told = self.told.find("\nerror: ").map_or(self.told.clone(), |at| format!("…{}", &self.told[at..]));
        Case { told, ..self.clone() }
    }

    /// Whether `ran` is what this says.
    fn is(&self, ran: &Case) -> bool {
        let mut rest = ran.told.as_str();
        let mut parts = self.told.split('…');
        let begins = parts.next().is_some_and(|first| {
            let fits = rest.starts_with(first);
            rest = rest.get(first.len()..).unwrap_or("");
            fits
        });
        let parts: Vec<&str> = parts.collect();
        let follow = parts.iter().all(|part| {
            let at = rest.find(part);
            rest = at.map_or("", |at| &rest[at + part.len()..]);
            at.is_some()
        });
        let ends = parts.last().map_or(rest.is_empty(), |last| ran.told.ends_with(last));
        begins && follow && ends && self.code == ran.code && self.command == ran.command
    }
}

/// The words of a command, as a shell splits them.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        let word = words.last_mut().unwrap();
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            (' ', None) => words.push(String::new()),
            (c, _) => word.push(c),
        }
    }
    words
}

/// A folder with the inputs that the document names.
struct Inputs(PathBuf);

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 538090408\n";

impl Inputs {
    fn new() -> Inputs {
        let inputs = Inputs(std::env::temp_dir().join(format!("trimtab-errors-{}", std::process::id())));
        inputs.models();
        inputs.data();
        inputs.write("yaml.yaml", "rank: 4\n");
        inputs.write("learning.toml", "learning_rate = 1e-4\n");
        inputs.write("tables.toml", "[lora]\nrank = 4\n");
        inputs.write("typo.toml", "bacth-size = 4\n");
        inputs.write("project/README.md", "A project of mine.\n");
        let run =
            "train --model model --data rows.jsonl --out finished --steps 1 --max-seq-len 16 --rank 1 --device cpu";
        let ran = Case { command: run.into(), told: String::new(), code: 0 }.run(&inputs.0);
        assert_eq!(ran.code, 0, "{}", ran.told);
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// The files of a folder of the repository, without the `lacks`.
    fn copy(&self, from: &str, to: &str, lacks: &[&str]) {
        for entry in std::fs::read_dir(root().join(from)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !lacks.contains(&name.as_str()) && entry.path().is_file() {
                std::fs::copy(entry.path(), self.path(&format!("{to}/{name}"))).unwrap();
            }
        }
    }

    fn models(&self) {
        const TINY: &str = "tests/fixtures/golden/base";
        const WEIGHTS: &str = "model.safetensors";
        self.copy("assets/base", "model", &[]);
        self.copy(TINY, "no-tokenizer", &[]);
        self.copy("tests/fixtures/families2/bert-classify-lora/model", "bert", &[]);
        self.copy("tests/fixtures/families2/bert-regression-lora/model", "regression", &[]);

        self.copy(TINY, "lfs-pointer", &[WEIGHTS]);
        self.write("lfs-pointer/model.safetensors", POINTER);
        self.copy(TINY, "pickled", &[WEIGHTS]);
        self.write("pickled/pytorch_model.bin", "PK\x03\x04");
        let whole = std::fs::read(root().join(TINY).join(WEIGHTS)).unwrap();
        self.copy(TINY, "cut-short", &[WEIGHTS]);
        self.write("cut-short/model.safetensors", &whole[..300_000]);
        self.copy("tests/fixtures/base_sharded", "no-shard", &["model-00002-of-00003.safetensors"]);
        self.copy("tests/fixtures/base_sharded", "outside", &[]);
        let index = self.path("outside/model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        std::fs::write(index, text.replace("\"model-00001", "\"../model-00001")).unwrap();
        self.copy(TINY, "models--some-org--Some-Model/snapshots/8f3a1c", &[]);
        self.write("page.gguf", "<!DOCTYPE html>\n<html lang=\"en\">\n");
        self.write("mamba/config.json", r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#);
        self.write("mamba/model.safetensors", &whole);

        self.copy("tests/fixtures/golden/lora", "adapter", &[]);
        self.copy("tests/fixtures/golden/lora", "lfs-adapter", &["adapter_model.safetensors"]);
        self.write("lfs-adapter/adapter_model.safetensors", POINTER);
        self.copy("tests/fixtures/golden/lora", "pickled-adapter", &["adapter_model.safetensors"]);
        let calls = std::fs::read(root().join("tests/golden/pickled/calls.bin")).unwrap();
        self.write("pickled-adapter/adapter_model.bin", calls);
    }

    fn data(&self) {
        let rows = "{\"text\": \"It was the best of times.\"}\n{\"text\": \"It was the worst of times.\"}\n";
        self.write("rows.jsonl", rows);
        self.write("more.jsonl", rows);
        self.write("data/part-1.jsonl", rows);
        self.write("data/part-2.jsonl", rows);
        self.write("project/src/main.rs", "fn main() {}\n");
        self.write("lfs-pointer.jsonl", POINTER);
        let wide: Vec<u8> = rows.encode_utf16().flat_map(u16::to_le_bytes).collect();
        self.write("utf16.jsonl", [&[0xFF, 0xFE], &wide[..]].concat());
        self.write("latin1.jsonl", b"{\"text\": \"caf\xE9\"}\n");
        self.write("commas.csv", "text,label\nGood, very good,1\nBad,0\n");
        self.write("open.csv", "text,label\nGood,1\nBad,\"0\n");
        self.write("rows.jsonl.zst", b"\x28\xB5\x2F\xFD\0\0\0\0\0\x03");
        self.write("rows.parquet", b"PAR1\x15\0PAR1");
        self.write("python.jsonl", "{'text': 'It was the best of times.'}\n");
        self.write("commas.jsonl", "{\"text\": \"a\"},\n{\"text\": \"b\"}\n");
        self.write("prose.jsonl", "It was the best of times, it was the worst of times.\n");
        self.write("fields.jsonl", "{\"question\": \"1 and 1?\", \"reply\": \"2\"}\n");
        self.write("chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}\n");
        self.write("wrapped.json", "{\"version\": 1, \"data\": [{\"text\": \"a\"}]}\n");
        self.write("nan.jsonl", "{\"text\": \"a\", \"score\": NaN}\n{\"text\": NaN, \"score\": 1}\n");
        self.write("number.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n");
        self.write("empty.jsonl", "");
        self.write("others.jsonl", "{\"input_ids\": [1, 2, 128256]}\n");
        self.write(
            "spaces.jsonl",
            "{\"prompt\": \"Name: \", \"completion\": \"Ahab\"}\n{\"prompt\": \"Name:\", \"completion\": \"\"}\n",
        );
        self.write("long.jsonl", format!("{{\"input_ids\": [{}], \"label\": 1}}\n", vec!["7"; 80].join(", ")));
        for (name, labels) in [
            ("labels", ["0", "3"]),
            ("fractions", ["1", "1.5"]),
            ("words", ["2.5", "\"good\""]),
            ("signs", ["-1", "1"]),
            ("mixed", ["1", "\"good\""]),
            ("alike", ["\"good\"", "\"good\""]),
            ("absent", ["1", "null"]),
        ] {
            let row = |label| format!("{{\"input_ids\": [5, 6, 7], \"label\": {label}}}\n");
            self.write(&format!("{name}.jsonl"), labels.map(row).concat());
        }
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn each_mistake_is_told_as_the_document_says() {
    let text = std::fs::read_to_string(document()).unwrap().replace("\r\n", "\n");
    let sections = sections(&text);
    let cases: Vec<&Case> = sections.iter().flat_map(|(_, cases)| cases).collect();
    let inputs = Inputs::new();
    let mut blessed = text.clone();
    let mut wrong = Vec::new();
    for case in &cases {
        let ran = case.run(&inputs.0);
        if !case.is(&ran) {
            blessed = blessed.replacen(&case.block(), &ran.shortened().block(), 1);
            wrong.push(format!("the document has\n{}\nand the command tells\n{}\n", case.block(), ran.block()));
        }
    }
    if std::env::var("TRIMTAB_BLESS").is_ok() {
        std::fs::write(document(), blessed).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.len() >= 40, "{} cases", cases.len());
    for (section, cases) in &sections {
        assert!(cases.len() >= 2, "{section}: {} cases", cases.len());
    }
    let mut commands: Vec<&str> = cases.iter().map(|case| case.command.as_str()).collect();
    commands.sort_unstable();
    assert!(commands.windows(2).all(|pair| pair[0] != pair[1]), "a command twice");

    // A document with another text, or another code, is wrong.
    let case = cases[0];
    let ran = case.run(&inputs.0);
    assert!(case.is(&ran));
    assert!(!Case { told: case.told.replacen("error", "failure", 1), ..case.clone() }.is(&ran));
    assert!(!Case { told: format!("{}\nmore", case.told), ..case.clone() }.is(&ran));
    assert!(!Case { told: case.told[..case.told.len() - 1].into(), ..case.clone() }.is(&ran));
    assert!(!Case { code: case.code + 1, ..case.clone() }.is(&ran));
}

#[test]
fn blocks_are_read_and_matched() {
    let text = "# Title\n\n## One\n\n```console\n$ trimtab plan --model \"a b\"\nerror: x\n$ echo $?\n2\n```\n\n## Two\n\n\
                ```console\n$ trimtab synth\nnote …\n```\n";
    let sections = sections(text);
    let case = &sections[0].1[0];
    assert_eq!(*case, Case { command: "plan --model \"a b\"".into(), told: "error: x".into(), code: 2 });
    assert_eq!(words(&case.command), ["plan", "--model", "a b"]);
    assert!(text.contains(&case.block()) && text.contains(&sections[1].1[0].block()));
    let told = |told: &str| Case { command: "c".into(), told: told.into(), code: 1 };
    for (pattern, text, fits) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a … c", "a b c", true),
        ("a … c", "a b d", false),
        ("a … c", "a c", false),
        ("…c", "abc", true),
        ("a…", "abc", true),
        ("…b", "abc", false),
    ] {
        assert_eq!(told(pattern).is(&told(text)), fits, "{pattern} {text}");
    }
}

/// The document tells settings as they are called.
#[test]
fn flags_that_the_document_advises_are_there() {
    let text = std::fs::read_to_string(document()).unwrap();
    let known =
        |flag: &str| FIELDS.iter().any(|f| f.key() == flag) || ["prompt", "max-tokens", "top-p"].contains(&flag);
    let prose = text.split("```").step_by(2).collect::<String>();
    for flag in prose.split("--").skip(1) {
        let flag: String = flag.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let others = ["local-dir", "config", "temperature", "overwrite", "resume", "list"];
        assert!(known(flag.trim_end_matches('-')) || others.contains(&flag.as_str()) || flag.is_empty(), "--{flag}");
    }
}
