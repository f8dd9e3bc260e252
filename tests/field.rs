//! What people have: models and adapters with settings beside the common ones, each with the loss that transformers 5.23,
//! PEFT 0.21.2 or llama.cpp's rules give.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::scratch::Scratch;
use serde_json::{Value, json};
use trimtab::Error;
use trimtab::backend::cpu::Cpu;
use trimtab::base::Base;
use trimtab::config::{Flags, RunConfig};
use trimtab::dtype::DType;
use trimtab::generate::sample::Sampling;
use trimtab::generate::{Ask, Room};
use trimtab::peft::{self, Frozen};
use trimtab::run::folder::Start;
use trimtab::run::metrics::Event;
use trimtab::run::{merge, training};
use trimtab::session::{Options, Planned};

impl Scratch {
    /// The base model of the golden fixtures with another config.json.
    fn base(&self, config: &str) -> PathBuf {
        let dir = self.0.join("m");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(base().join("model.safetensors"), dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("config.json"), config).unwrap();
        dir
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

/// The loss of a step at rate 0 over all of `data`, and what was said of the model on the way.
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
    let summary = training::run(&RunConfig::resolve(None, &Flags::of(&flags)?)?, Start::Overwrite, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        Ok(())
    })?;
    notes.retain(|note| !["data ", "micro-batches ", "learns ", "lr is 0"].iter().any(|start| note.starts_with(start)));
    Ok((summary.first_loss, notes))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&read(path.into())).unwrap()
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

/// Short rows are rotated as short ones are, whatever length others may have; keys that a class does not read have no effect.
#[test]
fn settings_count_as_in_transformers_for_rows_of_every_length() {
    let scratch = Scratch::new("lengths");
    let of = |name: &str| field("lengths").join(name);
    let cases: Value = serde_json::from_str(&read(of("configs.json"))).unwrap();
    let plain: Value = serde_json::from_str(&read(base().join("config.json"))).unwrap();
    for (name, case) in cases.as_object().unwrap() {
        let mut config = plain.clone();
        config.as_object_mut().unwrap().extend(case["config"].as_object().unwrap().clone());
        let want = case["loss"].as_f64().unwrap() as f32;
        let (found, _) = loss(&scratch, &scratch.base(&config.to_string()), &of("rows.jsonl"), &[]).unwrap();
        near(found, want, name);
        // The control: the angles of the rows' lengths are others.
        let scaled = name == "longrope";
        assert_eq!((want - cases["plain"]["loss"].as_f64().unwrap() as f32).abs() > 1e-3, scaled, "{name}");
    }
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

#[test]
fn a_head_in_the_file_counts_though_the_config_ties_it() {
    let scratch = Scratch::new("tied");
    let of = |name: &str| field("tied_config_but_own_head").join(name);
    let model = scratch.base(&read(of("config.json")));
    let (found, notes) = loss(&scratch, &model, &of("data.jsonl"), &[]).unwrap();
    near(found, 5.130372, "own head");
    assert!(notes.iter().any(|note| note.contains("lm_head.weight")), "{notes:?}");
    // The control: a tied file without a head, and one with a copy of the embedding, are tied and nothing is said.
    let tied = field("mixed_windows");
    let bytes = std::fs::read(tied.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors();
    tensors.push(("lm_head.weight".into(), file.tensor("model.embed_tokens.weight").unwrap()));
    let copied = scratch.base(&read(tied.join("config.json")));
    std::fs::write(copied.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    for folder in [tied, copied] {
        let opened = Base::open(folder).unwrap();
        assert!(opened.notes.is_empty() && opened.model(2).unwrap().facts().tied, "{:?}", opened.notes);
    }
}

/// safetensors' `save_model` (accelerate's too) writes of a tensor's names the first by the alphabet. transformers knows them all.
#[test]
fn a_shared_embedding_may_have_another_name() {
    let scratch = Scratch::new("names");
    let t5 = Case::all(&scratch, "t5_shared").pop().unwrap();
    let windows = field("mixed_windows");
    let table = [
        (
            &windows,
            windows.join("data.jsonl"),
            ["causal-lm", "q_proj"],
            ["model.embed_tokens.weight", "lm_head.weight"],
        ),
        (&t5.model, t5.rows, ["seq2seq", "q"], ["shared.weight", "decoder.embed_tokens.weight"]),
    ];
    for (model, data, [task, targets], [name, other]) in table {
        let more = [("task", task), ("targets", targets)];
        let want = loss(&scratch, model, &data, &more).unwrap();
        let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let named = |to: &str| {
            let tensors = file.tensors().into_iter().map(|(of, view)| (if of == name { to.into() } else { of }, view));
            let renamed = scratch.base(&read(model.join("config.json")));
            std::fs::write(renamed.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
            loss(&scratch, &renamed, &data, &more)
        };
        assert_eq!(named(other).unwrap(), want, "{other}");
        // The control: any other name is none of it.
        let error = named("other.weight").unwrap_err().to_string();
        assert!(error.contains(&format!("no tensor {name}")), "{error}");
    }
}

#[test]
fn windows_differ_by_layer() {
    let scratch = Scratch::new("windows");
    let of = |name: &str| field("mixed_windows").join(name);
    let cases: Vec<Value> = serde_json::from_str(&read(of("expected.json"))).unwrap();
    let config: Value = serde_json::from_str(&read(of("config.json"))).unwrap();
    let rows: Vec<Value> = read(of("data.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids = |row: &Value| row.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let (mut losses, mut texts) = (Vec::new(), Vec::new());
    for case in &cases {
        let mut config = config.clone();
        for (key, value) in case["changes"].as_object().unwrap() {
            config[key] = value.clone();
        }
        let model = scratch.base(&config.to_string());
        std::fs::copy(of("model.safetensors"), model.join("model.safetensors")).unwrap();
        let (found, notes) = loss(&scratch, &model, &of("data.jsonl"), &[]).unwrap();
        near(found, case["loss"].as_f64().unwrap() as f32, &case["changes"].to_string());
        assert!(notes.is_empty(), "{notes:?}");
        losses.push(found);

        let options = Options {
            train: false,
            generate: Some(Room { tokens: 48, source: 48, chunk: 10 }),
            max_seq_len: 48,
            ..Options::default()
        };
        let base = Arc::new(Base::open(&model).unwrap());
        let planned = Planned::new(&base, Box::new(Frozen), options, Box::new(Cpu::new())).unwrap();
        let mut session = planned.start(None, &mut |_, _| Ok(())).unwrap();
        let ask = Ask { max_tokens: 16, sampling: Sampling::default(), stop: &[] };
        let text = session.generate(&ids(&rows[0]["input_ids"]), &ask, &mut |_| Ok(true)).unwrap();
        assert_eq!(text, ids(&case["text"]), "{}", case["changes"]);
        texts.push(text);
    }
    // The control: the cases differ from one another.
    assert!(losses.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-4), "{losses:?}");
    assert!(texts.windows(2).all(|pair| pair[0] != pair[1]));

    let wrong = config.to_string().replace("\"sliding_attention\"", "\"chunked_attention\"");
    let error = loss(&scratch, &scratch.base(&wrong), &of("data.jsonl"), &[]).unwrap_err().to_string();
    assert!(error.contains("layer_types"), "{error}");
}

/// The folder of an adapter of the field with another config.
fn adapter(scratch: &Scratch, config: &str) -> String {
    let dir = scratch.0.join("adapter");
    std::fs::create_dir_all(&dir).unwrap();
    let tensors = field("adapters_peft_loads").join("adapter_model.safetensors");
    std::fs::copy(tensors, dir.join("adapter_model.safetensors")).unwrap();
    std::fs::write(dir.join("adapter_config.json"), config).unwrap();
    dir.to_str().unwrap().to_string()
}

#[test]
fn adapters_that_peft_loads_are_loaded() {
    let scratch = Scratch::new("adapters");
    let of = |name: &str| field("adapters_peft_loads").join(name);
    let cases = ["bias_all", "extra_target", "fan_in_fan_out", "no_targets", "regex_lookahead"];
    for case in cases {
        let dir = adapter(&scratch, &read(of(&format!("adapter_config.{case}.json"))));
        let (found, notes) = loss(&scratch, &base(), &of("data.jsonl"), &[("adapter", &dir)]).unwrap();
        near(found, 5.103501, case);
        let said = notes.iter().any(|note| note.contains("c_attn, which no layer of the model is called"));
        assert_eq!((said, notes.len()), (case == "extra_target", usize::from(case == "extra_target")), "{notes:?}");
        // What was saved is loaded again.
        let saved = scratch.0.join("out").to_str().unwrap().to_string();
        let again = scratch.0.join("again").to_str().unwrap().to_string();
        let more = [("adapter", saved.as_str()), ("out", &again)];
        near(loss(&scratch, &base(), &of("data.jsonl"), &more).unwrap().0, 5.103501, case);
    }
    // The controls: without the adapter the loss is another; a target that is nowhere is an error where it was typed, and
    // so is a file whose tensors do not fit its targets.
    let (bare, _) = loss(&scratch, &base(), &of("data.jsonl"), &[]).unwrap();
    assert!((bare - 5.103501).abs() > 1e-3);
    let error = loss(&scratch, &base(), &of("data.jsonl"), &[("targets", "q_proj,c_attn")]).unwrap_err().to_string();
    assert!(error.contains("c_attn"), "{error}");
    let dir = adapter(&scratch, &read(of("adapter_config.extra_target.json")).replace("\"v_proj\"", "\"o_proj\""));
    let error = loss(&scratch, &base(), &of("data.jsonl"), &[("adapter", &dir)]).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn tensors_of_an_adapter_by_other_names_and_in_f64() {
    let scratch = Scratch::new("names");
    let of = |name: &str| field("adapters_peft_loads").join(name);
    let dir = adapter(&scratch, &read(of("adapter_config.bias_all.json")));
    let bytes = std::fs::read(of("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let wide = |data: &[u8]| -> Vec<u8> {
        data.as_chunks().0.iter().flat_map(|&b| f64::from(f32::from_le_bytes(b)).to_le_bytes()).collect()
    };
    let names: [fn(&str) -> String; 3] = [
        |name| name.replace(".weight", ".default.weight"),
        |name| name.replace("base_model.model.", ""),
        |name| name.into(),
    ];
    for name in names {
        let tensors: Vec<_> =
            file.tensors().into_iter().map(|(n, t)| (name(&n), t.shape().to_vec(), wide(t.data()))).collect();
        let views = tensors.iter().map(|(n, shape, data)| {
            (n.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F64, shape.clone(), data).unwrap())
        });
        let path = Path::new(&dir).join("adapter_model.safetensors");
        std::fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
        let (found, _) = loss(&scratch, &base(), &of("data.jsonl"), &[("adapter", &dir)]).unwrap();
        near(found, 5.103501, &tensors[0].0);
    }
}

/// A case of a folder of `gen_field.py`: a model of it, an adapter, and the loss that transformers and PEFT give.
struct Case {
    model: PathBuf,
    flags: Vec<(&'static str, String)>,
    rows: PathBuf,
    loss: f32,
    what: String,
}

impl Case {
    /// Those of a folder.
    fn all(scratch: &Scratch, name: &str) -> Vec<Case> {
        let of = |path: &str| field(name).join(path);
        let cases: Vec<Value> = serde_json::from_str(&read(of("expected.json"))).unwrap();
        let one = |(i, case): (usize, &Value)| {
            let task = case["task"].as_str().unwrap().to_string();
            let adapter = case["adapter"].as_str().map(|name| of(name).to_str().unwrap().to_string());
            let flags = [("task", Some(task)), ("adapter", adapter)];
            Case {
                model: changed(scratch, &of(case["model"].as_str().unwrap()), case, i),
                flags: flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
                rows: of("rows.jsonl"),
                loss: case["loss"].as_f64().unwrap() as f32,
                what: format!("{name} {case}"),
            }
        };
        cases.iter().enumerate().map(one).collect()
    }

    fn with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut flags: Vec<_> = self.flags.iter().map(|(key, value)| (*key, value.as_str())).collect();
        flags.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
        flags.extend_from_slice(more);
        flags
    }

    fn loss(&self, scratch: &Scratch, more: &[(&str, &str)]) -> trimtab::Result<f32> {
        loss(scratch, &self.model, &self.rows, &self.with(more)).map(|(loss, _)| loss)
    }

    /// The loss is the reference's, and so is that of the adapter that is saved again.
    fn holds(&self, scratch: &Scratch) {
        near(self.loss(scratch, &[]).unwrap_or_else(|e| panic!("{}: {e}", self.what)), self.loss, &self.what);
        let [saved, again] = ["out", "again"].map(|name| scratch.0.join(name).to_str().unwrap().to_string());
        near(self.loss(scratch, &[("adapter", &saved), ("out", &again)]).unwrap(), self.loss, &self.what);
    }
}

/// A model with other keys in its config and without some tensors, where a case has it so.
fn changed(scratch: &Scratch, model: &Path, case: &Value, number: usize) -> PathBuf {
    let (keys, without) = (case["config"].as_object().unwrap(), case["without"].as_array().unwrap());
    if keys.is_empty() && without.is_empty() {
        return model.into();
    }
    let dir = scratch.0.join(format!("model{number}"));
    std::fs::create_dir_all(&dir).unwrap();
    let mut config: Value = serde_json::from_str(&read(model.join("config.json"))).unwrap();
    keys.iter().for_each(|(key, value)| config[key] = value.clone());
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let mut tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.retain(|(name, _)| !without.iter().any(|other| other == name));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    dir
}

#[test]
fn an_adapters_copies_of_embedding_and_head_count() {
    let scratch = Scratch::new("copies");
    for case in Case::all(&scratch, "embedding_copies") {
        case.holds(&scratch);
        let bare = loss(&scratch, &case.model, &case.rows, &[]).unwrap().0;
        assert!((bare - case.loss).abs() > 1e-3, "without the adapter: {}", case.what);
        // A merged model has them; so does a run that was stopped and goes on.
        let merged = scratch.0.join("merged");
        let _ = std::fs::remove_dir_all(&merged);
        let (model, out) = (case.model.to_str().unwrap(), merged.to_str().unwrap());
        let config = RunConfig::resolve(None, &Flags::of(&case.with(&[("model", model), ("out", out)])).unwrap());
        let how = merge::How { dtype: Some(DType::F32), shard: u64::MAX, check: true };
        let report = merge::merge(&config.unwrap(), &how).unwrap();
        assert!(report.difference.unwrap().largest < 1e-4, "{}", case.what);
        near(loss(&scratch, &merged, &case.rows, &[]).unwrap().0, case.loss, &case.what);
        near(stopped(&scratch, &case), case.loss, &case.what);
    }
}

/// A run of two steps that is stopped after one and goes on: the loss of the second.
fn stopped(scratch: &Scratch, case: &Case) -> f32 {
    let [model, data, out] =
        [&case.model, &case.rows, &scratch.0.join("stopped")].map(|p| p.to_str().unwrap().to_string());
    let shared =
        [("model", model.as_str()), ("data", &data), ("out", &out), ("device", "cpu"), ("steps", "2"), ("lr", "0")];
    let flags = case.with(&[&shared[..], &[("shuffle", "false"), ("batch-size", "64")]].concat());
    let config = RunConfig::resolve(None, &Flags::of(&flags).unwrap()).unwrap();
    let error = training::run(&config, Start::Overwrite, &mut |event| match event {
        Event::Step(_) => Err(Error::Cancelled),
        _ => Ok(()),
    });
    assert!(matches!(error, Err(Error::Cancelled)), "{}", case.what);
    training::run(&config, Start::Resume, &mut |_| Ok(())).unwrap().last_loss
}

#[test]
fn copies_that_do_not_fit_are_refused() {
    let scratch = Scratch::new("misfit");
    let mut cases = Case::all(&scratch, "embedding_copies");
    let tied = cases.pop().unwrap().model;
    let untied = cases.pop().unwrap();
    let refused = |model: &Path| loss(&scratch, model, &untied.rows, &untied.with(&[])).unwrap_err().to_string();
    let error = refused(&tied);
    assert!(error.contains("embed_tokens.weight and") && error.contains("one weight for both"), "{error}");
    let larger = changed(&scratch, &untied.model, &json!({"config": {"vocab_size": 50}, "without": []}), 0);
    let error = refused(&larger);
    assert!(error.contains("a vocabulary of 48 tokens") && error.contains("resize_token_embeddings"), "{error}");
}

/// Biases of a head that is trained whole, which are there three times; IA3's layers by lists, patterns and PEFT's own tables.
#[test]
fn adapters_of_heads_and_of_ia3_are_read_as_peft_reads_them() {
    let scratch = Scratch::new("read");
    for name in ["roberta_bias_all", "ia3_modules", "ia3_head"] {
        Case::all(&scratch, name).iter().for_each(|case| case.holds(&scratch));
    }
}

#[test]
fn decoders_have_any_activation() {
    let scratch = Scratch::new("activations");
    let cases = Case::all(&scratch, "activations");
    assert_eq!(cases.len(), 8);
    for case in cases {
        near(case.loss(&scratch, &[]).unwrap_or_else(|e| panic!("{}: {e}", case.what)), case.loss, &case.what);
    }
}

#[test]
fn prompts_are_not_multiplied_as_gemmas_embeddings_are() {
    let scratch = Scratch::new("gemma");
    let case = Case::all(&scratch, "gemma_prompt").pop().unwrap();
    case.holds(&scratch);
    // Those that start as tokens have what the model computes with: the row times √16.
    let start = [("method", "prompt"), ("virtual-tokens", "40"), ("prompt-init", "sample-vocab")];
    loss(&scratch, &case.model, &case.rows, &start).unwrap();
    let prompt = peft::tensors(&scratch.0.join("out")).unwrap().remove("prompt_embeddings").unwrap();
    let table = peft::files::read_file(&case.model.join("model.safetensors")).unwrap();
    let rows: Vec<f32> = table["model.embed_tokens.weight"].data.iter().map(|x| x * 4.0).collect();
    assert!(prompt.data.chunks(16).all(|row| rows.chunks(16).any(|other| other == row)));
}

/// PEFT has rows for a decoder too where the task is from sequence to sequence, and nowhere else.
#[test]
fn prompts_have_rows_for_two_models_where_peft_has() {
    let scratch = Scratch::new("parts");
    for (case, task, rows) in [("t5-tokens-lora", "token-classification", 3), ("t5-ia3", "seq2seq", 6)] {
        let case = common::root("tests/fixtures/families2").join(case);
        let flags = [("task", task), ("method", "prompt"), ("virtual-tokens", "3")];
        loss(&scratch, &case.join("model"), &case.join("batch.jsonl"), &flags).unwrap();
        let out = scratch.0.join("out");
        assert_eq!(peft::tensors(&out).unwrap()["prompt_embeddings"].shape[0], rows, "{task}");
        assert_eq!(json(&out.join("adapter_config.json"))["num_transformer_submodules"], rows / 3, "{task}");
    }
}

#[test]
fn the_table_that_encoder_and_decoder_share_is_not_adapted() {
    let scratch = Scratch::new("shared");
    let case = Case::all(&scratch, "t5_shared").pop().unwrap();
    let new = |more: &[(&str, &str)]| loss(&scratch, &case.model, &case.rows, &[&[("task", "seq2seq")], more].concat());
    for error in [case.loss(&scratch, &[]), new(&[("targets", "shared,q")]).map(|(loss, _)| loss)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("target_modules with shared, which PEFT changes without effect"), "{error}");
    }
    new(&[("targets", "q")]).unwrap();
    // So it is where labels are read off the encoder alone; and PEFT's tokens take part only where nothing is around the model.
    let labels = common::root("tests/fixtures/families2/t5-tokens-lora");
    let (model, rows) = (labels.join("model"), labels.join("batch.jsonl"));
    for (key, value) in [("targets", "shared,q"), ("trainable-tokens", "5,9")] {
        let flags = [("task", "token-classification"), (key, value)];
        let error = loss(&scratch, &model, &rows, &flags).unwrap_err().to_string();
        assert!(error.contains("without effect"), "{key}: {error}");
    }
    new(&[("trainable-tokens", "5,9")]).unwrap();
}

/// Of the two biases that a masked-language head has, the output layer's is added where a file has it.
#[test]
fn the_bias_of_a_masked_head_is_its_output_layers() {
    let scratch = Scratch::new("masked");
    for case in Case::all(&scratch, "masked_head_biases") {
        near(case.loss(&scratch, &[]).unwrap_or_else(|e| panic!("{}: {e}", case.what)), case.loss, &case.what);
        // A model that is written has it where transformers looks for it.
        case.loss(&scratch, &[("method", "full")]).unwrap();
        let [given, written] = [&case.model, &scratch.0.join("out")]
            .map(|dir| peft::files::read_file(&dir.join("model.safetensors")).unwrap());
        let apart = json(&case.model.join("config.json"))["tie_word_embeddings"] == false;
        for (name, bias) in given.iter().filter(|(name, _)| name.ends_with(".decoder.bias") && apart) {
            assert_eq!(written.get(name), Some(bias), "{}: {name}", case.what);
        }
    }
}

/// A head with two biases that is trained whole: read, and written so that PEFT finds the one that is added.
#[test]
fn heads_over_the_vocabulary_are_trained_whole() {
    let scratch = Scratch::new("heads");
    for case in Case::all(&scratch, "masked_heads") {
        case.holds(&scratch);
        let apart = json(&case.model.join("config.json"))["tie_word_embeddings"] == false;
        let [given, written] = [field("masked_heads/roberta_adapter"), scratch.0.join("out")]
            .map(|dir| peft::files::read_tensors(&dir).unwrap().remove("base_model.model.lm_head.decoder.bias"));
        assert!(!apart || given.is_some() && given == written, "{}", case.what);
    }
}

/// A module that a few classes call otherwise is found in models of the others, and called so in what is written.
#[test]
fn decoders_for_answers_have_their_classes_names() {
    let scratch = Scratch::new("answers");
    for case in Case::all(&scratch, "answers") {
        case.holds(&scratch);
    }
    let case = Case::all(&scratch, "answers").pop().unwrap();
    let saved = peft::tensors(&scratch.0.join("again")).unwrap();
    assert!(saved.keys().any(|name| name.starts_with("base_model.model.transformer.layers.0.")), "{:?}", saved.keys());
    // The same weights as a model that continues text has them.
    let other = scratch.0.join("causal");
    std::fs::create_dir_all(&other).unwrap();
    let config = read(case.model.join("config.json")).replace("ForQuestionAnswering", "ForCausalLM");
    std::fs::write(other.join("config.json"), config).unwrap();
    let bytes = std::fs::read(case.model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let renamed = tensors.into_iter().map(|(name, tensor)| (name.replace("transformer.", "model."), tensor));
    std::fs::write(other.join("model.safetensors"), safetensors::serialize(renamed, None).unwrap()).unwrap();
    let (found, _) = loss(&scratch, &other, &case.rows, &case.with(&[])).unwrap();
    near(found, case.loss, "of a causal model");
}

/// An encoder with an embedding of its own would be read as if it had the shared one.
#[test]
fn a_t5_whose_stacks_do_not_share_their_embedding_is_refused() {
    let (scratch, model) = (Scratch::new("stacks"), common::root("tests/fixtures/families2/t5-full/model"));
    std::fs::copy(model.join("config.json"), scratch.0.join("config.json")).unwrap();
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shared = tensors.tensor("shared.weight").unwrap();
    for (at, refused) in [(None, false), (Some(5), true)] {
        let mut own = shared.data().to_vec();
        at.iter().for_each(|&i: &usize| own[i] ^= 1);
        let own = safetensors::tensor::TensorView::new(shared.dtype(), shared.shape().to_vec(), &own).unwrap();
        let name = "encoder.embed_tokens.weight".to_string();
        let all = tensors.tensors().into_iter().filter(|(held, _)| *held != name).chain([(name.clone(), own)]);
        std::fs::write(scratch.0.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
        assert_eq!(Base::open(&scratch.0).is_err(), refused, "{at:?}");
    }
}
