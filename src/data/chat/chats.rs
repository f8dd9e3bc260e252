//! Conversations of rows as tokens and labels.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use super::find::Templates;
use super::rows::Conversation;
use super::spans::{self, Span, Trained};
use super::template::{Refused, Template};
use super::unwritten;
use crate::data::IGNORE;
use crate::data::notes::Note;
use crate::data::row::{Codec, Row};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::paths;

/// The template of ChatML, which many models without one of their own are given.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
    {% if message['content'] is string %}{{ message['content'] }}{% else %}\
    {% for part in message['content'] or [] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// What asks for it.
pub const CHATML_NAME: &str = "chatml";

/// What makes tokens of conversations.
pub struct Chats {
    templates: Templates,
    special: Vec<(String, String)>,
    /// The template does not say how a text begins: the tokenizer does.
    begins: bool,
    /// Every token is trained, not the assistant's turns alone.
    all: bool,
    /// With tools and without.
    compiled: [OnceLock<Template>; 2],
}

impl Chats {
    /// With the model's templates, or the one that is asked for: `chatml`, or the path of one. `special` are the
    /// tokenizer's special tokens by their names; with `all`, more than the assistant's turns is trained.
    pub fn new(model: &Templates, asked: Option<&str>, special: &[(String, String)], all: bool) -> Result<Chats> {
        let (templates, begins) = match asked {
            None => (model.clone(), false),
            Some(CHATML_NAME) => (Templates::of(Path::new(CHATML_NAME), CHATML), true),
            Some(path) => {
                let path = Path::new(path);
                paths::need(path, "a chat template in Jinja, or chatml", false)?;
                let source = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
                (Templates::of(path, &source), false)
            }
        };
        Ok(Chats { templates, special: special.to_vec(), begins, all, compiled: Default::default() })
    }

    /// The template as a file for other programs has it. Those put nothing before a conversation that is not in the template,
    /// so what the tokenizer would put there is in it, by one of its names for special tokens.
    pub fn file(&self, tokenizer: &Tokenizer) -> Result<Option<String>> {
        let Some(source) = self.templates.source(false) else { return Ok(None) };
        let first = tokenizer.begins_with()?.filter(|_| self.begins);
        let name = self.special.iter().find(|(_, text)| first.is_some() && tokenizer.token_to_id(text) == first);
        Ok(Some(name.map_or_else(String::new, |(name, _)| format!("{{{{ {name} }}}}")) + source))
    }

    /// The template for conversations with tools or without.
    pub fn template(&self, tools: bool) -> Result<&Template> {
        let cell = &self.compiled[usize::from(tools)];
        if let Some(template) = cell.get() {
            return Ok(template);
        }
        let template = self.templates.compile(tools, &self.special)?;
        Ok(cell.get_or_init(|| template))
    }

    /// Whether every token is trained, prompts too.
    pub fn trains_all(&self) -> bool {
        self.all
    }

    /// Whether the tokenizer's own beginning comes before a conversation's text.
    pub fn begins(&self) -> bool {
        self.begins
    }

    /// A conversation as text, with the bytes that are trained.
    pub fn render(&self, row: &Row, conversation: &Conversation) -> Result<Trained> {
        let template = self.template(conversation.tools.is_some())?;
        let rendered = match self.all {
            true => template.render(&conversation.chat(conversation.messages.len()), false).map(|text| {
                let whole = Span { place: 0..text.len(), ends: true };
                Trained { text, spans: vec![whole] }
            }),
            false => spans::trained(template, conversation),
        };
        rendered.map_err(|refused| {
            let expected = match &refused {
                Refused::Raised(_) => {
                    "a chat that the model's template takes; --chat-template FILE takes another template"
                }
                Refused::Failed(_) => "a template that fits the chat: mend it, or --chat-template FILE takes another",
                Refused::Lost(_) => {
                    "a template with generation marks (--chat-template FILE), other messages, or --train-on all"
                }
            };
            row.wrong(refused.to_string(), expected)
        })
    }

    /// What there is to say of a conversation of this text.
    fn notes(&self, conversation: &Conversation, Trained { text, spans }: &Trained) -> Result<Vec<Note>> {
        let trains = |i: usize| i >= conversation.given && !conversation.untrained.contains(&i);
        let trained = |i: usize| (self.all || trains(i)) && conversation.is_assistant(i);
        let mut notes = unwritten::notes(self.template(conversation.tools.is_some())?, conversation, text, trained);
        let all = conversation.messages.len();
        if !self.all && spans.is_empty() && !(0..all).any(|i| conversation.is_assistant(i)) {
            notes.push(Note::NoAssistant(conversation.roles()));
        }
        Ok(notes)
    }

    /// A conversation's tokens, their labels, and what there is to say of it. The text is split into tokens as one; a token
    /// that has a part of what is trained is trained.
    pub fn tokens(
        &self,
        row: &Row,
        conversation: &Conversation,
        codec: &Codec,
    ) -> Result<(Vec<i32>, Vec<i32>, Vec<Note>)> {
        let rendered = self.render(row, conversation)?;
        let notes = self.notes(conversation, &rendered)?;
        let encoded = codec.tokenizer(row)?.encode_places(&rendered.text)?;
        let mut ids: Vec<i32> = encoded.iter().map(|&(id, _)| codec.token(row, id.into())).collect::<Result<_>>()?;
        let mut labels = vec![IGNORE; ids.len()];
        let places: Vec<Range<usize>> = encoded.into_iter().map(|(_, place)| place).collect();
        for Span { place: span, ends } in &rendered.spans {
            let within = |place: &Range<usize>| {
                place.start < span.end && span.start < place.end && (*ends || place.end <= span.end)
            };
            let first = places.iter().position(within);
            let last = places.iter().rposition(within);
            if let (Some(first), Some(last)) = (first, last) {
                labels[first..=last].copy_from_slice(&ids[first..=last]);
            }
        }
        if let Some(first) = codec.bos.map(|id| id as i32).filter(|first| self.begins && ids.first() != Some(first)) {
            ids.insert(0, first);
            labels.insert(0, if self.all { first } else { IGNORE });
        }
        Ok((ids, labels, notes))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// What there is to say of a chat, or why it has no text.
    fn notes(source: &str, messages: &serde_json::Value, all: bool) -> Result<Vec<Note>> {
        let chats = Chats::new(&Templates::of(Path::new("t"), source), None, &[], all)?;
        let conversation = Conversation { messages: messages.as_array().unwrap().clone(), ..Conversation::default() };
        let row = Row { path: Path::new("f"), line: 3, fields: Default::default(), cells: false };
        chats.notes(&conversation, &chats.render(&row, &conversation)?)
    }

    #[test]
    fn a_hint_fits_what_a_template_does() {
        let chat = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user"}]);
        let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let even = format!("{plain}{{% if messages|length == 2 %}}{{{{ raise_exception('two') }}}}{{% endif %}}");
        let table = [
            ("{{ messages | unknown }}", "a template that fits the chat"),
            ("{{ raise_exception('no') }}", "a chat that the model's template takes"),
            ("{% for m in messages %}{% generation %}{{ m.content|upper }}{% endgeneration %}{% endfor %}", ""),
            (even.as_str(), "a template with generation marks"),
        ];
        for (source, hint) in table {
            let error = notes(source, &chat, false).err().map_or(String::new(), |e| e.to_string());
            assert!(error.contains(hint) && error.is_empty() == hint.is_empty(), "{source}: {error}");
        }
        assert!(!notes("{{ messages | unknown }}", &chat, true).unwrap_err().to_string().contains("--train-on"));
        let error = notes(&even, &chat, false).unwrap_err().to_string();
        assert!(error.contains("of the first 2 messages, a chat that the chat template refuses: two"), "{error}");
    }

    #[test]
    fn roles_are_named_where_none_is_the_assistants() {
        let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let of = |role: &str| json!([{"role": "user", "content": "a"}, {"role": role, "content": "b"}]);
        assert_eq!(notes(plain, &of("model"), false).unwrap(), [Note::NoAssistant("model, user".into())]);
        assert_eq!(
            (notes(plain, &of("model"), true).unwrap(), notes(plain, &of("assistant"), false).unwrap()),
            (vec![], vec![])
        );
        // A template that marks what a role of another name writes knows it.
        let marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
        assert_eq!(notes(marked, &of("model"), false).unwrap(), []);
    }
}
