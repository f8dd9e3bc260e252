//! Trainable tokens (Hugging Face PEFT's TRAINABLE_TOKENS, `tuners/trainable_tokens`): of a table of tokens, the embedding
//! or the output head, the rows of some tokens are trained, `[tokens, hidden]`, and the rest stays frozen. A head that is
//! tied to the embedding goes with it. As in PEFT, heads of tasks are not trained along.
//!
//! The rows are in the file as `….trainable_tokens_delta`: the rows themselves and not what was added to them. PEFT writes
//! them under the names of tied modules too.

use std::collections::BTreeMap;

use fancy_regex::Regex;
use serde_json::{Value, json};

use super::config::{Targets, listed, matches, regex_of};
use super::folder::{self, Heads};
use super::tokens::{self, Rows, Tokens};
use super::{Method, MethodDef, Rate, Save, files, merge};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Hooks, Next, Nn, Role, Site, Table};
use crate::weights::HostTensor;

const TARGETS: &str = "target_modules";
const END: &str = ".trainable_tokens_delta";

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "trainable-tokens",
    peft_type: Some("TRAINABLE_TOKENS"),
    same_at_start: true,
    rate: Rate::any_width(1e-3),
    new: |settings| {
        let Some(ids) = settings.trainable_tokens.clone() else {
            return Err(Error::config("trainable-tokens", "nothing", "the ids of the tokens that are to be trained"));
        };
        let tables = match &settings.targets {
            Targets::AllLinear => Tables::Embedding,
            Targets::List(names) => Tables::Named(names.clone()),
            Targets::Regex(text) => Tables::matching(text)?,
        };
        Ok(Box::new(TrainableTokens {
            ids,
            tables,
            drawn: false,
            head: Heads { modules: vec![], ..Heads::new(settings) },
        }))
    },
    read: |config| {
        let shown = |key: &str| config.get(key).map_or("nothing".into(), Value::to_string);
        let error =
            |key: &str, expected: &str| Error::config(format!("adapter_config.json: {key}"), shown(key), expected);
        let ids = match config.get("token_indices").and_then(Tokens::read) {
            Some(Some(Tokens::Embedding(ids))) => ids,
            _ => return Err(error("token_indices", "token ids, each once")),
        };
        let tables = match config.get(TARGETS) {
            None | Some(Value::Null) => Tables::Embedding,
            Some(Value::String(text)) => Tables::matching(text)?,
            Some(_) => Tables::Named(folder::names(config, TARGETS)?),
        };
        let drawn = config.get("init_weights") == Some(&Value::Bool(false));
        Ok(Box::new(TrainableTokens { ids, tables, drawn, head: Heads::read(config)? }))
    },
};

/// The tables whose rows are trained.
enum Tables {
    /// The input embedding.
    Embedding,
    /// Those whose paths are, or end in, one of these names.
    Named(Vec<String>),
    /// Those whose whole paths match.
    Matching(Regex),
}

impl Tables {
    fn matching(text: &str) -> Result<Tables> {
        let regex = regex_of(text, |t| format!("^(?:{t})$"));
        regex.map(Tables::Matching).map_err(|expected| Error::config(TARGETS, text, expected))
    }

    /// Whether the table at `path` is one.
    fn has(&self, path: &str, is_embedding: bool) -> bool {
        match self {
            Tables::Embedding => is_embedding,
            Tables::Named(names) => listed(names, path),
            Tables::Matching(regex) => matches(regex, path),
        }
    }
}

/// See the module.
pub struct TrainableTokens {
    ids: Vec<usize>,
    tables: Tables,
    /// The rows started at random (`init_weights = false`), not as the table's. It says nothing of trained ones.
    drawn: bool,
    head: Heads,
}

/// Name in the file of the trained rows of the table `module`.
fn key(module: &str) -> String {
    files::saved(&format!("{module}{END}"))
}

impl TrainableTokens {
    fn rows<'a>(&'a self, module: &'a str, owner: &'a str) -> Rows<'a> {
        Rows { ids: &self.ids, module, owner, key: key(module) }
    }
}

impl Hooks for TrainableTokens {
    fn embed(&self, nn: &mut Nn, at: &Site, table: Table, next: Next) -> Result<Val> {
        match self.tables.has(&at.path, true) {
            true => tokens::embed(&self.rows(&at.path, &at.path), nn, at, table, next),
            false => next.embed(nn, at, table),
        }
    }

    fn head(&self, nn: &mut Nn, at: &Site, tied: Option<&str>, w: Val, next: Next) -> Result<Val> {
        let owner = tied.unwrap_or(&at.path);
        let module = match tied {
            Some(embedding) if self.tables.has(embedding, true) => embedding,
            _ if self.tables.has(&at.path, false) => &at.path,
            _ => return next.head(nn, at, tied, w),
        };
        let w = tokens::head(&self.rows(module, owner), nn, w)?;
        next.head(nn, at, tied, w)
    }
}

impl Method for TrainableTokens {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn check(&self, sites: &[Site]) -> Result<()> {
        let tables: Vec<&str> =
            sites.iter().filter(|s| matches!(s.role, Role::Embed | Role::Head)).map(|s| s.path.as_str()).collect();
        let (found, expected) = match &self.tables {
            Tables::Embedding => return Ok(()),
            Tables::Named(names) => {
                let absent = |name: &&String| !tables.iter().any(|t| listed(std::slice::from_ref(*name), t));
                (names.iter().find(absent).cloned(), tables.join(" or "))
            }
            Tables::Matching(regex) => {
                let none = !tables.iter().any(|t| matches(regex, t));
                (none.then(|| regex.as_str().to_string()), format!("a pattern of {}", tables.join(" or ")))
            }
        };
        found.map_or(Ok(()), |found| Err(Error::config(TARGETS, found, expected)))
    }

    fn merge(&self, target: &mut merge::Target, own: &mut merge::Own) -> Result<()> {
        if let Some(rows) = own.take(&key(target.w.module())) {
            merge::trained_rows(target, &self.ids, rows);
        }
        Ok(())
    }

    fn merges_tied(&self, _: &str, embedding: &str) -> Result<bool> {
        Ok(self.tables.has(embedding, true))
    }

    /// PEFT has the rows under the names of all modules that are one with the embedding.
    fn drop_copies(&self, tensors: &mut BTreeMap<String, HostTensor>) {
        let (own, others): (Vec<&String>, Vec<&String>) = tensors.keys().partition(|name| {
            let module = files::module(name);
            !matches!(self.tables, Tables::Embedding) && self.tables.has(module, true)
        });
        let copied = |name: &&String| own.iter().any(|o| tensors.get(*o) == tensors.get(*name));
        let copies: Vec<String> = others.into_iter().filter(copied).cloned().collect();
        copies.iter().for_each(|name| drop(tensors.remove(name)));
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let mut tensors = save.tensors()?;
        let embedding = tensors.first().map(|t| files::module(&t.0).to_string());
        for (head, embedding) in save.ties {
            let rows = tensors.iter().find(|t| t.0 == key(embedding)).cloned();
            tensors.extend(rows.map(|(_, rows)| (key(head), rows)));
        }
        let mut config = self.head.config("TRAINABLE_TOKENS");
        config.remove("modules_to_save");
        config.insert("init_weights".into(), json!(!self.drawn));
        config.insert("token_indices".into(), json!(self.ids));
        let tables = match &self.tables {
            Tables::Embedding => json!(embedding),
            Tables::Named(names) => json!(names),
            Tables::Matching(regex) => {
                json!(regex.as_str().strip_prefix("^(?:").and_then(|t| t.strip_suffix(")$")))
            }
        };
        config.insert(TARGETS.into(), tables);
        let what = format!("The rows of {} tokens.", self.ids.len());
        let card =
            files::Card { base: self.head.base(), method: "trainable tokens", tag: "trainable-tokens", what: &what };
        folder::write(save.dir, config, &card, &tensors)
    }
}
