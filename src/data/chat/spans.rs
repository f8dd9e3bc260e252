//! What of a conversation's text is trained: by position, from the template's own marks or from what it makes of the
//! conversation's beginnings. Ids of tokens are not looked at.

use std::ops::Range;

use serde_json::Value;

use super::rows::Conversation;
use super::template::{Chat, Refused, Rendered, Template};

/// A conversation as text, and what of it is trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trained {
    /// The text.
    pub text: String,
    /// In order.
    pub spans: Vec<Span>,
}

/// A stretch of a text that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its bytes.
    pub place: Range<usize>,
    /// Whether the stretch ends just there. Else it may end a few bytes before, where that begins which follows: a token that
    /// goes on after it is not part of it.
    pub ends: bool,
}

/// What of a conversation is trained.
///
/// A template that marks what the model writes says it itself. Of another, the turn of the assistant with number i is what
/// follows the rendered messages before it (with the prompt for an answer), to the end of what the template writes of the
/// messages up to it. Where a template writes a turn in the midst otherwise than one at the end (without its thinking, or
/// without an end of the text), the turn goes on after its content as far as both have it.
pub fn trained(template: &Template, conversation: &Conversation) -> Result<Trained, Refused> {
    let all = conversation.messages.len();
    if template.marks() {
        let Rendered { text, mut generated } = template.render_marked(&conversation.chat(all))?;
        if conversation.given > 0 {
            let given = part(template, &conversation.chat(conversation.given), false)?;
            let from = common(&given, &text);
            generated.retain(|span| span.end > from);
        }
        for &i in conversation.untrained.iter().filter(|i| **i >= conversation.given) {
            let turn = Turn { template, conversation, text: &text, i };
            let (start, (end, _)) = (turn.start()?, turn.end()?);
            generated.retain(|span| span.end <= start || end <= span.start);
        }
        let spans = generated.into_iter().map(|place| Span { place, ends: true }).collect();
        return Ok(Trained { text, spans });
    }
    let text = template.render(&conversation.chat(all), false)?;
    let mut spans: Vec<Span> = Vec::new();
    for i in conversation.given..all {
        if !conversation.is_assistant(i) || conversation.untrained.contains(&i) {
            continue;
        }
        let turn = Turn { template, conversation, text: &text, i };
        let (start, (end, ends)) = (turn.start()?, turn.end()?);
        if start > end || spans.last().is_some_and(|last| last.place.end > start) {
            return Err(turn.lost());
        }
        spans.push(Span { place: start..end, ends });
    }
    spans.retain(|span| !span.place.is_empty());
    Ok(Trained { text, spans })
}

/// The bytes that two texts begin with alike, in whole characters.
fn common(a: &str, b: &str) -> usize {
    let bytes = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(bytes)
}

/// The text of the messages up to one, which a template can refuse where it takes them all.
fn part(template: &Template, chat: &Chat, prompt: bool) -> Result<String, Refused> {
    let alone = |refused: Refused| Refused::Lost(format!("of the first {} messages, {refused}", chat.messages.len()));
    template.render(chat, prompt).map_err(alone)
}

/// A turn of the assistant in the whole text.
struct Turn<'a> {
    template: &'a Template,
    conversation: &'a Conversation,
    text: &'a str,
    i: usize,
}

/// An end of a message's content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Front,
    Back,
}

impl Turn<'_> {
    fn lost(&self) -> Refused {
        Refused::Lost(format!(
            "it writes messages[{}] otherwise where other messages follow, so that its place is not known",
            self.i
        ))
    }

    /// Where the turn begins.
    fn start(&self) -> Result<usize, Refused> {
        if self.i == 0 {
            return Err(Refused::Lost(
                "the assistant's turn is the first message, so that its place is not known".into(),
            ));
        }
        let before = part(self.template, &self.conversation.chat(self.i), true)?;
        if self.text.starts_with(&before) {
            return Ok(before.len());
        }
        // The prompt for an answer can have what the turn has not, such as empty thinking. All that is before it must be
        // there; and what the turn has in common with it by chance is the turn's.
        let all = self.conversation.messages.len();
        let start = common(&before, self.text).min(self.content(self.i, all, Side::Front)?.0);
        match start >= self.content(self.i - 1, all, Side::Back)?.0 {
            true => Ok(start),
            false => Err(self.lost()),
        }
    }

    /// Where the turn ends, with what the template writes after each turn, and whether that is sure to the byte.
    fn end(&self) -> Result<(usize, bool), Refused> {
        let last = part(self.template, &self.conversation.chat(self.i + 1), false)?;
        if self.text.starts_with(&last) {
            return Ok((last.len(), true));
        }
        let (here, _) = self.content(self.i, self.conversation.messages.len(), Side::Back)?;
        let (there, last) = self.content(self.i, self.i + 1, Side::Back)?;
        Ok((here + common(&self.text[here..], &last[there..]), false))
    }

    /// Where the content of message `i` begins or ends in the text of the first `messages` messages, and that text: where it
    /// becomes another if letters are put before or after the content.
    fn content(&self, i: usize, messages: usize, side: Side) -> Result<(usize, String), Refused> {
        let chat = self.conversation.chat(messages);
        let text = part(self.template, &chat, false)?;
        let mut place = text.len();
        // The text there may be one of them.
        for letter in ["x", "y"] {
            let mut longer = chat.messages.to_vec();
            if !grow(&mut longer[i], letter, side) {
                return Err(self.lost());
            }
            let other = part(self.template, &Chat { messages: &longer, ..chat }, false)?;
            if other == text {
                return Err(self.lost());
            }
            place = place.min(common(&text, &other));
        }
        Ok((place, text))
    }
}

/// Puts a letter before or after the content of a message; whether there is a content.
fn grow(message: &mut Value, letter: &str, side: Side) -> bool {
    let put = |text: &mut String| match side {
        Side::Front => text.insert_str(0, letter),
        Side::Back => text.push_str(letter),
    };
    let Some(fields) = message.as_object_mut() else { return false };
    match fields.get_mut("content") {
        None | Some(Value::Null) => {
            fields.insert("content".into(), letter.into());
            return true;
        }
        Some(Value::String(text)) => put(text),
        Some(Value::Array(parts)) => {
            let text = |part: &&mut Value| part.get("text").is_some_and(Value::is_string);
            let part = match side {
                Side::Front => parts.iter_mut().find(text),
                Side::Back => parts.iter_mut().rev().find(text),
            };
            match part.and_then(|part| part.get_mut("text")) {
                Some(Value::String(text)) => put(text),
                _ => return false,
            }
        }
        Some(_) => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> Template {
        Template::new("t", source, vec![("eos_token".into(), "</s>".into())]).unwrap()
    }

    /// The text with brackets around what is trained; round ones where a token may not go on.
    fn shown(source: &str, messages: Value, given: usize) -> String {
        let messages = messages.as_array().unwrap().clone();
        marks(source, &Conversation { messages, given, ..Conversation::default() })
    }

    fn marks(source: &str, conversation: &Conversation) -> String {
        match trained(&template(source), conversation) {
            Ok(Trained { mut text, spans }) => {
                for Span { place, ends } in spans.into_iter().rev() {
                    text.insert(place.end, if ends { ']' } else { ')' });
                    text.insert(place.start, '[');
                }
                text
            }
            Err(e) => e.to_string(),
        }
    }

    /// Messages of roles by their first letters, and contents.
    fn chat(turns: &[(&str, &str)]) -> Value {
        let role = |r: &str| match r {
            "s" => "system",
            "u" => "user",
            "t" => "tool",
            _ => "assistant",
        };
        turns.iter().map(|(r, content)| json!({"role": role(r), "content": content})).collect()
    }

    #[test]
    fn turns_of_the_assistant_are_trained_with_their_ends() {
        let chatml = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        // An end of the text after the last message only.
        let closed = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }};{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}";
        // Thinking is left out but in the last turn, which has an empty one where it has none; as is the prompt's.
        let thinking = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% if loop.last %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}{% else %}{{ m.content }}{% endif %};{% endfor %}{% if add_generation_prompt %}<assistant>{{ '<think></think>' if empty }}{% endif %}";
        let no_prompt = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}";
        let marked = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }};{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}";
        // The ends of the last turn and of others have nothing in common.
        let odd = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '!' if loop.last and m.role == 'assistant' else ';' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        // Where nothing follows, the turn is written otherwise, and never its content.
        let unread = "{% for m in messages %}<{{ m.role }}>{{ m.content if m.role == 'user' }}{{ '!' if loop.last }}{% endfor %}";
        let long = [("s", "S"), ("u", "é"), ("a", "b"), ("u", "c"), ("a", "déx")];
        let table = [
            (chatml, chat(&long), 0, "<system>S</>\n<user>é</>\n<assistant>[b</>\n]<user>c</>\n<assistant>[déx</>\n]"),
            (chatml, chat(&long), 3, "<system>S</>\n<user>é</>\n<assistant>b</>\n<user>c</>\n<assistant>[déx</>\n]"),
            (
                chatml,
                chat(&[("u", "a"), ("a", "b"), ("a", "c")]),
                0,
                "<user>a</>\n<assistant>[b</>\n]<assistant>[c</>\n]",
            ),
            (
                chatml,
                chat(&[("u", "a"), ("a", "b"), ("t", "c"), ("a", "")]),
                0,
                "<user>a</>\n<assistant>[b</>\n]<tool>c</>\n<assistant>[</>\n]",
            ),
            (chatml, chat(&[("u", "a")]), 0, "<user>a</>\n"),
            (closed, chat(&long), 0, "<system>S;<user>é;<assistant>[b;<)user>c;<assistant>[déx;</s>]"),
            (closed, chat(&[("u", "a"), ("a", " x "), ("u", "b")]), 0, "<user>a;<assistant>[x;<)user>b;</s>"),
            (thinking, chat(&long), 0, "<system>S;<user>é;<assistant>[b;)<user>c;<assistant>[<think></think>déx;]"),
            (no_prompt, chat(&[("u", "a"), ("a", "b"), ("u", "c")]), 0, "u: a\n[a: b\n]u: c\n"),
            (marked, chat(&long), 0, "<system>S;<user>é;<assistant>[b;]<user>c;<assistant>[déx;]"),
            (marked, chat(&long), 4, "<system>S;<user>é;<assistant>b;<user>c;<assistant>[déx;]"),
            (odd, chat(&long), 0, "<system>S;<user>é;<assistant>[b);<user>c;<assistant>[déx!]"),
            (
                unread,
                chat(&long),
                0,
                "a chat whose turns have no place in what the template writes: it writes messages[2] otherwise where other \
                messages follow, so that its place is not known",
            ),
            (
                chatml,
                chat(&[("a", "b"), ("u", "c")]),
                0,
                "a chat whose turns have no place in what the template writes: the assistant's turn \
                is the first message, so that its place is not known",
            ),
        ];
        for (source, messages, given, want) in table {
            assert_eq!(shown(source, messages.clone(), given), want, "{source}\n{messages}");
        }
        // A turn of weight 0 is left out, whoever says where it is.
        for (source, want) in [
            (chatml, "<system>S</>\n<user>é</>\n<assistant>b</>\n<user>c</>\n<assistant>[déx</>\n]"),
            (marked, "<system>S;<user>é;<assistant>b;<user>c;<assistant>[déx;]"),
        ] {
            let messages = chat(&long).as_array().unwrap().clone();
            let conversation = Conversation { messages, untrained: vec![2], ..Conversation::default() };
            assert_eq!(marks(source, &conversation), want, "{source}");
        }
        // The prompt's empty thinking is in no turn but the last.
        let mut variables = serde_json::Map::new();
        variables.insert("empty".into(), true.into());
        let messages = chat(&long).as_array().unwrap().clone();
        let conversation = Conversation { messages, variables, ..Conversation::default() };
        let Trained { text, spans } = trained(&template(thinking), &conversation).unwrap();
        let parts: Vec<&str> = spans.iter().map(|span| &text[span.place.clone()]).collect();
        assert_eq!(parts, ["b;", "déx;"]);
        // A turn that begins as the prompt's thinking does is not cut there.
        let mut conversation = conversation;
        conversation.messages[2]["content"] = "<thin".into();
        let Trained { text, spans } = trained(&template(thinking), &conversation).unwrap();
        assert_eq!(&text[spans[0].place.clone()], "<thin;");
    }
}
