//! Tokenizers of encoders against transformers (golden/generate_tokenizers.py): ids, types, offsets, words, of texts,
//! pairs, windows and words; from tokenizer.json and from the files of folders that have none.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trimtab::Result;
use trimtab::data::Encoded;
use trimtab::data::tokenizer::Tokenizer;

/// A length that cuts nothing.
const WHOLE: usize = 10_000;

fn golden(rest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(rest)
}

/// A folder that goes when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("trimtab-encoders-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    /// A golden tokenizer's files, and a tokenizer_config.json unless it is null.
    fn with(name: &str, from: &str, files: &[&str], config: &Value) -> Folder {
        let folder = Folder::new(name);
        for file in files {
            std::fs::copy(golden("tokenizers").join(from).join(file), folder.0.join(file)).unwrap();
        }
        if !config.is_null() {
            folder.write("tokenizer_config.json", &config.to_string());
        }
        folder
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap();
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.0.join(file)).unwrap();
        assert!(text.contains(from), "{from:?} in {file}");
        self.write(file, &text.replacen(from, to, 1));
    }

    fn open(&self) -> Result<Tokenizer> {
        Tokenizer::from_folder(&self.0)
    }

    fn refused(&self) -> String {
        self.open().err().expect("refused").to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn settings() -> Vec<Value> {
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(golden("tokenization.json")).unwrap()).unwrap();
    assert!(golden.len() > 10);
    golden
}

fn tokenizer(number: usize, setting: &Value) -> Tokenizer {
    let files: Vec<&str> = setting["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    let from = setting["folder"].as_str().unwrap();
    Folder::with(&format!("setting{number}"), from, &files, &setting["config"]).open().unwrap()
}

fn expected(out: &Value) -> Encoded {
    let list = |key: &str| -> Vec<i64> { out[key].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect() };
    let known = |v: &i64| u32::try_from(*v).ok();
    Encoded {
        ids: list("ids").iter().map(|v| *v as u32).collect(),
        type_ids: list("type_ids").iter().map(|v| *v as u32).collect(),
        offsets: list("offsets").chunks(2).map(|o| o[0] as usize..o[1] as usize).collect(),
        sequence: list("sequence").iter().map(|v| known(v).map(|v| v as u8)).collect(),
        words: list("words").iter().map(known).collect(),
    }
}

/// What a case asks for.
fn run(tokenizer: &Tokenizer, case: &Value) -> Vec<Encoded> {
    let max_len = case["max_len"].as_u64().map_or(WHOLE, |n| n as usize);
    if let Some(words) = case["split"].as_array() {
        let words: Vec<&str> = words.iter().map(|w| w.as_str().unwrap()).collect();
        return vec![tokenizer.encode_words(&words, max_len).unwrap()];
    }
    let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
    match case["stride"].as_u64() {
        Some(stride) => tokenizer.encode_windows(text, pair.unwrap(), max_len, stride as usize).unwrap(),
        None => vec![tokenizer.encode_pair(text, pair, max_len).unwrap()],
    }
}

#[test]
fn as_transformers_encodes() {
    let (mut all, mut windows, mut offsets) = (Vec::new(), 0, 0);
    for (number, setting) in settings().iter().enumerate() {
        let (tokenizer, config) = (tokenizer(number, setting), &setting["config"]);
        // What is read from a vocabulary is written as a tokenizer.json, which then says the same.
        let saved = Folder::new(&format!("saved{number}"));
        tokenizer.save(saved.0.join("tokenizer.json")).unwrap();
        let again = saved.open().unwrap();
        let mut results = Vec::new();
        for case in setting["cases"].as_array().unwrap() {
            let found = run(&tokenizer, case);
            let mut expected: Vec<Encoded> = case["out"].as_array().unwrap().iter().map(expected).collect();
            if setting["folder"] == "t5" {
                // The library applies a template's types to the first window only; T5's are all 0.
                expected.iter_mut().for_each(|e| e.type_ids.fill(0));
            }
            assert_eq!(run(&again, case), found, "saved, {case}");
            if case["split"].is_array() && config["add_prefix_space"].is_null() {
                // A space that no word has stands, without trimmed offsets, for nothing here, for the word's first letter
                // there.
                let space = tokenizer.token_to_id("Ġ");
                for e in &mut expected {
                    let alone = e.offsets.iter_mut().zip(&e.ids).filter(|(_, id)| Some(**id) == space);
                    alone.for_each(|(o, _)| *o = o.start..o.start);
                }
            }
            assert_eq!(found, expected, "{} {config} {case}", setting["files"]);
            windows += usize::from(found.len() > 1);

            // What a token stands for can be cut out of its text.
            let texts = [case["text"].as_str(), case["pair"].as_str()];
            for encoded in &found {
                assert!(encoded.len() <= case["max_len"].as_u64().map_or(WHOLE, |n| n as usize));
                for i in 0..encoded.len() {
                    let (range, word) = (encoded.offsets[i].clone(), encoded.words[i]);
                    let text = match encoded.sequence[i] {
                        None => continue,
                        Some(_) if case["split"].is_array() => case["split"][word.unwrap() as usize].as_str(),
                        Some(s) => texts[usize::from(s)],
                    };
                    assert!(text.unwrap().get(range.clone()).is_some(), "{range:?} of {text:?}");
                    offsets += usize::from(!range.is_empty());
                }
            }
            results.push((case.clone(), expected));
        }
        all.push((setting["folder"].clone(), results));
    }
    assert!(windows > 10 && offsets > 3000, "{windows} {offsets}");

    // The controls: another length of the same text, and another setting, give something else.
    let pairs = all.iter().flat_map(|(_, results)| results.windows(2));
    let same_texts = pairs.filter(|w| w[0].0["text"] == w[1].0["text"] && w[0].0["pair"] == w[1].0["pair"]);
    assert!(same_texts.filter(|w| w[0].1 != w[1].1).count() > 50);
    for (i, a) in all.iter().enumerate().skip(1) {
        for b in all[i + 1..].iter().filter(|b| b.0 == a.0) {
            let same = |(case, out): &&(Value, Vec<Encoded>)| b.1.iter().any(|(c, o)| c == case && o == out);
            assert!(a.1.iter().filter(same).count() < a.1.len().min(b.1.len()), "settings {i} and another of {}", a.0);
        }
    }
}

/// Lengths and strides that cannot be, and windows that cover the context.
#[test]
fn windows() {
    let tokenizer = Folder::with("windows", "bert", &["vocab.txt"], &Value::Null).open().unwrap();
    let (question, context) = ("who wrote the letter ?", "the fox jumps over the lazy dog and the dog sleeps");
    let whole = tokenizer.encode_pair(question, Some(context), WHOLE).unwrap();
    let of = |e: &Encoded, s: u8| -> Vec<u32> {
        (0..e.len()).filter(|&i| e.sequence[i] == Some(s)).map(|i| e.ids[i]).collect()
    };
    let (asked, read) = (of(&whole, 0), of(&whole, 1));
    let least = asked.len() + 3 + 1;
    let mut tried = 0;
    for max_len in 0..whole.len() + 2 {
        for stride in 0..8 {
            let found = tokenizer.encode_windows(question, context, max_len, stride);
            if max_len >= whole.len() {
                assert_eq!(found.unwrap(), std::slice::from_ref(&whole));
                continue;
            }
            if max_len < least + stride {
                assert!(found.is_err(), "{max_len} {stride}");
                continue;
            }
            let found = found.unwrap();
            let mut covered: Vec<u32> = Vec::new();
            for (i, window) in found.iter().enumerate() {
                assert!(window.len() == max_len || i + 1 == found.len(), "only the last is shorter");
                assert_eq!(of(window, 0), asked);
                let part = of(window, 1);
                let overlap = if i == 0 { 0 } else { stride };
                assert_eq!(covered[covered.len() - overlap..], part[..overlap]);
                covered.extend(&part[overlap..]);
            }
            assert_eq!(covered, read, "{max_len} {stride}");
            tried += 1;
        }
    }
    assert!(tried > 50, "the control: {tried}");
    assert!(tokenizer.encode_windows(question, context, least, 1).err().unwrap().to_string().contains("stride"));
    assert!(tokenizer.encode_pair("the dog", Some("x"), 2).is_err() && tokenizer.encode_pair("the", None, 1).is_err());
    assert!(tokenizer.encode_words(&["the", "dog"], 1).is_err());
    assert_eq!(tokenizer.encode_words(&["the", "dog"], 2).unwrap().words, [None, None]);
}

/// A byte-level tokenizer's words are told apart by spaces, whoever wrote them.
#[test]
fn words_with_spaces() {
    let tokenizer = Folder::with("spaces", "roberta", &["vocab.json", "merges.txt"], &Value::Null).open().unwrap();
    let [bare, spaced] = [["the", "fox"], ["the", " fox"]].map(|words| tokenizer.encode_words(&words, WHOLE).unwrap());
    assert_eq!((&bare.ids, &bare.words), (&spaced.ids, &spaced.words));
    assert_eq!((bare.offsets[2].clone(), spaced.offsets[2].clone()), (0..3, 1..4));
    assert_eq!(bare.ids, tokenizer.encode(" the fox", true).unwrap());
    assert_ne!(bare.ids, tokenizer.encode("the fox", true).unwrap(), "the control");
}

/// The tokens that a model's files or its family name.
#[test]
fn special_tokens() {
    let name = |t: &Tokenizer, id: Option<u32>| id.and_then(|id| t.id_to_token(id));
    for (from, files, pad, mask) in [
        ("bert", &["vocab.txt"][..], "[PAD]", Some("[MASK]")),
        ("bert", &["tokenizer.json"], "[PAD]", Some("[MASK]")),
        ("roberta", &["vocab.json", "merges.txt"], "<pad>", Some("<mask>")),
        ("t5", &["tokenizer.json"], "<pad>", None),
    ] {
        let tokenizer = Folder::with("special", from, files, &Value::Null).open().unwrap();
        assert_eq!(name(&tokenizer, tokenizer.pad()).as_deref(), Some(pad), "{from}");
        assert_eq!(name(&tokenizer, tokenizer.mask()).as_deref(), mask, "{from}");
    }
    let config = json!({"mask_token": "fox", "pad_token": {"content": "dog"}, "cls_token": "the", "unk_token": "over"});
    let tokenizer = Folder::with("named", "bert", &["vocab.txt"], &config).open().unwrap();
    assert_eq!(name(&tokenizer, tokenizer.pad()).as_deref(), Some("dog"));
    assert_eq!(name(&tokenizer, tokenizer.mask()).as_deref(), Some("fox"));
    let pieces = |text| -> Vec<String> {
        let ids = tokenizer.encode(text, true).unwrap();
        ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
    };
    assert_eq!(pieces("lazy \u{2603}"), ["the", "lazy", "over", "[SEP]"]);
    // Without a tokenizer_config.json, old folders have the tokens here.
    let old = Folder::with("old", "bert", &["vocab.txt"], &Value::Null);
    old.write("special_tokens_map.json", &json!({"sep_token": "fox"}).to_string());
    let old = old.open().unwrap();
    assert_eq!(old.encode("the", true).unwrap().last(), old.token_to_id("fox").as_ref());
}

/// Tokens that were added to a vocabulary stand in two other files.
#[test]
fn added_tokens() {
    let config = json!({
        "added_tokens_decoder": {"500": {"content": "<new>", "lstrip": true, "special": true}},
        "additional_special_tokens": ["<more>"],
    });
    let folder = Folder::with("added", "bert", &["vocab.txt"], &config);
    folder.write("added_tokens.json", &json!({"<new>": 500, "<more>": 501, "Wolf": 502}).to_string());
    let tokenizer = folder.open().unwrap();
    let the = tokenizer.token_to_id("the").unwrap();
    // Found in the text that has been put into lower case, as it is no special token.
    assert_eq!(tokenizer.encode("the <new>the<more>wolf", false).unwrap(), [the, 500, the, 501, 502]);
    assert_eq!(tokenizer.decode(&[the, 500, 501, 502], true).unwrap(), "the Wolf");
    let plain = Folder::with("plain", "bert", &["vocab.txt"], &Value::Null).open().unwrap();
    assert!(!plain.encode("the <new>the<more>wolf", false).unwrap().contains(&500), "the control");
    assert_eq!(tokenizer.vocab_size(), plain.vocab_size() + 3);

    folder.write("added_tokens.json", &json!({"the": 503}).to_string());
    assert!(folder.refused().contains("503"));
}

#[test]
fn folders_that_are_refused() {
    let bert = Folder::with("refused", "bert", &["vocab.txt"], &Value::Null);
    assert!(bert.open().is_ok(), "the control");
    bert.write("config.json", &json!({"model_type": "mpnet"}).to_string());
    assert!(bert.refused().contains("mpnet"));
    bert.write("config.json", &json!({"model_type": "distilbert"}).to_string());
    assert!(bert.open().is_ok());
    bert.edit("vocab.txt", "[CLS]\n", "");
    assert!(bert.refused().contains("[CLS]"));
    std::fs::write(bert.0.join("vocab.txt"), b"\xff\n").unwrap();
    assert!(bert.open().is_err());
    std::fs::remove_file(bert.0.join("vocab.txt")).unwrap();
    assert!(bert.refused().contains("vocab.txt"));
    bert.write("spiece.model", "");
    assert!(bert.refused().contains("use_fast"));

    let files = ["vocab.json", "merges.txt"];
    let roberta = Folder::with("refused-bytes", "roberta", &files, &json!({"tokenizer_class": "CLIPTokenizer"}));
    assert!(roberta.refused().contains("clip"));
    std::fs::remove_file(roberta.0.join("tokenizer_config.json")).unwrap();
    assert!(roberta.open().is_ok(), "the control");
    for line in ["a b c", "ab", " b", "a ", "\u{2603} a", "~ ~"] {
        roberta.edit("merges.txt", "\n", &format!("\n{line}\n"));
        assert!(roberta.refused().contains("line 2"), "{line:?}");
        roberta.edit("merges.txt", &format!("\n{line}\n"), "\n");
    }
    assert!(roberta.open().is_ok());
    // Without the tokens that RoBERTa puts around a text it is GPT-2's.
    let around = |f: &Folder| f.open().unwrap().encode("fox", true).unwrap().len();
    let with = around(&roberta);
    roberta.edit("vocab.json", "\"<s>\":", "\"<other>\":");
    assert_eq!(around(&roberta), with - 2);
    roberta.write("tokenizer_config.json", &json!({"tokenizer_class": "RobertaTokenizer"}).to_string());
    assert!(roberta.refused().contains("<s>"));
    for vocabulary in ["[]", "{", "{\"a\": -1}", "{\"a\": \"b\"}"] {
        roberta.write("vocab.json", vocabulary);
        assert!(roberta.open().is_err(), "{vocabulary}");
    }
}
