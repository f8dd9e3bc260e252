//! Extractive question answering: where an answer starts and ends in a text (Devlin et al. 2018, section 4.2).
//!
//! `loss = Σ_s (−ln softmax(start)[start_s] − ln softmax(end)[end_s]) / 2 sequences`, each softmax over the sequence's own
//! tokens. With `qa_padding`, over the tokens of the longest sequence of the batch, as transformers has it: there padding
//! joins the softmax, so the loss depends on what a sequence is batched with.
//!
//! PEFT's PeftModelForQuestionAnswering (0.21.2) gives no token types to the model, so neither do we where an adapter is
//! trained or used, unless `qa_token_types` says so; transformers' own classes do, and whole models get them.
//!
//! Rows: `{"question", "context", "answers"}` as in SQuAD, or `{"input_ids", "start_position", "end_position"}` (and
//! `token_type_ids`). A context that is too long is cut in windows that overlap; where the answer is not in a window, or there
//! is none, the first token is to be chosen. The rules are those of transformers' run_qa.py.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::lesson::{Lesson, Passage};
use super::metrics::{self, Squad};
use super::{Computed, Made, Outcome, Score, Setup, Shape, Task, TaskDef, decoded, encoded, in_f32, streams, tokens};
use crate::data::notes::Note;
use crate::data::row::{Codec, Row};
use crate::data::values::shown;
use crate::data::{Encoded, Example, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::error::Result;
use crate::graph::Val;
use crate::models::Model;
use crate::nn::inputs::Padding;
use crate::nn::{Axis, Field, Item, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "question-answering",
    peft: Some("QUESTION_ANS"),
    pipeline: "question-answering",
    architectures: &["ForQuestionAnswering"],
    heads: &["qa_outputs"],
    label: &[],
    of_tokens: false,
    make: |setup| Ok(Box::new(QuestionAnswering::new(setup))),
};

const QUESTION: &str = "question";
const CONTEXT: &str = "context";
const ANSWERS: &str = "answers";
/// A column of traced examples: the bytes of the context that each token is, −1 and −1 if it is not of it.
const BYTES: &str = "context.bytes";
/// First and last token of the answer; −1: not in this example.
const SPAN: &str = "span";
/// Tokens of the longest answer that is predicted, as in transformers' examples.
const LONGEST: usize = 30;

/// See the module.
pub struct QuestionAnswering {
    /// What rows are padded with, if they are.
    pad: Option<i32>,
    token_types: bool,
    decoder_start: Option<i32>,
    /// Tokens that a window shares with the one before.
    stride: usize,
}

/// Answers as SQuAD's files have them; none: the question has none.
#[derive(Debug, Default, Deserialize)]
struct Answers {
    text: Vec<String>,
    /// In characters.
    #[serde(default)]
    answer_start: Vec<usize>,
}

impl QuestionAnswering {
    fn new(setup: &Setup) -> QuestionAnswering {
        let pad = setup.config.get("pad_token_id").and_then(Value::as_i64).unwrap_or(0) as i32;
        let (pad, token_types) = (setup.qa_padding.then_some(pad), setup.qa_token_types);
        QuestionAnswering { pad, token_types, decoder_start: setup.facts.decoder_start, stride: setup.stride }
    }
}

fn span(item: &Item) -> Vec<i32> {
    match item.ints(SPAN)[..] {
        [start, end] => vec![start, end],
        _ => vec![-1, -1],
    }
}

impl Task for QuestionAnswering {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = streams(shape, self.decoder_start);
        layout.weight = Arc::new(|item| span(item).iter().filter(|&&at| at >= 0).count());
        layout.padding = self.pad.map(|pad| Padding { columns: vec![(INPUT_IDS, pad), (TOKEN_TYPE_IDS, 0)] });
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        let attended = row.attended(&[TOKEN_TYPE_IDS])?;
        let row = attended.as_ref().unwrap_or(row);
        let mut notes = Vec::new();
        let (mut examples, cut) = match [INPUT_IDS, QUESTION, CONTEXT].map(|name| row.has(name)) {
            [true, false, false] => {
                let (example, cut) = tokenized(row, codec)?;
                (vec![example], cut)
            }
            [false, true, true] => (self.windows(row, codec, &mut notes)?, false),
            _ => return Err(row.unlike(ROWS)),
        };
        if !self.token_types {
            examples.iter_mut().for_each(|e| e.columns.retain(|(name, _)| *name != TOKEN_TYPE_IDS));
        }
        examples.iter_mut().for_each(|e| decoded(e, self.decoder_start));
        let trains = |e: &Example| codec.unlabelled || e.ints(SPAN).iter().any(|&at| at >= 0);
        Ok(Made { examples: examples.into_iter().filter(trains).collect(), cut, notes })
    }

    fn lesson(&self, example: &Example) -> Lesson {
        let mut passage = Passage::read(example.ints(INPUT_IDS));
        if let [start, end] = example.ints(SPAN)[..] {
            let answer = |at: usize| (start.max(0) as usize..=end.max(0) as usize).contains(&at);
            passage.trained.iter_mut().enumerate().for_each(|(at, trained)| *trained = answer(at));
        }
        Lesson { passages: vec![passage], answer: None }
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = Field { width: 2, ..Field::ints(SPAN, Axis::Sequence, -1, span) };
        let labels = nn.input(labels)?;
        let rows = |item: &Item| {
            let at = item.at(MAIN);
            vec![(at.start + at.lead) as i32, (at.start + at.len) as i32]
        };
        let ranges = nn.input(Field::ranges("span.range", Axis::Sequence, Some(0), rows))?;
        let hidden = model.hidden(nn)?;
        let logits = model.span(nn, hidden)?;
        let logits = in_f32(nn, logits)?;
        nn.g.site = "loss".into();
        let loss = nn.g.range_cross_entropy(logits, ranges, labels, inv)?;
        Ok(Outcome { loss, output: Some((Axis::Token(MAIN), logits)) })
    }

    fn score(&self) -> Result<Option<Box<dyn Score + '_>>> {
        let [v1, v2] = [Squad::V1, Squad::V2].map(metrics::Answers::new);
        Ok(Some(Box::new(Spans { v1, v2, unanswerable: false })))
    }

    fn predict(&self, row: &Row, computed: &[Computed]) -> Result<Value> {
        let Some(Found { start, end, score, none, .. }) = found(computed) else {
            return Ok(json!({"start": null, "end": null, "score": null}));
        };
        let Some(context) = row.get::<String>(CONTEXT)? else {
            return Ok(json!({"start": start, "end": end, "score": score}));
        };
        let text = context.get(start..end).unwrap_or_default();
        let first = context.get(..start).unwrap_or_default().chars().count();
        let last = first + text.chars().count();
        Ok(json!({"answer": text, "start": first, "end": last, "score": score, "no_answer_score": none}))
    }
}

/// An example of a tokenized row, and whether it was cut.
fn tokenized(row: &Row, codec: &Codec) -> Result<(Example, bool)> {
    let (mut example, cut) = tokens(row, codec)?;
    match [row.get::<usize>("start_position")?, row.get::<usize>("end_position")?] {
        [Some(start), Some(end)] => {
            let all = row.get::<Vec<i64>>(INPUT_IDS)?.map_or(0, |ids| ids.len());
            if start > end || end >= all {
                let found = format!("an answer from {start} to {end} in {all} tokens");
                return Err(row.wrong(found, "0 ≤ start_position ≤ end_position < number of tokens"));
            }
            let kept = |at: usize| if at < codec.max_len { at as i32 } else { -1 };
            *example.ints_mut(SPAN) = vec![kept(start), kept(end)];
        }
        _ if codec.unlabelled => {}
        _ => return Err(row.wrong(format!("the fields {}", row.names()), "start_position and end_position")),
    }
    Ok((example, cut))
}

impl QuestionAnswering {
    /// The windows of a question and its context.
    fn windows(&self, row: &Row, codec: &Codec, notes: &mut Vec<Note>) -> Result<Vec<Example>> {
        let (question, context): (String, String) = (row.need(QUESTION)?, row.need(CONTEXT)?);
        let answer = match row.get::<Answers>(ANSWERS)? {
            Some(answers) => answers.bytes(row, &context)?,
            None if codec.unlabelled => None,
            None => return Err(row.lacks(ANSWERS)),
        };
        let windows = codec.tokenizer(row)?.encode_windows(&question, &context, codec.max_len, self.stride)?;
        if answer.is_some() && windows.iter().all(|window| tokens_of(window, answer.as_ref()) == [0, 0]) {
            notes.push(Note::AnswerCut);
        }
        let one = |window: &Encoded| {
            let mut example = encoded(row, codec, window)?;
            *example.ints_mut(SPAN) = tokens_of(window, answer.as_ref()).map(|at| at as i32).to_vec();
            if codec.traced {
                let bytes = (0..window.len()).flat_map(|i| match window.sequence[i] {
                    Some(1) => [window.offsets[i].start as i32, window.offsets[i].end as i32],
                    _ => [-1, -1],
                });
                *example.ints_mut(BYTES) = bytes.collect();
            }
            Ok(example)
        };
        windows.iter().map(one).collect()
    }
}

impl Answers {
    /// The bytes of the first answer in `context`.
    fn bytes(&self, row: &Row, context: &str) -> Result<Option<Range<usize>>> {
        let Some(text) = self.text.first() else { return Ok(None) };
        let byte = |at: &usize| context.char_indices().map(|(byte, _)| byte).chain([context.len()]).nth(*at);
        let Some(start) = self.answer_start.first().and_then(byte) else {
            let found = format!("answers {:?} at {:?}", self.text, self.answer_start);
            return Err(row.wrong(found, "answers within the context"));
        };
        let rest = &context[start..];
        if rest.starts_with(text.as_str()) {
            return Ok(Some(start..start + text.len()));
        }
        // White space around an answer is not always the context's.
        let (answer, trimmed) = (text.trim(), rest.trim_start());
        if !answer.is_empty() && trimmed.starts_with(answer) {
            let start = context.len() - trimmed.len();
            return Ok(Some(start..start + answer.len()));
        }
        let there: String = rest.chars().take(text.chars().count()).collect();
        let found = format!("{} at answer_start {}", shown(&there.into()), self.answer_start[0]);
        let expected =
            format!("the answer {}: answer_start counts characters, not bytes", shown(&text.as_str().into()));
        Err(row.wrong(found, expected))
    }
}

/// First and last token of the answer that is at these bytes of the context; the first token of all where it is not, or not
/// whole, in this window.
fn tokens_of(window: &Encoded, answer: Option<&Range<usize>>) -> [usize; 2] {
    let own = || (0..window.len()).filter(|&i| window.sequence[i] == Some(1));
    let Some((answer, (first, last))) = answer.zip(own().next().zip(own().next_back())) else { return [0, 0] };
    if window.offsets[first].start > answer.start || window.offsets[last].end < answer.end {
        return [0, 0];
    }
    let start = own().rfind(|&i| window.offsets[i].start <= answer.start);
    let end = own().find(|&i| window.offsets[i].end >= answer.end);
    [start.unwrap_or(0), end.unwrap_or(0)]
}

/// The likeliest answer in all windows of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    /// Where it is: bytes of the context, or tokens of a tokenized row.
    start: usize,
    end: usize,
    score: f32,
    /// The score of no answer: that of the first token, the least of all windows.
    none: f32,
}

fn found(computed: &[Computed]) -> Option<Found> {
    let none = computed.iter().map(|c| c.output.iter().take(2).sum::<f32>()).fold(f32::INFINITY, f32::min);
    let mut best: Option<Found> = None;
    for Computed { example, output } in computed {
        let bytes = example.ints(BYTES);
        let span = best_span(output, |t| bytes.is_empty() || bytes.get(2 * t).is_some_and(|&b| b >= 0));
        if let Some(Span { start, end, score }) = span.filter(|s| best.is_none_or(|b| s.score > b.score)) {
            let at = |i: usize| bytes.get(i).map(|&b| b as usize);
            let (start, end) = (at(2 * start).unwrap_or(start), at(2 * end + 1).unwrap_or(end));
            best = Some(Found { start, end, score, none });
        }
    }
    best
}

/// SQuAD's scores: of 1.1, or of 2.0 if a question has no answer. A tokenized row's answer is its tokens.
struct Spans {
    v1: metrics::Answers,
    v2: metrics::Answers,
    unanswerable: bool,
}

impl Score for Spans {
    fn add(&mut self, row: &Row, computed: &[Computed]) -> Result<()> {
        let best = found(computed);
        let (text, right) = match row.get::<String>(CONTEXT)? {
            Some(context) => {
                let text = best.and_then(|b| context.get(b.start..b.end)).unwrap_or_default().to_owned();
                (text, row.get::<Answers>(ANSWERS)?.unwrap_or_default().text)
            }
            None => {
                let Some(Computed { example, .. }) = computed.first() else { return Ok(()) };
                let part = |from: usize, to: usize| {
                    let ids = example.ints(INPUT_IDS).get(from..to + 1).unwrap_or_default();
                    ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
                };
                let right = match example.ints(SPAN) {
                    [start, end] if *start >= 0 && *end >= 0 => vec![part(*start as usize, *end as usize)],
                    _ => return Ok(()),
                };
                (best.map_or(String::new(), |b| part(b.start, b.end)), right)
            }
        };
        self.unanswerable |= right.is_empty();
        self.v1.add(&text, &right);
        let answers = best.is_some_and(|b| b.score >= b.none);
        self.v2.add(if answers { &text } else { "" }, &right);
        Ok(())
    }

    fn finish(&self) -> metrics::Values {
        if self.unanswerable { self.v2.finish() } else { self.v1.finish() }
    }
}

/// An answer: its first and last token, and the sum of their logits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: usize,
    end: usize,
    score: f32,
}

/// The likeliest answer among tokens that `may` be in it, from logits [tokens, 2].
fn best_span(logits: &[f32], may: impl Fn(usize) -> bool) -> Option<Span> {
    let tokens = logits.len() / 2;
    let mut best: Option<Span> = None;
    for start in (0..tokens).filter(|&t| may(t)) {
        for end in (start..tokens.min(start + LONGEST)).filter(|&t| may(t)) {
            let score = logits[2 * start] + logits[2 * end + 1];
            if best.is_none_or(|b| score > b.score) {
                best = Some(Span { start, end, score });
            }
        }
    }
    best
}

/// The rows of the task.
const ROWS: &str = "question, context and answers, or input_ids, start_position and end_position";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Tokenizer;

    #[test]
    fn the_likeliest_span_starts_before_it_ends() {
        // Start and end logits of four tokens.
        let logits = [0.0, 5.0, 1.0, 0.0, 4.0, 1.0, 0.0, 3.0];
        assert_eq!(best_span(&logits, |_| true), Some(Span { start: 2, end: 3, score: 7.0 }));
        assert_eq!(best_span(&logits, |t| t < 2), Some(Span { start: 0, end: 0, score: 5.0 }));
        assert_eq!(best_span(&logits, |_| false), None);
        let mut long = vec![0.0; 2 * (LONGEST + 5)];
        (long[0], long[2 * LONGEST + 1], long[2 * LONGEST - 1]) = (9.0, 9.0, 8.0);
        assert_eq!(best_span(&long, |_| true), Some(Span { start: 0, end: LONGEST - 1, score: 17.0 }));
    }

    #[test]
    fn an_answer_is_the_likeliest_of_all_windows() {
        let context = "né à Paris, where the café is";
        let fields = json!({"question": "?", "context": context, "answers": {"text": ["café"], "answer_start": [22]}});
        let row = Row { path: "data".as_ref(), line: 1, fields: fields.as_object().unwrap().clone(), cells: false };
        let answers = row.get::<Answers>(ANSWERS).unwrap().unwrap();
        // Characters are not bytes.
        assert_eq!(answers.bytes(&row, context).unwrap(), Some(24..29));
        let window = |bytes: &[i32], output: &[f32]| {
            let mut example = Example::default();
            *example.ints_mut(BYTES) = bytes.to_vec();
            Computed { example, output: output.to_vec() }
        };
        let computed = [
            window(&[-1, -1, 6, 11], &[3.0, 3.0, 2.0, 2.0]),
            // The token before the context scores most, and may not be in an answer.
            window(&[-1, -1, 24, 29, 30, 32], &[1.0, 1.5, 4.0, 1.0, 9.0, 0.5]),
        ];
        let task = QuestionAnswering { pad: None, token_types: true, decoder_start: None, stride: 0 };
        let last = json!({"answer": "is", "start": 27, "end": 29, "score": 9.5, "no_answer_score": 2.5});
        assert_eq!(task.predict(&row, &computed).unwrap(), last);
        let mut score = task.score().unwrap().unwrap();
        score.add(&row, &computed).unwrap();
        score.add(&row, &[window(&[-1, -1, 24, 29], &[0.0, 0.0, 1.0, 1.0])]).unwrap();
        assert_eq!(score.finish(), [("exact_match", 50.0), ("f1", 50.0)]);
        // A question without an answer makes it SQuAD 2.0, where the first token may win.
        let none = json!({"question": "?", "context": context, "answers": {"text": [], "answer_start": []}});
        let none = Row { path: "data".as_ref(), line: 2, fields: none.as_object().unwrap().clone(), cells: false };
        score.add(&none, &[window(&[-1, -1, 24, 29], &[5.0, 5.0, 1.0, 1.0])]).unwrap();
        let values = score.finish();
        assert!(values[0].0 == "exact" && (values[0].1 - 200.0 / 3.0).abs() < 1e-9, "{values:?}");
        assert_eq!(values.last(), Some(&("NoAns_f1", 100.0)));
        assert!(Answers { text: vec!["Paris".into()], answer_start: vec![90] }.bytes(&row, context).is_err());
    }

    #[test]
    fn an_answer_is_where_it_is_said_to_be() {
        let context = "né à Paris, où est le café";
        let row = Row { path: "data".as_ref(), line: 3, fields: Default::default(), cells: false };
        let bytes = |text: &str, start: usize| {
            let answers = Answers { text: vec![text.into()], answer_start: vec![start] };
            answers.bytes(&row, context).map_err(|e| e.to_string())
        };
        assert_eq!(bytes("Paris", 5), Ok(Some(7..12)));
        // White space of the answer alone, or of the context alone, is no other answer.
        assert_eq!(bytes(" Paris", 4), Ok(Some(6..12)));
        assert_eq!(bytes("Paris ", 4), Ok(Some(7..12)));
        let error = bytes("Paris", 7).unwrap_err();
        assert!(
            error.starts_with("data:3: found \"ris, \" at answer_start 7, expected the answer \"Paris\": "),
            "{error}"
        );
        assert!(bytes("café", 24).unwrap_err().contains("found \"fé\" at"));
        assert!(bytes("paris", 5).is_err());
    }

    #[test]
    fn an_answer_that_no_window_has_is_told() {
        let tokenizer = Tokenizer::from_folder("tests/golden/tokenizers/bert").unwrap();
        let context = "the one and the other and a third one";
        let fields = json!({"question": "?", "context": context, "answers": {"text": ["one and the other"], "answer_start": [4]}});
        let row = Row { path: "data".as_ref(), line: 1, fields: fields.as_object().unwrap().clone(), cells: false };
        let encode = |_: &str| -> Result<Vec<u32>> { Ok(Vec::new()) };
        let task = QuestionAnswering { pad: None, token_types: true, decoder_start: None, stride: 0 };
        let notes = |max_len: usize| {
            let codec = Codec {
                encode: &encode,
                tokenizer: Some(&tokenizer),
                chats: None,
                bos: None,
                eos: None,
                vocab: usize::MAX,
                max_len,
                max_target_len: 8,
                unlabelled: false,
                traced: false,
            };
            task.examples(&row, &codec).unwrap().notes
        };
        assert_eq!((notes(64), notes(6)), (vec![], vec![Note::AnswerCut]));
    }

    #[test]
    fn token_types_are_given_or_left_out() {
        let fields =
            json!({"input_ids": [1, 2, 3], "token_type_ids": [0, 1, 1], "start_position": 1, "end_position": 2});
        let row = Row { path: "data".as_ref(), line: 1, fields: fields.as_object().unwrap().clone(), cells: false };
        let encode = |_: &str| -> Result<Vec<u32>> { Ok(Vec::new()) };
        let codec = Codec {
            encode: &encode,
            tokenizer: None,
            chats: None,
            bos: None,
            eos: None,
            vocab: 9,
            max_len: 8,
            max_target_len: 8,
            unlabelled: false,
            traced: false,
        };
        for (token_types, want) in [(true, &[0, 1, 1][..]), (false, &[])] {
            let task = QuestionAnswering { pad: None, token_types, decoder_start: None, stride: 0 };
            assert_eq!(task.examples(&row, &codec).unwrap().examples[0].ints(TOKEN_TYPE_IDS), want);
        }
    }

    #[test]
    fn answers_become_tokens_of_the_window_that_has_them() {
        // [CLS] q [SEP] and three words of a context at bytes 10..20.
        let window = Encoded {
            ids: vec![0; 6],
            type_ids: vec![0; 6],
            offsets: vec![0..0, 0..1, 0..0, 10..13, 14..17, 18..20],
            sequence: vec![None, Some(0), None, Some(1), Some(1), Some(1)],
            words: vec![None; 6],
        };
        let table = [
            (Some(14..17), [4, 4]),
            (Some(10..20), [3, 5]),
            // Within words: the tokens that it is in.
            (Some(11..15), [3, 4]),
            // Not, or not whole, in the window; none at all.
            (Some(0..3), [0, 0]),
            (Some(18..25), [0, 0]),
            (None, [0, 0]),
        ];
        for (answer, want) in table {
            assert_eq!(tokens_of(&window, answer.as_ref()), want, "{answer:?}");
        }
    }
}
