//! A label for each token, or for each word by its first token: `loss = Σ_t −ln softmax(z_t)[label_t] / tokens with a label`.
//!
//! Rows: `{"tokens", "ner_tags"}` (words and their tags), or `{"input_ids", "labels"}` (one for each token, −100: none). A
//! label is a name or its number. Of a `{"text"}` the words are what the tokenizer takes for words; it has no labels.

use std::sync::Arc;

use serde_json::{Value, json};

use super::labels::{Labels, number};
use super::lesson::{Lesson, Passage};
use super::metrics::{Entities, Values, argmax};
use super::{
    Computed, Made, Outcome, Score, Setup, Shape, Task, TaskDef, encoded, in_f32, one_stream, softmax, text,
    token_labels, tokens,
};
use crate::data::row::{Codec, Row};
use crate::data::{Encoded, Example, INPUT_IDS, LABELS, TOKEN_TYPE_IDS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "token-classification",
    peft: Some("TOKEN_CLS"),
    pipeline: "token-classification",
    architectures: &["ForTokenClassification"],
    heads: &["classifier", "score"],
    label: &[LABELS, TAGS],
    of_tokens: true,
    make: |setup| Ok(Box::new(TokenClassification::new(setup)?)),
};

const TEXT: &str = "text";
const WORDS: &str = "tokens";
const TAGS: &str = "ner_tags";
/// Columns of traced examples: the word of which a token is the first, else −1; and the bytes of a word of a text.
const WORD: &str = "word";
const BYTES: &str = "word.bytes";

/// See the module.
pub struct TokenClassification {
    labels: Labels,
}

impl TokenClassification {
    fn new(setup: &Setup) -> Result<TokenClassification> {
        match Labels::of_config(setup.config)? {
            Some(labels) => Ok(TokenClassification { labels }),
            None => Err(Error::config("config.json: id2label", "nothing", "names of the labels")),
        }
    }

    /// The numbers of a list of labels; none where the row need not have them.
    fn ids(&self, row: &Row, codec: &Codec, name: &str, count: usize) -> Result<Vec<i32>> {
        let none = |label: &Value| label.is_null() || number(label) == Some(f64::from(IGNORE));
        match row.get::<Vec<Value>>(name)? {
            Some(labels) if labels.len() != count => {
                let found = format!("{} {name} for {count} tokens", labels.len());
                Err(row.wrong(found, "one for each"))
            }
            Some(labels) => {
                labels.iter().map(|label| if none(label) { Ok(IGNORE) } else { self.labels.id(row, label) }).collect()
            }
            None if codec.unlabelled => Ok(vec![IGNORE; count]),
            None => Err(row.lacks(name)),
        }
    }

    /// An example of encoded words, of which each has its label at its first token.
    fn of_words(&self, row: &Row, codec: &Codec, from: &Encoded, labels: &[i32]) -> Result<Example> {
        let mut example = encoded(row, codec, from)?;
        let first = |i: usize| {
            from.words[i].filter(|_| from.sequence[i].is_some() && (i == 0 || from.words[i - 1] != from.words[i]))
        };
        let firsts: Vec<Option<usize>> = (0..from.len()).map(|i| first(i).map(|w| w as usize)).collect();
        let label = |word: &Option<usize>| word.and_then(|w| labels.get(w).copied()).unwrap_or(IGNORE);
        *example.ints_mut(LABELS) = firsts.iter().map(label).collect();
        if codec.traced {
            *example.ints_mut(WORD) = firsts.iter().map(|word| word.map_or(-1, |w| w as i32)).collect();
        }
        Ok(example)
    }

    /// The likeliest label of each token, and its probability.
    fn best<'a>(&'a self, computed: &'a Computed) -> impl Iterator<Item = (&'a str, f32)> {
        computed.output.chunks_exact(self.labels.len().max(1)).map(|logits| {
            let best = argmax(logits);
            (self.labels.name(best), softmax(logits)[best])
        })
    }
}

impl Task for TokenClassification {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = one_stream(shape);
        layout.weight = Arc::new(|item| item.ints(LABELS).iter().filter(|&&label| label != IGNORE).count());
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        let attended = row.attended(&[LABELS, TOKEN_TYPE_IDS])?;
        let row = attended.as_ref().unwrap_or(row);
        let (example, cut) = match [INPUT_IDS, WORDS, TEXT].map(|name| row.has(name)) {
            [true, false, false] => {
                let (mut example, cut) = tokens(row, codec)?;
                let count = row.get::<Vec<Value>>(INPUT_IDS)?.map_or(0, |ids| ids.len());
                let mut labels = self.ids(row, codec, LABELS, count)?;
                labels.truncate(codec.max_len);
                *example.ints_mut(LABELS) = labels;
                (example, cut)
            }
            [false, true, false] => {
                let words: Vec<String> = row.need(WORDS)?;
                let labels = self.ids(row, codec, TAGS, words.len())?;
                let tokenizer = codec.tokenizer(row)?;
                let kept = tokenizer.encode_words(&words, codec.max_len)?;
                let all =
                    kept.len() >= codec.max_len && tokenizer.encode_words(&words, usize::MAX)?.len() > codec.max_len;
                (self.of_words(row, codec, &kept, &labels)?, all)
            }
            [false, false, true] if codec.unlabelled => {
                let (kept, cut) = text(row, codec, &row.need::<String>(TEXT)?, None, codec.max_len)?;
                let mut example = self.of_words(row, codec, &kept, &[])?;
                *example.ints_mut(BYTES) = bytes_of_words(&kept);
                (example, cut)
            }
            _ => return Err(row.unlike(ROWS)),
        };
        let trains = codec.unlabelled || example.ints(LABELS).iter().any(|&label| label != IGNORE);
        Ok(Made { examples: if trains { vec![example] } else { Vec::new() }, cut, notes: Vec::new() })
    }

    fn lesson(&self, example: &Example) -> Lesson {
        let labels = example.ints(LABELS);
        let tag = |&label: &i32| (label != IGNORE).then(|| self.labels.name(label as usize).to_owned());
        let passage = Passage::labelled(example.ints(INPUT_IDS), labels);
        Lesson { passages: vec![Passage { tags: labels.iter().map(tag).collect(), ..passage }], answer: None }
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(Field::ints(LABELS, Axis::Token(MAIN), IGNORE, |item| token_labels(item, LABELS)))?;
        let hidden = model.hidden(nn)?;
        let logits = model.tag(nn, hidden, self.labels.len())?;
        let logits = in_f32(nn, logits)?;
        nn.g.site = "loss".into();
        let loss = nn.g.cross_entropy(logits, labels, inv)?;
        Ok(Outcome { loss, output: Some((Axis::Token(MAIN), logits)) })
    }

    fn score(&self) -> Result<Option<Box<dyn Score + '_>>> {
        let entities = Entities::new(self.labels.names())?;
        Ok(Some(Box::new(Tags { entities, labels: self.labels.len() })))
    }

    fn predict(&self, row: &Row, computed: &[Computed]) -> Result<Value> {
        let Some(computed) = computed.first() else { return Ok(json!({"labels": [], "scores": []})) };
        let words = computed.example.ints(WORD);
        if words.is_empty() {
            let (labels, scores): (Vec<&str>, Vec<f32>) = self.best(computed).unzip();
            return Ok(json!({"labels": labels, "scores": scores}));
        }
        let firsts = words.iter().zip(self.best(computed)).filter(|(word, _)| **word >= 0);
        let found: Vec<(usize, (&str, f32))> = firsts.map(|(&word, best)| (word as usize, best)).collect();
        if let Some(text) = row.get::<String>(TEXT)? {
            let bytes = computed.example.ints(BYTES);
            let one = |&(word, (label, score)): &(usize, (&str, f32))| {
                let [start, end] = [0, 1].map(|i| bytes.get(2 * word + i).map_or(0, |&b| b as usize));
                let part = |a: usize, b: usize| text.get(a..b).unwrap_or_default();
                let (first, word) = (part(0, start).chars().count(), part(start, end));
                json!({"word": word, "label": label, "score": score, "start": first, "end": first + word.chars().count()})
            };
            return Ok(json!({"words": found.iter().map(one).collect::<Vec<_>>()}));
        }
        // A word that was cut off, or has no token, has no label.
        let count = row.get::<Vec<Value>>(WORDS)?.map_or(0, |words| words.len());
        let (mut labels, mut scores) = (vec![Value::Null; count], vec![Value::Null; count]);
        for (word, (label, score)) in found.into_iter().filter(|(word, _)| *word < count) {
            labels[word] = label.into();
            scores[word] = score.into();
        }
        Ok(json!({"labels": labels, "scores": scores}))
    }
}

/// First byte of each word of a text, and one past its last.
fn bytes_of_words(from: &Encoded) -> Vec<i32> {
    let count = from.words.iter().flatten().max().map_or(0, |&last| last as usize + 1);
    let mut bytes = vec![0; 2 * count];
    let mut seen = vec![false; count];
    for ((word, offsets), _) in from.words.iter().zip(&from.offsets).zip(&from.sequence).filter(|(_, s)| s.is_some()) {
        let Some(word) = word.map(|w| w as usize) else { continue };
        if !std::mem::replace(&mut seen[word], true) {
            bytes[2 * word] = offsets.start as i32;
        }
        bytes[2 * word + 1] = offsets.end as i32;
    }
    bytes
}

/// Entities, where tags have the prefixes of some scheme; else every run of a label.
struct Tags {
    entities: Entities,
    labels: usize,
}

impl Score for Tags {
    fn add(&mut self, _row: &Row, computed: &[Computed]) -> Result<()> {
        for Computed { example, output } in computed {
            let predicted: Vec<usize> = output.chunks_exact(self.labels.max(1)).map(argmax).collect();
            self.entities.add(&predicted, example.ints(LABELS))?;
        }
        Ok(())
    }

    fn finish(&self) -> Values {
        self.entities.finish()
    }
}

/// The rows of the task.
const ROWS: &str = "tokens and ner_tags, or input_ids and labels";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_label_of_their_first_token() {
        let labels = Labels::new(vec!["O".into(), "B".into()]);
        let task = TokenClassification { labels };
        // A special token, a word of two tokens, a word; two logits each.
        let output = vec![0.0, 9.0, 0.0, 2.0, 9.0, 0.0, 3.0, 0.0];
        let mut example = Example::default();
        *example.ints_mut(WORD) = vec![-1, 0, -1, 1];
        let row = |fields: Value| Row {
            path: "data".as_ref(),
            line: 1,
            fields: fields.as_object().unwrap().clone(),
            cells: false,
        };
        let computed = [Computed { example, output }];
        // The third word was cut off.
        let got = task.predict(&row(json!({"tokens": ["né", "x", "y"]})), &computed).unwrap();
        assert_eq!(got["labels"], json!(["B", "O", null]));
        assert!((got["scores"][0].as_f64().unwrap() - 0.880797).abs() < 1e-6);
        let [mut with_bytes] = computed;
        *with_bytes.example.ints_mut(BYTES) = vec![0, 3, 4, 5];
        let got = task.predict(&row(json!({"text": "né x"})), &[with_bytes]).unwrap();
        assert_eq!(got["words"][0]["word"], "né");
        assert_eq!((&got["words"][1]["start"], &got["words"][1]["end"]), (&json!(3), &json!(4)));
    }
}
