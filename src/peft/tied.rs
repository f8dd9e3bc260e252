//! LoRA adapters on a model whose output head is its embedding.
//!
//! As Hugging Face PEFT has it (0.21.2, `tuners/lora/model.py`), the two part as soon as an adapter touches one of them:
//! each has factors, or a trained copy, of its own, and what is not trained stays the base model's table. With
//! `ensure_weight_tying` they stay one: of factors A `[rank, vocabulary]`, B `[hidden, rank]` of the embedding the head
//! has Bᵀ and Aᵀ, and a table that is trained whole is the head too. PEFT's file then has what is one under both names.
//!
//! PEFT keeps two moments for such a factor, one for each place, and AdamW moves it twice a step; here it is one tensor,
//! whose gradient is the sum of both.

use std::collections::BTreeMap;

use super::config::{AdapterConfig, Targets};
use super::files;
use crate::error::{Error, Result};
use crate::weights::{HostTensor, load::transpose};

const KEY: &str = "ensure_weight_tying";

/// The names by which PEFT knows an embedding or a head (`EMBEDDING_LAYER_NAMES`).
const TABLES: [&str; 2] = ["embed_tokens", "lm_head"];

fn is_table(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|last| TABLES.contains(&last))
}

impl AdapterConfig {
    /// Whether a table that is trained whole stays the head too.
    pub(super) fn ties_saved(&self) -> bool {
        self.ensure_weight_tying && self.modules_to_save.iter().any(|m| is_table(m))
    }

    /// Whether the factors of the embedding are those of a tied head too.
    pub(super) fn ties_factors(&self) -> Result<bool> {
        if !self.ensure_weight_tying || self.ties_saved() {
            return Ok(false);
        }
        match &self.targets {
            Targets::AllLinear => Ok(false),
            Targets::List(names) => Ok(names.iter().any(|name| is_table(name))),
            Targets::Regex(_) => TABLES.iter().try_fold(false, |any, table| Ok(any || self.resolve(table)?.is_some())),
        }
    }

    /// An error if what is to be tied is named by the head alone: the embedding was built without it.
    pub(super) fn check_tied(&self, head: &str, embedding: &str) -> Result<()> {
        let error = |key: &str| {
            let found = format!("true with {head} in {key} and without {embedding}, whose weight it is");
            Err(Error::config(KEY, found, format!("{embedding} in {key}")))
        };
        if self.ties_saved() && !self.saves(embedding) {
            return error("modules_to_save");
        }
        if self.ties_factors()? && self.resolve_embedding(embedding)?.is_none() {
            return error("target_modules");
        }
        Ok(())
    }

    /// Whether the file has copies of what is trained.
    pub(super) fn copies_trained(&self) -> Result<bool> {
        Ok(self.ties_saved() || self.ties_factors()?)
    }

    /// What PEFT's file has of tied heads besides what is trained and kept; `ties` holds each head with its embedding.
    pub(super) fn tied_copies(
        &self,
        ties: &[(String, String)],
        trained: &[(String, HostTensor)],
        kept: &[(String, HostTensor)],
    ) -> Result<Vec<(String, HostTensor)>> {
        let mut copies = Vec::new();
        for (head, embedding) in ties {
            let [whole, own] = [embedding, head].map(|m| files::saved(&format!("{m}.weight")));
            if self.ties_saved() {
                copies.extend(copy(trained, &whole, own, false));
            }
            let factors = self.ties_factors()?;
            if factors {
                copies.extend(copy(trained, &files::embedding_b(embedding), files::lora_a(head), true));
                copies.extend(copy(trained, &files::embedding_a(embedding), files::lora_b(head), true));
            }
            if factors || self.keeps_table(head)? {
                copies.extend(copy(kept, &files::base_layer(embedding), files::base_layer(head), false));
            }
        }
        Ok(copies)
    }

    /// Takes such copies out of a file's tensors.
    pub(super) fn drop_tied_copies(&self, tensors: &mut BTreeMap<String, HostTensor>) {
        let mut copies = Vec::new();
        if self.ties_saved() {
            let whole = |name: &str| name.strip_suffix(".weight").is_some_and(|m| !m.contains(".lora_"));
            let (saved, others): (Vec<&String>, Vec<&String>) =
                tensors.keys().filter(|n| whole(n)).partition(|n| self.saves(files::module(n)));
            let copied = |name: &&String| saved.iter().any(|s| tensors.get(*s) == tensors.get(*name));
            copies.extend(others.into_iter().filter(copied).cloned());
        }
        // A pattern that does not compile was an error when the config was read.
        if self.ties_factors().unwrap_or(false) {
            let embeddings = tensors.keys().filter_map(|n| n.strip_suffix(".lora_embedding_A"));
            let heads = || tensors.keys().filter_map(|n| n.strip_suffix(".lora_A.weight"));
            for (embedding, head) in embeddings.flat_map(|e| heads().map(move |h| (e, h))) {
                let [a, b] = ["A", "B"].map(|f| tensors.get(&format!("{embedding}.lora_embedding_{f}")));
                let [head_a, head_b] = ["A", "B"].map(|f| format!("{head}.lora_{f}.weight"));
                if turned(tensors.get(&head_a), b) && turned(tensors.get(&head_b), a) {
                    let tables = [embedding, head].map(|m| format!("{m}.base_layer.weight"));
                    let equal = tensors.get(&tables[0]) == tensors.get(&tables[1]);
                    copies.extend([head_a, head_b]);
                    copies.extend(equal.then(|| tables[1].clone()));
                }
            }
        }
        copies.iter().for_each(|name| drop(tensors.remove(name)));
    }
}

/// The tensor `from`, or its transpose, under another name.
fn copy(tensors: &[(String, HostTensor)], from: &str, to: String, turned: bool) -> Option<(String, HostTensor)> {
    let (_, tensor) = tensors.iter().find(|t| t.0 == from)?;
    match tensor.shape[..] {
        [rows, cols] if turned => {
            Some((to, HostTensor { shape: vec![cols, rows], data: transpose(&tensor.data, cols) }))
        }
        _ => Some((to, tensor.clone())),
    }
}

/// Whether one is the transpose of the other.
fn turned(a: Option<&HostTensor>, b: Option<&HostTensor>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) if a.shape.len() == 2 && a.shape.iter().rev().eq(&b.shape) => {
            transpose(&a.data, a.shape[1]) == b.data
        }
        _ => false,
    }
}
