//! Tokenizers from folders and GGUF files: the same ids as the libraries give, and streams of text
//! that never hold half a character.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::weights::Checkpoint;
use trimtab::weights::gguf::Gguf;

fn path(rest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(rest)
}

fn gguf(name: &str) -> Gguf {
    Gguf::open(path(&format!("golden/gguf_{name}.gguf"))).unwrap()
}

const TEXTS: [&str; 12] = [
    "",
    " ",
    "the cat sat",
    " the  cat   sat in the rain ",
    "hello world, hello 1212",
    "naïve café, crème brûlée",
    "日本語 🦀🦀 ünïcödé",
    "a\nb\n\n\tc\r\n",
    "<s>the</s> <|user|>the <|im_start|>hello<|im_end|>",
    "the the the thethe",
    "e\u{301}\u{200d}👩‍👩‍👧‍👦 flags 🇫🇷",
    "\u{2581}the \u{FFFD} é",
];

/// Feeds a text's ids to a stream, one by one.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = tokenizer.decode_stream(&[], false).unwrap();
    let parts = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (parts, stream.finish().unwrap())
}

#[test]
fn what_is_encoded_comes_back() {
    for name in ["llama", "gemma"] {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        for text in TEXTS {
            let ids = tokenizer.encode(text, false).unwrap();
            let back = tokenizer.decode(&ids, false).unwrap();
            let (parts, rest) = stream(&tokenizer, &ids);
            assert_eq!(parts.concat() + &rest, back, "{name}: {text:?} streamed as {parts:?}");
            // SentencePiece's space symbol cannot be told from a space, and a space is put in front
            // of what follows a special token.
            if name == "llama" && (text.contains('\u{2581}') || text.contains("<s>")) {
                continue;
            }
            assert_eq!(back, text, "{name}");
            if !text.contains('\u{FFFD}') {
                // A run of single bytes is told when it is over.
                assert!(name == "llama" || rest.is_empty(), "{name}: {text:?}");
                assert!(!parts.concat().contains('\u{FFFD}'), "{name}: {text:?} {parts:?}");
            }
        }
    }
}

/// Merges the pair of neighbours with the best score, the first of equals, until none is left: what
/// SentencePiece does, written down once more.
fn sentence_piece(gguf: &Gguf, text: &str) -> Vec<u32> {
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let types = gguf.numbers("tokenizer.ggml.token_type").unwrap().unwrap();
    let scores = gguf.numbers("tokenizer.ggml.scores").unwrap().unwrap();
    let id = |piece: &str| tokens.iter().zip(&types).position(|(t, &ty)| *t == piece && ty == 1.0);
    let mut pieces: Vec<String> = format!(" {text}").replace(' ', "\u{2581}").chars().map(String::from).collect();
    loop {
        let pairs = pieces.windows(2).enumerate();
        let best = pairs.filter_map(|(i, w)| id(&w.concat()).map(|id| (scores[id], i)));
        let Some((_, i)) = best.reduce(|a, b| if b.0 > a.0 { b } else { a }) else { break };
        let right = pieces.remove(i + 1);
        pieces[i] += &right;
    }
    let spell = |piece: &String| match id(piece) {
        Some(id) => vec![id as u32],
        None => {
            piece.bytes().map(|b| tokens.iter().position(|t| *t == format!("<0x{b:02X}>")).unwrap() as u32).collect()
        }
    };
    pieces.iter().flat_map(spell).collect()
}

#[test]
fn sentence_piece_merges_by_score() {
    let gguf = gguf("llama");
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let mut merged = 0;
    for text in TEXTS.iter().filter(|t| !t.is_empty() && !t.contains('<')) {
        let expected = sentence_piece(&gguf, text);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        merged += usize::from(expected.len() < text.len());
    }
    assert!(merged > 2, "the control: some texts are merged");
    // What begins a sequence comes only when asked for.
    let with = tokenizer.encode("the", true).unwrap();
    assert_eq!(with, [vec![1], tokenizer.encode("the", false).unwrap()].concat());
    assert_eq!((tokenizer.bos(), tokenizer.begins_with().unwrap()), (Some(1), Some(1)));
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
    let user = tokenizer.token_to_id("<|user|>").unwrap();
    assert!(tokenizer.encode("the<|user|>the", false).unwrap().contains(&user));
}

#[test]
fn byte_level_merges_in_order() {
    let tokenizer = Tokenizer::from_gguf(&gguf("gemma")).unwrap();
    let pieces = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, true).unwrap();
        ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
    };
    // smollm: every digit is a word, so "1 2" is never merged.
    for (text, expected) in [
        ("hello world", vec!["hello", "Ġw", "o", "r", "l", "d"]),
        ("12", vec!["1", "2"]),
        ("hell", vec!["hell"]),
        ("<|im_start|>he<|im_end|>", vec!["<|im_start|>", "he", "<|im_end|>"]),
    ] {
        assert_eq!(pieces(text), expected);
    }
    assert_eq!(tokenizer.bos().and_then(|id| tokenizer.id_to_token(id)).as_deref(), Some("<|im_start|>"));
    assert_eq!(tokenizer.begins_with().unwrap(), None);
    let ends: Vec<_> = tokenizer.eos_ids().iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
    assert_eq!(ends, ["<|im_end|>"]);
    let ids = tokenizer.encode("<|im_start|>he<|im_end|>", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "he");
}

/// Ids in any order, most of which are no text.
#[test]
fn streams_of_nonsense_add_up_to_the_whole() {
    let mut equal = 0;
    for name in ["llama", "gemma"] {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let mut state = 1u32;
        for length in [1usize, 2, 3, 5, 9, 30, 200] {
            for _ in 0..20 {
                let ids: Vec<u32> = (0..length)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 16) % 310
                    })
                    .collect();
                let (parts, rest) = stream(&tokenizer, &ids);
                let whole = tokenizer.decode(&ids, false).unwrap();
                assert_eq!(parts.concat() + &rest, whole, "{name} {ids:?}");
                equal += usize::from(!parts.concat().is_empty());
            }
        }
    }
    assert!(equal > 100, "the control: {equal} streams were compared");
}

#[test]
fn half_a_character_waits() {
    let tokenizer = Tokenizer::from_gguf(&gguf("gemma")).unwrap();
    let ids = tokenizer.encode("a🦀b", false).unwrap();
    let (parts, rest) = stream(&tokenizer, &ids);
    assert_eq!(parts.iter().filter(|p| !p.is_empty()).collect::<Vec<_>>(), ["a", "🦀", "b"]);
    assert_eq!(rest, "");
    // Cut in the middle, the half is told at the end only.
    let (parts, rest) = stream(&tokenizer, &ids[..ids.len() - 2]);
    assert_eq!(parts.concat(), "a");
    assert_eq!(rest, "\u{FFFD}");
}

/// A folder's special tokens come from four files.
#[test]
fn folders() {
    let folder = std::env::temp_dir().join(format!("trimtab-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let from_gguf = Tokenizer::from_gguf(&gguf("gemma")).unwrap();
    from_gguf.save(folder.join("tokenizer.json")).unwrap();
    let write = |name: &str, json: Value| std::fs::write(folder.join(name), json.to_string()).unwrap();
    write(
        "tokenizer_config.json",
        json!({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": "x"}),
    );
    write("generation_config.json", json!({"eos_token_id": [5, 7], "pad_token_id": 9}));
    write("config.json", json!({"eos_token_id": 7, "bos_token_id": 3}));

    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let id = |token| from_gguf.token_to_id(token).unwrap();
    assert_eq!(tokenizer.bos(), Some(id("<|im_start|>")));
    assert_eq!(tokenizer.eos_ids(), [id("<|im_end|>"), 5, 7]);
    assert_eq!((tokenizer.pad(), tokenizer.chat_template()), (Some(9), Some("x")));
    assert_eq!(tokenizer.vocab_size(), from_gguf.vocab_size());
    for text in TEXTS {
        assert_eq!(tokenizer.encode(text, true).unwrap(), from_gguf.encode(text, true).unwrap());
    }

    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    assert!(Tokenizer::from_folder(&folder).is_err(), "the control");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    std::fs::write(folder.join("tokenizer.model"), "").unwrap();
    assert!(Tokenizer::from_folder(&folder).err().unwrap().to_string().contains("use_fast"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Damaged metadata is refused or used, and nothing panics.
#[test]
fn damaged_tokenizers_do_not_panic() {
    let folder = std::env::temp_dir().join(format!("trimtab-damaged-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let whole = std::fs::read(path("golden/gguf_gemma.gguf")).unwrap();
    let file = folder.join("x.gguf");
    let (mut refused, mut tried) = (0, 0);
    for i in (0..7_000).step_by(29) {
        let mut bytes = whole.clone();
        bytes[i] ^= 1 << (i % 8);
        std::fs::write(&file, bytes).unwrap();
        tried += 1;
        let used = Gguf::open(&file).and_then(|g| Tokenizer::from_gguf(&g)).and_then(|t| {
            let ids = t.encode(TEXTS[5], true)?;
            t.decode(&ids, false)
        });
        refused += usize::from(used.is_err());
    }
    assert!(refused > 0 && refused < tried, "{refused} of {tried}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What the `tokenizers` crate panics on is an error, and so is what is no JSON, with its place.
#[test]
fn a_panic_of_the_library_is_an_error() {
    let folder = std::env::temp_dir().join(format!("trimtab-panicking-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let with = |normalizer: Value| {
        let model = json!({"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"});
        json!({"version": "1.0", "normalizer": normalizer, "model": model}).to_string()
    };
    let loaded = |text: &str| {
        std::fs::write(folder.join("tokenizer.json"), text).unwrap();
        Tokenizer::from_folder(&folder)
    };
    assert_eq!(loaded(&with(Value::Null)).unwrap().encode("a", false).unwrap(), [0], "the control");
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "!"});
    let decoder = r#"{"version": "1.0", "decoder": {"type": "Fuse"type": 1}, "model": {}}"#;
    for (text, part) in [(with(charsmap), "does not load (Precompiled"), (decoder.into(), "line 1 column")] {
        let error = loaded(&text).err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("tokenizer.json"), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The real model, where it has been fetched: ids that transformers gives for its GGUF file.
#[test]
fn smollm2() {
    let models = std::env::var_os("TRIMTAB_MODELS").map_or_else(|| path("../models"), PathBuf::from);
    let (file, folder) = (models.join("SmolLM2-135M-Instruct.Q4_1.gguf"), models.join("smollm2-hf"));
    if !file.exists() || !folder.exists() {
        eprintln!("skipped: no SmolLM2 in {} (set TRIMTAB_MODELS)", models.display());
        return;
    }
    let golden = std::fs::read(path("golden/smollm2_tokenization.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&golden).unwrap();
    assert!(golden.len() > 10);
    for from in [file, folder] {
        let tokenizer = Tokenizer::open(&Checkpoint::open(&from).unwrap()).unwrap();
        for case in &golden {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{}: {text:?}", from.display());
            let (parts, rest) = stream(&tokenizer, &ids);
            assert_eq!(parts.concat() + &rest, tokenizer.decode(&ids, false).unwrap());
        }
        assert_eq!((tokenizer.bos(), tokenizer.eos_ids().first()), (Some(1), Some(&2)));
        assert_eq!(tokenizer.vocab_size(), 49152);
    }
}

/// As in transformers 5.23, which takes these two keys out of tokenizer_config.json where there is a tokenizer.json.
#[test]
fn what_is_put_around_a_text_is_the_tokenizers_matter() {
    let folder = std::env::temp_dir().join(format!("trimtab-around-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let ids = |tokenizer: &Value, key: &str, value: Value| {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", key: value});
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::from_folder(&folder).unwrap().encode("a", true).unwrap()
    };
    let text = std::fs::read_to_string(path("fixtures/field/spm_tokenizer/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("add_bos_token", false), ("add_bos_token", true), ("add_eos_token", true)] {
        assert_eq!(ids(&tokenizer, key, value.into()), [1, 30], "{key} {value}");
    }
    tokenizer["post_processor"] = Value::Null;
    for (key, value) in [("add_bos_token", true), ("add_eos_token", true)] {
        assert_eq!(ids(&tokenizer, key, value.into()), [30], "{key} {value}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// As AutoTokenizer of transformers 5.23 encodes "the cat" with these files.
#[test]
fn a_prefix_space_is_the_matter_of_the_class() {
    let folder = std::env::temp_dir().join(format!("trimtab-prefix-space-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = std::fs::read_to_string(path("../assets/base/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let table = [
        (json!("GPT2Tokenizer"), json!(true), false, "llama", [262, 1907]),
        (json!("GPT2TokenizerFast"), Value::Null, true, "llama", [1378, 1907]),
        (json!("RobertaTokenizerFast"), json!(true), false, "roberta", [262, 1907]),
        (json!("RobertaTokenizer"), json!(false), true, "roberta", [1378, 1907]),
        (json!("BartTokenizer"), json!(true), false, "bart", [262, 1907]),
        (json!("PreTrainedTokenizerFast"), json!(true), false, "roberta", [1378, 1907]),
        (json!("LlamaTokenizerFast"), json!(true), false, "llama", [1378, 1907]),
        (Value::Null, json!(true), false, "gpt2", [262, 1907]),
        (Value::Null, json!(true), false, "llama", [1378, 1907]),
    ];
    for (class, setting, in_file, model, want) in table {
        tokenizer["pre_tokenizer"]["add_prefix_space"] = in_file.into();
        let mut config = json!({"tokenizer_class": class, "add_prefix_space": setting});
        config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let files =
            [("tokenizer", &tokenizer), ("tokenizer_config", &config), ("config", &json!({"model_type": model}))];
        for (name, json) in files {
            std::fs::write(folder.join(name).with_extension("json"), json.to_string()).unwrap();
        }
        let ids = Tokenizer::from_folder(&folder).unwrap().encode("the cat", false).unwrap();
        assert_eq!(ids, want, "{config} {in_file} {model}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// As transformers 5.23 numbers them: those with names come first.
#[test]
fn extra_tokens_may_have_names_and_have_none() {
    let folder = std::env::temp_dir().join(format!("trimtab-extra-tokens-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(path("../assets/base/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let both = json!({"additional_special_tokens": ["<<A>>"], "extra_special_tokens": {"image_token": "<<I>>"}});
    let listed = json!({"additional_special_tokens": ["<<A>>"], "extra_special_tokens": ["<<I>>"]});
    let first = Tokenizer::from_folder(&folder).unwrap().vocab_size() as u32;
    for (config, want) in [(both, [Some(first + 1), Some(first)]), (listed, [None, Some(first)])] {
        std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        assert_eq!(["<<A>>", "<<I>>"].map(|token| tokenizer.token_to_id(token)), want, "{config}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
