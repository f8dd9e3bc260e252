//! Examples as texts in which what is trained is marked.

use std::fmt::Write;

use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::tasks::lesson::{Lesson, Passage};

/// A stretch of an example's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text; numbers of tokens where there is no tokenizer.
    pub text: String,
    /// Whether it is learnt.
    pub trained: bool,
    /// Its label, where tokens have labels.
    pub tag: Option<String>,
}

/// An example as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its texts, in pieces.
    pub texts: Vec<Vec<Piece>>,
    /// The label of the whole, where it has one.
    pub answer: Option<String>,
    /// Its tokens, and those that are learnt.
    pub tokens: (usize, usize),
}

/// How what is learnt is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// By colour, on terminals.
    Colour,
    /// By ⟦ and ⟧.
    Brackets,
}

impl Marks {
    fn around(self) -> [&'static str; 2] {
        match self {
            Marks::Colour => ["\x1b[32m", "\x1b[0m"],
            Marks::Brackets => ["⟦", "⟧"],
        }
    }
}

impl Shown {
    /// The text of `lesson`.
    pub fn of(lesson: Lesson, tokenizer: Option<&Tokenizer>) -> Result<Shown> {
        let tokens = (lesson.passages.iter().map(|p| p.ids.len()).sum(), lesson.trained());
        let texts = lesson.passages.iter().map(|passage| pieces(passage, tokenizer)).collect::<Result<_>>()?;
        Ok(Shown { texts, answer: lesson.answer, tokens })
    }

    /// All of it, a line a text, the label last.
    pub fn text(&self, marks: Marks) -> String {
        let [open, close] = marks.around();
        let mut out = String::new();
        for pieces in &self.texts {
            for Piece { text, trained, tag } in pieces {
                // What a text has of escapes is not for the terminal.
                let text = text.replace('\x1b', "␛");
                let _ = match trained {
                    true => write!(out, "{open}{text}{close}"),
                    false => write!(out, "{text}"),
                };
                tag.iter().for_each(|tag| out += &format!("/{tag}"));
            }
            out.push('\n');
        }
        if let Some(answer) = &self.answer {
            let _ = writeln!(out, "→ {open}{answer}{close}");
        }
        out
    }

    /// The same in one line of at most so many characters: what is in the middle is left out.
    pub fn line(&self, most: usize) -> String {
        let text = self.text(Marks::Brackets);
        let line: Vec<char> = text.trim_end().replace('\n', "⏎").replace('\t', "⇥").chars().collect();
        if line.len() <= most {
            return line.into_iter().collect();
        }
        // What is learnt is at the end in most tasks.
        let (head, tail) = (most / 2, most - most / 2 - 3);
        let part = |chars: &[char]| chars.iter().collect::<String>();
        format!("{} … {}", part(&line[..head]), part(&line[line.len() - tail..]))
    }
}

/// The text of a passage, cut where what is trained begins or ends, and around each label.
fn pieces(passage: &Passage, tokenizer: Option<&Tokenizer>) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut stream = tokenizer.map(|tokenizer| tokenizer.decode_stream(&[], false)).transpose()?;
    for (i, &id) in passage.ids.iter().enumerate() {
        let text = match &mut stream {
            Some(stream) => stream.push(id as u32)?,
            None if i == 0 => id.to_string(),
            None => format!(" {id}"),
        };
        let trained = passage.trained.get(i) == Some(&true);
        let tag = passage.tags.get(i).cloned().flatten();
        match pieces.last_mut() {
            Some(last) if last.trained == trained && last.tag.is_none() && tag.is_none() => last.text += &text,
            _ => pieces.push(Piece { text, trained, tag }),
        }
    }
    let rest = stream.map(|stream| stream.finish()).transpose()?.unwrap_or_default();
    if let Some(last) = pieces.last_mut() {
        last.text += &rest;
    }
    pieces.retain(|piece| !piece.text.is_empty() || piece.tag.is_some());
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(passages: &[(&[i32], &[i32])], answer: Option<&str>) -> Shown {
        let passages = passages.iter().map(|(ids, labels)| Passage::labelled(ids, labels)).collect();
        Shown::of(Lesson { passages, answer: answer.map(String::from) }, None).unwrap()
    }

    #[test]
    fn what_is_trained_is_marked() {
        const X: i32 = -100;
        type Case<'a> = (&'a [(&'a [i32], &'a [i32])], Option<&'a str>, &'a str);
        let table: &[Case] = &[
            (&[(&[1, 2, 3], &[X, 2, 3])], None, "1⟦ 2 3⟧\n"),
            (&[(&[1, 2, 3], &[1, X, 3])], None, "⟦1⟧ 2⟦ 3⟧\n"),
            (&[(&[1, 2], &[]), (&[7], &[7])], None, "1 2\n⟦7⟧\n"),
            (&[(&[5], &[])], Some("good"), "5\n→ ⟦good⟧\n"),
            (&[(&[5, 6], &[X, X])], None, "5 6\n"),
        ];
        for (passages, answer, want) in table {
            assert_eq!(shown(passages, *answer).text(Marks::Brackets), *want);
        }
        assert_eq!(shown(table[0].0, None).text(Marks::Colour), "1\x1b[32m 2 3\x1b[0m\n");
        assert_eq!(shown(table[0].0, None).tokens, (3, 2));
    }

    #[test]
    fn labels_of_tokens_are_beside_them() {
        let tags = vec![None, Some("B-PER".into()), Some("O".into())];
        let passage = Passage { tags, ..Passage::labelled(&[1, 2, 3], &[-100, 4, 0]) };
        let shown = Shown::of(Lesson { passages: vec![passage], answer: None }, None).unwrap();
        assert_eq!(shown.text(Marks::Brackets), "1⟦ 2⟧/B-PER⟦ 3⟧/O\n");
    }

    #[test]
    fn a_line_keeps_both_ends() {
        let ids: Vec<i32> = (0..100).collect();
        let shown = shown(&[(&ids, &ids)], None);
        let line = shown.line(41);
        assert!(line.chars().count() <= 41 && line.starts_with("⟦0 1 2") && line.ends_with("98 99⟧"), "{line}");
        assert!(!shown.line(1000).contains('…'));
    }
}
