//! Which chat template counts: that of the settings, else the one beside their adapter, else the model's own. One that is not
//! the model's own goes along with what is trained, or what is trained could not be talked to as it was taught.

use std::path::Path;

use crate::base::Base;
use crate::config::{RunConfig, TrainOn};
use crate::data::chat::{Chats, TEMPLATE_FILE, Templates};
use crate::data::tokenizer::Tokenizer;
use crate::durable;
use crate::error::Result;

/// What makes texts of conversations.
pub fn chats(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Chats> {
    let all = config.train_on == TrainOn::All;
    let beside = of_adapter(config)?;
    let model = beside.as_ref().unwrap_or(tokenizer.templates());
    Chats::new(model, config.chat_template.as_deref(), tokenizer.special_tokens(), all)
}

/// The text of the template that is kept with what is trained; none if it is the model's own.
pub fn kept(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Option<String>> {
    match is_another(config)? {
        true => chats(config, tokenizer)?.file(tokenizer),
        false => Ok(None),
    }
}

/// The same for a model whose tokenizer is not read yet.
pub fn kept_of(config: &RunConfig, base: &Base) -> Result<Option<String>> {
    match is_another(config)? {
        true => kept(config, &base.tokenizer()?),
        false => Ok(None),
    }
}

/// Writes what is kept to a folder of weights. There it counts before any other that the folder has.
pub fn write(kept: Option<&str>, folder: &Path) -> Result<()> {
    kept.map_or(Ok(()), |source| durable::write(&folder.join(TEMPLATE_FILE), source.as_bytes()))
}

/// What a user should know: another template than the model's counts without having been asked for.
pub fn note(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let beside = of_adapter(config)?.filter(|beside| config.chat_template.is_none() && beside != tokenizer.templates());
    Ok(beside.map(|beside| format!("chats are written as {} has them", beside.path().display())))
}

fn is_another(config: &RunConfig) -> Result<bool> {
    Ok(config.chat_template.is_some() || of_adapter(config)?.is_some())
}

fn of_adapter(config: &RunConfig) -> Result<Option<Templates>> {
    Ok(config.adapter.as_deref().map(Templates::beside).transpose()?.flatten())
}
