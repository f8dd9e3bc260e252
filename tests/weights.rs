//! Model files: what is read is what the libraries that wrote them say, and no file makes us panic.

#[path = "common/scratch.rs"]
mod scratch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use scratch::Scratch;
use serde_json::json;
use trimtab::Error;
use trimtab::dtype::DType;
use trimtab::quant::ggml::GgmlType;
use trimtab::quant::nf4;
use trimtab::weights::gguf::Gguf;
use trimtab::weights::safetensors::{Dtype, SafetensorsFile};
use trimtab::weights::{Checkpoint, Storage, Tensor, write_safetensors, write_safetensors_with};

fn path(rest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(rest)
}

impl Scratch {
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn bf16s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
}

/// Every row range of a few kinds is a part of the whole.
fn check_rows(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let whole = checkpoint.read(name).unwrap();
    let shape = &checkpoint.info(name).unwrap().shape;
    let columns = *shape.last().unwrap();
    let rows = whole.len() / columns;
    for range in [0..1, 0..rows, rows - 1..rows, rows / 3..rows / 2 + 1, rows..rows] {
        let mut part = vec![0.0; range.len() * columns];
        checkpoint.read_rows(name, range.clone(), &mut part).unwrap();
        assert_eq!(bits(&part), bits(&whole[range.start * columns..range.end * columns]), "{name} {range:?}");
    }
    // Controls: one row too many, and room for one value too few.
    let mut out = vec![0.0; columns * (rows + 1)];
    assert!(checkpoint.read_rows(name, 0..rows + 1, &mut out).is_err());
    assert!(checkpoint.read_rows(name, 0..1, &mut out[..columns - 1]).is_err());
    whole
}

#[test]
fn a_bf16_folder_reads_as_stored() {
    let folder = path("fixtures/tiny_llama_bf16");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.config()["model_type"], "llama");
    let file = SafetensorsFile::open(folder.join("model.safetensors")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), file.names());
    for name in checkpoint.names() {
        let view = file.get(name).unwrap();
        let info = checkpoint.info(name).unwrap();
        assert_eq!((info.shape.as_slice(), info.stored), (view.shape, Storage::As(DType::BF16)));
        assert_eq!(bits(&check_rows(&checkpoint, name)), bits(&bf16s(view.bytes)), "{name}");
        assert_eq!(checkpoint.raw(name), Some((DType::BF16, view.bytes)));
        assert_eq!(checkpoint.nf4(name).unwrap(), None);
    }
    assert!(checkpoint.info("model.layers.7.mlp.up_proj.weight").is_none());
    assert!(checkpoint.read("model.layers.7.mlp.up_proj.weight").is_err());
}

#[test]
fn shards_are_one_checkpoint() {
    let whole = Checkpoint::open(path("fixtures/golden/base")).unwrap();
    let sharded = Checkpoint::open(path("fixtures/base_sharded")).unwrap();
    assert_eq!(whole.names().collect::<Vec<_>>(), sharded.names().collect::<Vec<_>>());
    for name in whole.names() {
        assert_eq!(bits(&whole.read(name).unwrap()), bits(&sharded.read(name).unwrap()), "{name}");
    }
}

/// bitsandbytes quantized the bf16 model, so our quantizer must give its bytes from that model.
#[test]
fn bitsandbytes_4bit_checkpoints() {
    let original = Checkpoint::open(path("fixtures/tiny_llama_bf16")).unwrap();
    for (folder, dtype) in [("tiny_llama_bnb4", DType::Nf4), ("tiny_llama_bnb4_dq", DType::Nf4Dq)] {
        let checkpoint = Checkpoint::open(path("fixtures").join(folder)).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), original.names().collect::<Vec<_>>());
        let mut quantized = 0;
        for name in checkpoint.names() {
            let info = checkpoint.info(name).unwrap();
            assert_eq!(info.shape, original.info(name).unwrap().shape, "{name}");
            let values = original.read(name).unwrap();
            let read = check_rows(&checkpoint, name);
            if info.stored == Storage::As(DType::BF16) {
                assert_eq!(bits(&read), bits(&values), "{name}");
                continue;
            }
            assert_eq!(info.stored, Storage::As(dtype), "{name}");
            let (found, bytes) = checkpoint.nf4(name).unwrap().unwrap();
            assert_eq!(found, dtype);
            assert_eq!(bytes.len(), dtype.bytes(values.len()));
            assert!(bytes == nf4::quantize(&values, dtype == DType::Nf4Dq).unwrap(), "{folder} {name}");
            let mut decoded = vec![0.0; values.len()];
            nf4::dequantize(&bytes, dtype == DType::Nf4Dq, &mut decoded);
            assert_eq!(bits(&read), bits(&decoded), "{name}");
            assert_eq!(checkpoint.raw(name), None);
            quantized += 1;
        }
        assert_eq!(quantized, 7, "{folder}: the linear layers of one block");
    }
}

#[test]
fn bitsandbytes_8bit_checkpoints() {
    let original = Checkpoint::open(path("fixtures/tiny_llama_bf16")).unwrap();
    let checkpoint = Checkpoint::open(path("fixtures/tiny_llama_bnb8")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), original.names().collect::<Vec<_>>());
    let mut quantized = 0;
    for name in checkpoint.names() {
        let (values, read) = (original.read(name).unwrap(), check_rows(&checkpoint, name));
        if checkpoint.info(name).unwrap().stored != Storage::Int8 {
            assert_eq!(bits(&read), bits(&values), "{name}");
            continue;
        }
        quantized += 1;
        let columns = *checkpoint.info(name).unwrap().shape.last().unwrap();
        for (x, y) in values.chunks(columns).zip(read.chunks(columns)) {
            let step = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            // bitsandbytes quantizes from f16, hence a little more than half a step.
            assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 0.6 * step), "{name}");
            assert!(x.iter().zip(y).any(|(x, y)| (x + y).abs() > 0.6 * step), "{name}: the control");
        }
    }
    assert_eq!(quantized, 7);
}

/// The tensors of a golden safetensors file, which are all f32.
fn check_gguf(model: &str) -> Checkpoint {
    let checkpoint = Checkpoint::open(path(&format!("golden/gguf_{model}.gguf"))).unwrap();
    let expected = SafetensorsFile::open(path(&format!("golden/gguf_{model}.safetensors"))).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), expected.names());
    for name in checkpoint.names() {
        let view = expected.get(name).unwrap();
        assert_eq!(checkpoint.info(name).unwrap().shape, view.shape, "{name}");
        assert_eq!(bits(&check_rows(&checkpoint, name)), bits(&f32s(view.bytes)), "{name}");
    }
    checkpoint
}

#[test]
fn gguf_llama_is_the_hugging_face_model() {
    let checkpoint = check_gguf("llama");
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "sliding_window": null,
        "vocab_size": 300,
        "tie_word_embeddings": false,
        "attention_bias": true,
        "mlp_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": null,
    });
    assert_eq!(checkpoint.config(), &expected);
    // The control: the stored rows of a permuted weight are not the rows in order.
    let gguf = checkpoint.gguf().unwrap();
    let bias = f32s(gguf.data(gguf.tensor("blk.0.attn_q.bias").unwrap()));
    assert_ne!(bits(&bias), bits(&checkpoint.read("model.layers.0.self_attn.q_proj.bias").unwrap()));
    assert_eq!(checkpoint.raw("model.layers.0.self_attn.q_proj.bias"), None);
    let (dtype, norm) = checkpoint.raw("model.norm.weight").unwrap();
    assert_eq!((dtype, bits(&f32s(norm))), (DType::F32, bits(&checkpoint.read("model.norm.weight").unwrap())));
    assert_eq!(checkpoint.info("lm_head.weight").unwrap().stored, Storage::Ggml(GgmlType::Q6_K));
}

#[test]
fn gguf_gemma_is_the_hugging_face_model() {
    let checkpoint = check_gguf("gemma");
    let config = checkpoint.config();
    assert_eq!(config["model_type"], "gemma");
    assert_eq!(config["hidden_act"], "gelu_pytorch_tanh");
    assert_eq!(config["head_dim"], 24);
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!(config["rope_theta"], 10000.0);
}

/// The real model, where it has been fetched: its rows against the Python package's folder.
#[test]
fn smollm2_gguf() {
    let models = std::env::var_os("TRIMTAB_MODELS").map_or_else(|| path("../models"), PathBuf::from);
    let (file, folder) = (models.join("SmolLM2-135M-Instruct.Q4_1.gguf"), models.join("smollm2-hf"));
    if !file.exists() || !folder.exists() {
        eprintln!("skipped: no SmolLM2 in {} (set TRIMTAB_MODELS)", models.display());
        return;
    }
    let (gguf, folder) = (Checkpoint::open(file).unwrap(), Checkpoint::open(folder).unwrap());
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"] {
        assert_eq!(gguf.config()[key], folder.config()[key], "{key}");
    }
    assert_eq!(gguf.names().collect::<Vec<_>>(), folder.names().filter(|n| *n != "lm_head.weight").collect::<Vec<_>>());
    for name in gguf.names() {
        assert!(bits(&gguf.read(name).unwrap()) == bits(&folder.read(name).unwrap()), "{name}");
    }
}

/// Truncated at every length and with every byte of the header changed, a file is refused or read,
/// and reading it never panics.
#[test]
fn damaged_files_do_not_panic() {
    const FLIPS: [u8; 3] = [0x01, 0x02, 0x80];
    let scratch = Scratch::new("damaged");
    let read_all = |path: &Path| -> Result<(), Error> {
        let checkpoint = Checkpoint::open(path)?;
        for name in checkpoint.names() {
            checkpoint.read(name)?;
            checkpoint.nf4(name)?;
        }
        Ok(())
    };
    let mut refused = 0;
    let mut tried = 0;
    let mut check = |path: &Path| {
        tried += 1;
        refused += usize::from(read_all(path).is_err());
    };

    for model in ["gemma", "llama"] {
        let whole = std::fs::read(path(&format!("golden/gguf_{model}.gguf"))).unwrap();
        let header = Gguf::open(path(&format!("golden/gguf_{model}.gguf"))).unwrap();
        let header = header.tensors().map(|t| t.bytes.start).min().unwrap();
        assert!(read_all(&scratch.file("whole.gguf", &whole)).is_ok(), "the control");
        // The steps are coprime to the formats' sizes.
        for end in (0..header + 64).step_by(101).chain([whole.len() - 1]) {
            check(&scratch.file("cut.gguf", &whole[..end]));
        }
        for i in (0..header).step_by(19) {
            let mut bytes = whole.clone();
            bytes[i] ^= FLIPS[i % 3];
            check(&scratch.file("flip.gguf", bytes));
        }
        // Lengths that would overflow, at every aligned place of the first bytes.
        for i in 0..200.min(header - 8) {
            let mut bytes = whole.clone();
            bytes[i..i + 8].copy_from_slice(&(u64::MAX - 7).to_le_bytes());
            check(&scratch.file("huge.gguf", bytes));
        }
    }

    for folder in ["tiny_llama_bf16", "tiny_llama_bnb4_dq", "tiny_llama_bnb8"] {
        let from = path("fixtures").join(folder);
        let config = std::fs::read(from.join("config.json")).unwrap();
        let whole = std::fs::read(from.join("model.safetensors")).unwrap();
        scratch.file("config.json", &config);
        scratch.file("model.safetensors", &whole);
        assert!(read_all(&scratch.0).is_ok(), "the control");
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for end in (0..header + 64).step_by(101).chain([whole.len() - 1]) {
            scratch.file("model.safetensors", &whole[..end]);
            check(&scratch.0);
        }
        for i in (0..header).step_by(19) {
            let mut bytes = whole.clone();
            bytes[i] ^= FLIPS[i % 3];
            scratch.file("model.safetensors", bytes);
            check(&scratch.0);
        }
        scratch.file("model.safetensors", &whole);
        for i in (0..config.len()).step_by(7) {
            let mut bytes = config.clone();
            bytes[i] ^= 0x01;
            scratch.file("config.json", bytes);
            check(&scratch.0);
        }
    }
    assert!(refused > tried / 2, "{refused} of {tried} damaged files were refused");
    assert!(refused < tried, "some damage only changes a name: it is read");
}

/// What is wrong is told with what to do.
#[test]
fn errors_say_what_to_do() {
    let scratch = Scratch::new("errors");
    let config = |quantization: &str| format!("{{\"model_type\": \"llama\"{quantization}}}");
    let open = |scratch: &Scratch| match Checkpoint::open(&scratch.0) {
        Ok(_) => panic!("opened"),
        Err(e) => e.to_string(),
    };
    let expect = |error: String, part: &str| assert!(error.contains(part), "{error} should tell of {part}");

    expect(open(&scratch), "config.json");
    scratch.file("config.json", "[1]");
    expect(open(&scratch), "JSON object");
    scratch.file("config.json", config(""));
    expect(open(&scratch), "model.safetensors.index.json");
    scratch.file("pytorch_model.bin", "");
    expect(open(&scratch), "pickle");
    scratch.file("model.safetensors.index.json", r#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    expect(open(&scratch), "weight_map");
    scratch.file("model.safetensors.index.json", r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#);
    expect(open(&scratch), "model-00001-of-00002.safetensors");
    scratch.file("config.json", config(r#", "quantization_config": {"quant_method": "gptq"}"#));
    expect(open(&scratch), "gptq");
    let file = scratch.file("x.gguf", b"GGUF\x00\x00\x00\x03rest of a big-endian file");
    expect(Checkpoint::open(file).err().unwrap().to_string(), "big-endian");

    // bitsandbytes tensors that are not NF4 in blocks of 64.
    let whole = std::fs::read(path("fixtures/tiny_llama_bnb4/model.safetensors")).unwrap();
    scratch.file("config.json", config(""));
    for (from, to, part) in [
        ("\"blocksize\": 64", "\"blocksize\": 32", "blocks of 32"),
        ("bitsandbytes__nf4", "bitsandbytes__fp4", "in fp4"),
        ("\"shape\": [64, 64]", "\"shape\": [64, 65]", "2080 bytes"),
    ] {
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        scratch.file("model.safetensors", bytes);
        expect(open(&scratch), part);
    }
}

#[test]
fn written_files_are_the_librarys() {
    let scratch = Scratch::new("write");
    // A file that Python's safetensors wrote comes out the same.
    for name in ["fixtures/tiny_llama_bnb4_dq/model.safetensors", "fixtures/peft/lora/adapter_model.safetensors"] {
        let file = SafetensorsFile::open(path(name)).unwrap();
        let tensors = file.names().into_iter().rev().map(|name| {
            let view = file.get(&name).unwrap();
            Tensor { name, dtype: view.dtype, shape: view.shape.to_vec(), bytes: Cow::Borrowed(view.bytes) }
        });
        let out = scratch.0.join("out.safetensors");
        write_safetensors(&out, &file.metadata(), tensors).unwrap();
        assert!(std::fs::read(&out).unwrap() == std::fs::read(path(name)).unwrap(), "{name}");
    }
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let scratch = Scratch::new("fail");
    let out = scratch.file("out.safetensors", "what was there");
    let infos = |n| vec![("a".to_string(), Dtype::F32, vec![n])];
    let write = |n: usize, bytes: &[u8]| {
        write_safetensors_with(&out, &BTreeMap::new(), infos(n), &mut |_, o| {
            o.write_all(bytes).map_err(|e| Error::io("a", e))
        })
    };
    assert!(write(2, &[0; 7]).is_err(), "too few bytes");
    assert!(write(2, &[0; 9]).is_err(), "too many bytes");
    assert!(write(usize::MAX, &[]).is_err(), "a size that overflows");
    assert_eq!(std::fs::read(&out).unwrap(), b"what was there");
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1, "no temporary file is left");
    write(2, &[0; 8]).unwrap();
    assert_eq!(SafetensorsFile::open(&out).unwrap().get("a").unwrap().shape, [2]);
    let twice = [infos(1), infos(1)].concat();
    assert!(write_safetensors_with(&out, &BTreeMap::new(), twice, &mut |_, _| Ok(())).is_err(), "one name twice");
}
