//! Where a model's chat templates are: in files of their own, in tokenizer_config.json, or in a GGUF file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::template::Template;
use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;
use crate::weights::read_json;

/// A template in a file of its own.
pub const FILE: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates";
/// Of processors, before templates had files of their own.
const OLD_FILE: &str = "chat_template.json";
/// The template that counts unless another is asked for.
const DEFAULT: &str = "default";
/// The one that counts where there are tools.
const TOOLS: &str = "tool_use";

/// The variables of special tokens, which are what tokenizer_config.json calls them.
pub(in crate::data) const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The templates of a model, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// Where they are, for messages.
    path: PathBuf,
    named: Vec<(String, String)>,
}

impl Templates {
    /// One template for all conversations.
    pub fn of(path: &Path, source: &str) -> Templates {
        Templates { path: path.into(), named: vec![(DEFAULT.to_owned(), source.to_owned())] }
    }

    /// The one in a file of its own in a folder of any kind, if there is one.
    pub fn beside(folder: &Path) -> Result<Option<Templates>> {
        let path = folder.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(source) => Ok(Some(Templates::of(&path, &source))),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Those of a folder, of which `config` is tokenizer_config.json. Files of their own come first, as in transformers.
    pub(in crate::data) fn from_folder(folder: &Path, config: &Value) -> Result<Templates> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::io(path, e));
        let (file, more) = (folder.join(FILE), folder.join(FOLDER));
        let mut named = Vec::new();
        if file.is_file() {
            named.push((DEFAULT.to_owned(), read(&file)?));
        }
        if more.is_dir() {
            let entries = std::fs::read_dir(&more).map_err(|e| Error::io(&more, e))?;
            for entry in entries {
                let path = entry.map_err(|e| Error::io(&more, e))?.path();
                let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja"));
                if let Some(name) = name {
                    named.retain(|(other, _)| other != name);
                    named.push((name.to_owned(), read(&path)?));
                }
            }
        }
        if !named.is_empty() {
            named.sort();
            return Ok(Templates { path: if file.is_file() { file } else { more }, named });
        }
        let path = folder.join("tokenizer_config.json");
        if let Some(value) = config.get("chat_template").filter(|value| !value.is_null()) {
            let named = of_json(value).ok_or_else(|| {
                Error::file(&path, "a chat_template of neither kind", "a string, or a list of names and templates")
            })?;
            return Ok(Templates { path, named });
        }
        let path = folder.join(OLD_FILE);
        let Some(old) = read_json(&path)? else { return Ok(Templates::default()) };
        let named = old.get("chat_template").and_then(of_json);
        let named =
            named.ok_or_else(|| Error::file(&path, "no chat_template in it", "a chat_template that is a string"));
        named.map(|named| Templates { path, named })
    }

    /// That of a GGUF file, and those beside it that have names.
    pub(in crate::data) fn from_gguf(gguf: &Gguf) -> Result<Templates> {
        const KEY: &str = "tokenizer.chat_template";
        let mut named = Vec::new();
        named.extend(gguf.string(KEY)?.map(|source| (DEFAULT.to_owned(), source.to_owned())));
        for name in gguf.strings("tokenizer.chat_templates")?.unwrap_or_default() {
            let source = gguf.string(&format!("{KEY}.{name}"))?;
            named.extend(source.map(|source| (name.to_owned(), source.to_owned())));
        }
        Ok(Templates { path: gguf.path().into(), named })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The source of the template for conversations with tools or without; none if there is none for them.
    pub fn source(&self, tools: bool) -> Option<&str> {
        let find = |name: &str| self.named.iter().find(|(other, _)| other == name).map(|(_, source)| source.as_str());
        let of_tools = if tools { find(TOOLS) } else { None };
        of_tools.or_else(|| find(DEFAULT))
    }

    /// All of them, as tokenizer_config.json has them; none if there are none.
    pub(in crate::data) fn to_json(&self) -> Option<Value> {
        match self.named.as_slice() {
            [] => None,
            [(name, source)] if name == DEFAULT => Some(source.as_str().into()),
            all => {
                let one = |(name, source): &(String, String)| serde_json::json!({"name": name, "template": source});
                Some(all.iter().map(one).collect())
            }
        }
    }

    /// The template for conversations with tools or without, compiled with the tokenizer's special tokens.
    pub fn compile(&self, tools: bool, special: &[(String, String)]) -> Result<Template> {
        let known = || self.named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        match (self.source(tools), self.named.is_empty()) {
            (Some(source), _) => Template::new(&self.path.display().to_string(), source, special.to_vec()),
            (None, true) => Err(Error::unsupported(
                "a chat with a model that has no chat template",
                "--chat-template chatml, or --chat-template FILE with one in Jinja",
            )),
            (None, false) => {
                let found = format!("chat templates named {}", known());
                Err(Error::file(&self.path, found, format!("one named {DEFAULT}; --chat-template FILE takes another")))
            }
        }
    }
}

/// A template or a list of them.
fn of_json(value: &Value) -> Option<Vec<(String, String)>> {
    let one = |item: &Value| Some((item.get("name")?.as_str()?.to_owned(), item.get("template")?.as_str()?.to_owned()));
    match value {
        Value::String(source) => Some(vec![(DEFAULT.to_owned(), source.clone())]),
        Value::Array(items) => items.iter().map(one).collect(),
        _ => None,
    }
}
