//! A conversation with a model, turn by turn: what `trimtab chat` does.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::base::Base;
use crate::config::{MOST_TOKENS, RunConfig};
use crate::data::chat::{Chat, Chats};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::sample::Sampling;
use crate::generate::{Ask, Room};
use crate::run::text::{self, Timing};
use crate::run::{inference, template};
use crate::session::{Options, Session};
use crate::tasks::causal_lm::CausalLm;

/// A model that is loaded, and a conversation with it.
pub struct Talk {
    config: RunConfig,
    base: Arc<Base>,
    tokenizer: Tokenizer,
    chats: Chats,
    /// None only while another is loaded.
    session: Option<Session>,
    /// Tokens of a conversation, the answer among them.
    context: usize,
    system: Option<String>,
    messages: Vec<Value>,
    /// What a user should know of the model and its tokenizer.
    pub notes: Vec<String>,
}

impl Talk {
    /// Loads the model of the settings, for conversations of at most `context` tokens, or as many as it was made for.
    pub fn open(config: &RunConfig, context: usize) -> Result<Talk> {
        let base = Arc::new(Base::open(config.need("model")?)?);
        let tokenizer = base.tokenizer()?;
        let facts = base.model(1)?.facts().clone();
        if facts.decoder_start.is_some() {
            return Err(Error::unsupported("a conversation with an encoder-decoder", "use trimtab generate"));
        }
        let chats = template::chats(config, &tokenizer)?;
        let context = context.min(facts.max_positions).min(MOST_TOKENS);
        let notes = tokenizer.warning().map(String::from).into_iter().collect();
        let (config, messages) = (config.clone(), Vec::new());
        let mut talk = Talk { config, base, tokenizer, chats, session: None, context, system: None, messages, notes };
        talk.load()?;
        Ok(talk)
    }

    fn load(&mut self) -> Result<()> {
        // What is wrong with the template is said before anything is loaded.
        self.chats = template::chats(&self.config, &self.tokenizer)?;
        self.chats.template(false)?;
        let room = Room::of(self.context);
        let wanted = |options| Options { max_seq_len: room.tokens, generate: Some(room), ..options };
        let (session, notes) = inference::open(&self.config, &self.base, &CausalLm, None, wanted)?;
        self.session = Some(session);
        self.notes.extend(notes);
        self.notes.extend(template::note(&self.config, &self.tokenizer)?);
        Ok(())
    }

    /// Takes another adapter, or none. If it cannot be loaded, the one before stays.
    pub fn set_adapter(&mut self, adapter: Option<PathBuf>) -> Result<()> {
        // Two models at once would be more than --memory was asked for.
        self.session = None;
        let before = std::mem::replace(&mut self.config.adapter, adapter);
        let loaded = self.load();
        if loaded.is_err() {
            self.config.adapter = before;
            self.load()?;
        }
        loaded
    }

    /// Forgets the conversation, not the system's words.
    pub fn reset(&mut self) {
        self.messages.clear();
    }

    /// Sets the system's words, or takes them out if there are none, and forgets the conversation.
    pub fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
        self.reset();
    }

    /// The tokens of the conversation with one more turn of the user, up to where the answer begins.
    fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let mut messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        messages.push(json!({"role": "user", "content": text}));
        let chat = Chat { messages: &messages, tools: None, variables: &Map::new() };
        let rendered = self.chats.template(false)?.render(&chat, true);
        let rendered = rendered.map_err(|refused| {
            Error::unsupported(refused.to_string(), "/reset or /system with other words, or --chat-template FILE")
        })?;
        let mut ids = self.tokenizer.encode(&rendered, false)?;
        if self.chats.begins() {
            let first = self.tokenizer.begins_with()?.filter(|first| ids.first() != Some(first));
            ids.splice(0..0, first);
        }
        Ok(ids)
    }

    /// Says `words` to the model. `on` is given the answer as it comes, never half a character, and ends it by returning
    /// false. What was said and answered is part of the conversation from then on.
    pub fn say(
        &mut self,
        words: &str,
        max_tokens: usize,
        sampling: &Sampling,
        on: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Timing> {
        let ids = self.prompt(words)?;
        let left = self.context.saturating_sub(ids.len());
        if left == 0 {
            let found = format!("a conversation of {} tokens", ids.len());
            let expected = format!("less than {}: /reset begins anew, or a larger --context", self.context);
            return Err(Error::config("--context", found, expected));
        }
        let Some(session) = &mut self.session else {
            return Err(Error::unsupported("a conversation without a model", "/adapter DIR or /base loads one"));
        };
        let ask = Ask { max_tokens: max_tokens.min(left), sampling: *sampling, stop: self.tokenizer.eos_ids() };
        let mut answer = String::new();
        let timing = text::write(session, &self.tokenizer, &ids, &[], &ask, &mut |piece| {
            answer.push_str(piece);
            on(piece)
        })?;
        self.messages.push(json!({"role": "user", "content": words}));
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(timing)
    }
}
