//! Tests of `files.rs` on adapters that PEFT 0.21.2 wrote.

use std::path::PathBuf;

use super::*;
use crate::peft::Targets;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name)
}

/// A folder that is removed when the test is done.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trimtab-files-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn pairs(adapter: &Adapter) -> Vec<(&str, &HostTensor)> {
    adapter.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

fn shapes(adapter: &Adapter) -> Vec<(String, Vec<usize>)> {
    adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect()
}

#[test]
fn what_peft_wrote_is_written_again_byte_for_byte() {
    let plain = ["lora", "rslora", "dora", "lora_rankpattern", "multi_adapter", "multi_adapter/second"];
    for name in plain.into_iter().chain(["lora_embed", "lora_lmhead", "lora_trainable_tokens", "lora_bias_all"]) {
        let scratch = Scratch::new(&name.replace('/', "-"));
        let adapter = read_adapter(&fixture(name)).unwrap();
        let mut reversed = pairs(&adapter);
        reversed.reverse(); // the order they are given in must not matter
        write_adapter(&scratch.0, &adapter.config, Tensors::held(reversed)).unwrap();
        let ours = std::fs::read(scratch.0.join(WEIGHTS_FILE)).unwrap();
        assert!(ours == std::fs::read(fixture(name).join(WEIGHTS_FILE)).unwrap(), "{name}");
        let again = read_adapter(&scratch.0).unwrap();
        assert_eq!(again.tensors, adapter.tensors);
        assert_eq!(again.config.to_json(), adapter.config.to_json());
        let files = std::fs::read_dir(&scratch.0).unwrap().count();
        assert_eq!(files, 3, "{name}: no half-written file stays");
    }
}

/// The names and shapes follow from the config and the model's linear layers.
#[test]
fn names_are_those_of_peft() {
    let adapter = read_adapter(&fixture("lora_rankpattern")).unwrap();
    let mut expected = Vec::new();
    for layer in 0..2 {
        for (name, width) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)] {
            let module = format!("model.layers.{layer}.self_attn.{name}");
            if let Some(spec) = adapter.config.resolve(&module).unwrap() {
                expected.push((lora_a(&module), vec![spec.rank, 64]));
                expected.push((lora_b(&module), vec![width, spec.rank]));
            }
        }
    }
    adapter.check(&fixture("lora_rankpattern"), &expected).unwrap();
}

#[test]
fn an_adapter_that_fits_in_part_is_refused() {
    let dir = fixture("lora");
    let adapter = read_adapter(&dir).unwrap();
    let good = shapes(&adapter);
    adapter.check(&dir, &good).unwrap();

    let mut renamed = good.clone();
    renamed[0].0 = renamed[0].0.replace("self_attn", "self_attention");
    let error = adapter.check(&dir, &renamed).unwrap_err().to_string();
    for part in ["1 tensor the model has no place for", "1 tensor missing", "self_attention", "nearest"] {
        assert!(error.contains(part), "{error}");
    }
    let error = adapter.check(&dir, &[]).unwrap_err().to_string();
    assert!(error.contains("8 tensors") && error.contains("and 4 more"), "{error}");

    let mut wider = good.clone();
    wider[0].1[0] += 1;
    assert!(adapter.check(&dir, &wider).unwrap_err().to_string().contains("[4, 64]"));
}

/// The table of an embedding may be beside its factors, and beside nothing else.
#[test]
fn the_table_of_an_adapted_embedding_may_be_there() {
    let dir = fixture("lora_embed");
    let adapter = read_adapter(&dir).unwrap();
    let table = base_layer("model.embed_tokens");
    let mut expected = shapes(&adapter);
    adapter.check(&dir, &expected).unwrap();
    expected.retain(|(name, _)| *name != table);
    assert_eq!(expected.len() + 1, adapter.tensors.len());
    adapter.check(&dir, &expected).unwrap();
    expected.retain(|(name, _)| !name.contains("lora_embedding"));
    assert!(adapter.check(&dir, &expected).unwrap_err().to_string().contains(&table));
}

#[test]
fn damaged_files_are_errors() {
    let scratch = Scratch::new("damaged");
    let dir = &scratch.0;
    assert!(read_adapter(dir).unwrap_err().to_string().contains("a folder without adapter_config.json"));
    let config = std::fs::read(fixture("lora").join(CONFIG_FILE)).unwrap();
    std::fs::write(dir.join(CONFIG_FILE), config).unwrap();
    assert!(read_adapter(dir).unwrap_err().to_string().contains("a folder without adapter_model.safetensors"));
    std::fs::write(dir.join(LEGACY_FILE), b"pickle").unwrap();
    let error = read_adapter(dir).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin: found no archive"), "{error}");
    let whole = std::fs::read(fixture("lora").join(WEIGHTS_FILE)).unwrap();
    for cut in [0, 7, 8, 100, 1016, whole.len() - 1] {
        std::fs::write(dir.join(WEIGHTS_FILE), &whole[..cut]).unwrap();
        assert!(matches!(read_adapter(dir), Err(Error::File { .. })), "cut at {cut}");
        let error = read_adapter(dir).unwrap_err().to_string();
        let want = match cut {
            0 => "found an empty file".into(),
            7 => "found a file of 7 bytes".into(),
            cut if cut < 1024 => format!("in a file of {cut}: it is cut short"),
            cut => format!("found {cut} bytes of {}, which its header tells of: it is cut short", whole.len()),
        };
        assert!(error.contains(&want), "cut at {cut}: {error}");
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(dir.join(WEIGHTS_FILE), &huge).unwrap();
    assert!(matches!(read_adapter(dir), Err(Error::File { .. })));
    std::fs::write(dir.join(WEIGHTS_FILE), &whole).unwrap();
    read_adapter(dir).unwrap(); // the control: whole again
}

#[test]
fn half_precision_is_widened() {
    let scratch = Scratch::new("half");
    let config = std::fs::read(fixture("lora").join(CONFIG_FILE)).unwrap();
    std::fs::write(scratch.0.join(CONFIG_FILE), config).unwrap();
    let values = [1.5f32, -0.25, 3.0];
    let bf16: Vec<u8> = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let f16: Vec<u8> = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let views = [
        ("a", TensorView::new(Dtype::BF16, vec![3], &bf16).unwrap()),
        ("b", TensorView::new(Dtype::F16, vec![3], &f16).unwrap()),
    ];
    std::fs::write(scratch.0.join(WEIGHTS_FILE), safetensors::serialize(views, None).unwrap()).unwrap();
    let adapter = read_adapter(&scratch.0).unwrap();
    assert!(adapter.tensors.values().all(|t| t.data == values));
    let ids = TensorView::new(Dtype::I32, vec![1], &[0; 4]).unwrap();
    std::fs::write(scratch.0.join(WEIGHTS_FILE), safetensors::serialize([("a", ids)], None).unwrap()).unwrap();
    assert!(read_adapter(&scratch.0).unwrap_err().to_string().contains("I32"));
}

#[test]
fn a_diverged_adapter_is_not_written() {
    let scratch = Scratch::new("diverged");
    let config = AdapterConfig::lora(1, 2.0, Targets::AllLinear);
    let write = |data: &[f32]| {
        let tensor = HostTensor { shape: vec![2], data: data.to_vec() };
        write_adapter(&scratch.0, &config, Tensors::held(vec![("x", &tensor)]))
    };
    let error = write(&[0.0, f32::NAN]).unwrap_err();
    assert!(error.to_string().contains("NaN in x"), "{error}");
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 0);
    assert!(write(&[0.0]).is_err());
    write(&[0.0, 1.0]).unwrap();
}

#[test]
fn the_card_has_a_header_the_hub_reads() {
    let mut config = AdapterConfig::lora(4, 8.0, Targets::AllLinear);
    config.base_model = Some("HuggingFaceTB/SmolLM2-135M".into());
    let text = lora_card(&config, &what(&config)).text();
    let header = text.strip_prefix("---\n").and_then(|t| t.split_once("\n---\n")).unwrap().0;
    assert!(header.contains("library_name: peft") && header.contains("- lora"));
    assert!(header.contains(r#"- "base_model:adapter:HuggingFaceTB/SmolLM2-135M""#), "{header}");
}
