//! What people have: models and adapters with settings beside the common ones, each with the loss that transformers 5.23,
//! PEFT 0.21.2 or llama.cpp's rules give.

mod common;

use std::path::{Path, PathBuf};

use trimtab::config::{Flags, RunConfig};
use trimtab::run::metrics::Event;
use trimtab::run::training;

/// A folder for the files of one test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trimtab-field-{}-{name}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    /// The base model of the golden fixtures with another config.json.
    fn base(&self, config: &str) -> PathBuf {
        let dir = self.0.join("m");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(base().join("model.safetensors"), dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("config.json"), config).unwrap();
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn base() -> PathBuf {
    common::root("tests/fixtures/golden/base")
}

fn field(path: &str) -> PathBuf {
    common::root("tests/fixtures/field").join(path)
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The loss of a step at rate 0 over all of `data`, and what was said on the way.
fn loss(scratch: &Scratch, model: &Path, data: &Path, more: &[(&str, &str)]) -> trimtab::Result<(f32, Vec<String>)> {
    let out = scratch.0.join("out");
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let (model, data, out) = (text(model), text(data), text(&out));
    let mut flags = vec![
        ("model", model.as_str()),
        ("data", &data),
        ("out", &out),
        ("device", "cpu"),
        ("steps", "1"),
        ("lr", "0"),
        ("batch-size", "64"),
        ("shuffle", "false"),
        ("max-seq-len", "64"),
    ];
    flags.extend_from_slice(more);
    let mut notes = Vec::new();
    let summary = training::run(&RunConfig::resolve(None, &Flags::of(&flags)?)?, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        Ok(())
    })?;
    Ok((summary.first_loss, notes))
}

fn near(found: f32, want: f32, what: &str) {
    assert!((found - want).abs() < 2e-5, "{what}: {found}, not {want}");
}

#[test]
fn rope_scaling_beside_rope_parameters_wins() {
    let scratch = Scratch::new("rope");
    let of = |name: &str| field("rope_scaling_beside_rope_parameters").join(name);
    for (name, want) in [("config_yarn.json", 5.157993), ("config_linear.json", 5.141985)] {
        let model = scratch.base(&read(of(name)));
        let (found, notes) = loss(&scratch, &model, &of("data.jsonl"), &[]).unwrap();
        near(found, want, name);
        assert!(notes.is_empty(), "{notes:?}");
    }
    // The control: without it, the loss is another.
    let (found, _) = loss(&scratch, &base(), &of("data.jsonl"), &[]).unwrap();
    near(found, 5.130372, "no scaling");
    let config = read(of("config_linear.json")).replace("\"factor\"", "\"mrope_section\": [2, 1], \"factor\"");
    let (_, notes) = loss(&scratch, &scratch.base(&config), &of("data.jsonl"), &[]).unwrap();
    assert!(notes.iter().any(|note| note.contains("rope_scaling.mrope_section")), "{notes:?}");
}

#[test]
fn a_ggufs_rope_scaling_is_that_of_llama_cpp() {
    let scratch = Scratch::new("gguf");
    let of = |name: &str| field("gguf_rope_scaling").join(name);
    for (name, want) in [("factor_without_type.gguf", 4.414827), ("yarn_betas.gguf", 4.421123)] {
        near(loss(&scratch, &of(name), &of("data.jsonl"), &[]).unwrap().0, want, name);
    }
    // The control: a rotation of half a head's features is refused and not ignored.
    let mut bytes = std::fs::read(of("yarn_betas.gguf")).unwrap();
    let key = b"llama.rope.dimension_count";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    bytes[at] /= 2;
    let path = scratch.0.join("half.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = loss(&scratch, &path, &of("data.jsonl"), &[]).unwrap_err().to_string();
    assert!(error.contains("of a head's"), "{error}");
}
