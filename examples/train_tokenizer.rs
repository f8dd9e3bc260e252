//! Trains a byte-level BPE tokenizer and writes it the way Hugging Face does.
//!
//! ```text
//! cargo run --release --example train_tokenizer -- OUT_DIR VOCABULARY FILE...
//! ```
//!
//! A file named twice counts twice. Every byte has a token, so any text can be encoded; `<|endoftext|>` is id 0 and serves as bos, eos and pad.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedToken, Tokenizer};
use trimtab::{Error, Result};

const END_OF_TEXT: &str = "<|endoftext|>";

fn main() {
    if let Err(error) = run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &[String]) -> Result<()> {
    let usage = || Error::config("arguments", args.join(" "), "OUT_DIR VOCABULARY FILE...");
    let [out, vocabulary, files @ ..] = args else { return Err(usage()) };
    let vocabulary: usize = vocabulary.parse().map_err(|_| usage())?;
    let out = Path::new(out);
    let texts =
        files.iter().map(|f| std::fs::read_to_string(f).map_err(|e| Error::io(f, e))).collect::<Result<Vec<_>>>()?;

    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .show_progress(false)
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .and_then(|t| t.save(out.join("tokenizer.json"), true))
        .map_err(|e| Error::file(out, e.to_string(), "a tokenizer trained and written"))?;

    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": null,
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
    });
    let path = out.join("tokenizer_config.json");
    std::fs::write(&path, format!("{config:#}\n")).map_err(|e| Error::io(&path, e))?;

    for (file, text) in files.iter().zip(&texts) {
        let tokens =
            tokenizer.encode_fast(text.as_str(), false).map_err(|e| Error::file(file, e.to_string(), "text"))?.len();
        println!("{file}: {} bytes, {tokens} tokens, {:.2} bytes each", text.len(), text.len() as f64 / tokens as f64);
    }
    Ok(())
}
