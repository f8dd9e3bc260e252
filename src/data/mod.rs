//! From text to tokens.

pub mod tokenizer;
