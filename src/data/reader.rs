//! A [`Dataset`] of what a task makes of the rows of files, in one pass. Plain text is one document, cut into windows of the
//! longest length allowed.
//!
//! What is trained is decided by position, never by token id: an end token that also serves as padding
//! is still learnt, or the model would never stop.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::formats::text;
use super::long::Long;
use super::notes::{Made, Note};
use super::row::{Codec, Row};
use super::source::{Data, DataFile};
use super::split::Split;
use super::{Dataset, Example};
use crate::error::{Error, Result};

/// What is done with examples that are longer than the longest length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooLong {
    /// They are cut to it.
    #[default]
    Cut,
    /// They are left out.
    Drop,
    /// They are an error.
    Error,
}

impl TooLong {
    /// All of them.
    pub const ALL: [TooLong; 3] = [TooLong::Cut, TooLong::Drop, TooLong::Error];

    /// As it is spelled in settings.
    pub fn name(self) -> &'static str {
        match self {
            TooLong::Cut => "cut",
            TooLong::Drop => "drop",
            TooLong::Error => "error",
        }
    }

    /// Whether a row whose examples were cut is left out.
    pub fn drops(self, row: &Row, codec: &Codec) -> Result<bool> {
        match self {
            TooLong::Cut => Ok(false),
            TooLong::Drop => Ok(true),
            TooLong::Error => {
                let expected = "no more: raise --max-seq-len, or --too-long cut or drop";
                Err(row.wrong(format!("an example of more than {} tokens", codec.max_len), expected))
            }
        }
    }
}

/// How many rows are so, and where the first of them is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub count: usize,
    /// File and line.
    pub first: Option<String>,
}

impl Count {
    fn add(&mut self, row: &Row) {
        self.count += 1;
        self.first.get_or_insert_with(|| row.place());
    }
}

/// What was read, and what could not be used as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Examples cut to the longest length.
    pub truncated: Count,
    /// Examples left out because they are longer.
    pub dropped: Count,
    /// Examples left out because none of their tokens would be trained.
    pub untrained: Count,
    /// Prompts that end in a space.
    pub spaced: Count,
    /// Completions without a text.
    pub empty: Count,
    /// Rows of which the task has something to say.
    pub noted: BTreeMap<Note, Count>,
}

impl Report {
    /// A sentence for each thing a user should know.
    pub fn warnings(&self, max_seq_len: usize) -> Vec<String> {
        let sentences = [
            (
                &self.truncated,
                ["example was", "examples were"],
                format!("cut to {max_seq_len} tokens"),
                "raise --max-seq-len to keep all of it",
            ),
            (
                &self.dropped,
                ["example was", "examples were"],
                format!("left out for more than {max_seq_len} tokens"),
                "raise --max-seq-len, or --too-long cut",
            ),
            (&self.untrained, ["example was", "examples were"], "left out".into(), "no token of it would be trained"),
            (
                &self.spaced,
                ["prompt ends", "prompts end"],
                "in a space".into(),
                "most tokenizers have the space in the token after it, so a model asked with such a prompt sees what it has \
                 not learnt; begin the completions with the space",
            ),
            (
                &self.empty,
                ["completion is", "completions are"],
                "empty".into(),
                "only the end of the text is learnt there",
            ),
        ];
        let noted = self.noted.iter().map(|(note, count)| {
            let (subject, what, why) = note.sentence();
            (count, subject, what, why)
        });
        let told = sentences.into_iter().chain(noted).filter_map(|(Count { count, first }, [one, more], what, why)| {
            let subject = if *count == 1 { one } else { more };
            first.as_ref().map(|first| format!("{count} {subject} {what}, the first at {first}: {why}"))
        });
        told.collect()
    }

    /// The chats without a turn of the assistant, and their roles, if there are such chats.
    fn no_assistant(&self) -> Option<String> {
        self.noted.iter().find_map(|(note, count)| match note {
            Note::NoAssistant(roles) => {
                let chats = if count.count == 1 { "chat" } else { "chats" };
                Some(format!("{} {chats} with no turn of the role assistant, but of {roles}", count.count))
            }
            _ => None,
        })
    }

    /// Counts what is odd about the texts of a row.
    fn texts(&mut self, row: &Row) {
        let text = |name: &str| row.fields.get(name).and_then(Value::as_str);
        let (Some(prompt), Some(completion)) = (text("prompt"), text("completion")) else { return };
        if prompt.ends_with(' ') {
            self.spaced.add(row);
        }
        if completion.is_empty() {
            self.empty.add(row);
        }
    }
}

/// Makes examples of a row.
pub type Make<'a> = &'a dyn Fn(&Row, &Codec) -> Result<Made>;

/// Reads all of `data`.
pub fn read(data: &Data, codec: &Codec, make: Make, too_long: TooLong) -> Result<(Dataset, Report)> {
    if codec.max_len < 2 {
        let expected = "at least 2: a token is learnt from the ones before it";
        return Err(Error::config("max_seq_len", codec.max_len.to_string(), expected));
    }
    let (mut all, mut report) = (Dataset::default(), Report::default());
    for part in data.parts() {
        let before = all.len();
        for file in &data.files()[part.files.clone()] {
            if !file.format.has_rows() {
                windows(file, data.split(), codec, &mut |_, window| {
                    all.push(&Example::labelled(window.to_vec(), window.to_vec()))
                })?;
                continue;
            }
            data.rows_of(file, &mut |row| {
                let Made { examples, cut, notes } = make(row, codec)?;
                report.texts(row);
                if cut && too_long.drops(row, codec)? {
                    report.dropped.add(row);
                    return Ok(true);
                }
                if cut {
                    report.truncated.add(row);
                }
                notes.into_iter().for_each(|note| report.noted.entry(note).or_default().add(row));
                if examples.is_empty() {
                    report.untrained.add(row);
                }
                examples.iter().try_for_each(|example| all.push(example))?;
                Ok(true)
            })?;
        }
        match part.weight {
            Some(_) if all.len() == before => {
                return Err(Error::file(&part.name, "no examples", "examples to learn from, as it has a weight"));
            }
            Some(weight) => all.end_part(weight),
            None => {}
        }
    }
    if all.is_empty() {
        if let Some(found) = report.no_assistant() {
            let expected = "turns of the role assistant to train, or --train-on all";
            return Err(Error::file(data.to_string(), found, expected));
        }
        let found = match (report.untrained.count, report.dropped.count, data.split()) {
            (0, 0, Some(split)) => format!("no row besides those that --split {} holds out", split.share),
            (0, 0, None) => "no examples".into(),
            (0, n, _) => format!("{n} examples, all of more than {} tokens", codec.max_len),
            (n, ..) => format!("{n} examples, none with a token to train in its first {}", codec.max_len),
        };
        return Err(Error::file(data.to_string(), found, "at least one example that trains a token"));
    }
    Ok((all, report))
}

/// Gives a file of plain text to `on` in windows of the longest length, with the tokens of the whole: the line that is
/// being read, and the tokens. The text is read and encoded a piece at a time. Windows on the other side of a `split` are
/// passed over.
pub fn windows(
    file: &DataFile,
    split: Option<Split>,
    codec: &Codec,
    on: &mut dyn FnMut(usize, &[i32]) -> Result<()>,
) -> Result<()> {
    let row = |line| Row { path: &file.name, line, fields: Map::new(), cells: false };
    let mut long = Long::new(codec.tokenizer(&row(1))?);
    let mut pending: Vec<i32> = codec.bos.map(|id| id as i32).into_iter().collect();
    let mut begun = false;
    text::pieces(file.input()?, &mut |line, piece, last| {
        let mut ids = long.push(piece)?;
        if last {
            ids.extend(long.finish());
        }
        // What begins a document is there already.
        let again = usize::from(!begun && codec.bos.is_some() && ids.first() == codec.bos.as_ref());
        begun |= !ids.is_empty();
        for id in ids.into_iter().skip(again) {
            pending.push(codec.token(&row(line), id.into())?);
        }
        if last && !pending.is_empty() {
            codec.end(&mut pending);
        }
        let whole = if last { pending.len() } else { pending.len() / codec.max_len * codec.max_len };
        for window in pending[..whole].chunks(codec.max_len) {
            // The text's last token alone trains nothing; that is no fault of the file.
            if window.len() > 1 && split.is_none_or(|split| split.has_window(window)) {
                on(line, window)?;
            }
        }
        pending.drain(..whole);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    use super::super::tokenizer::Tokenizer;
    use super::super::{INPUT_IDS, LABELS};
    use super::*;
    use crate::nn::IGNORE;
    use crate::tasks::{Task, causal_lm::CausalLm};

    /// A byte is a token; 256 begins and 257 ends a document.
    fn bytes(text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    /// The same as a tokenizer: byte-level, without merges.
    static BYTES: LazyLock<Tokenizer> = LazyLock::new(|| {
        let mut others = 256..;
        let mut letter = |byte: u8| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => char::from(byte),
            _ => others.next().and_then(char::from_u32).unwrap(),
        };
        let vocab: Map<String, Value> = (0..=255).map(|byte| (letter(byte).to_string(), byte.into())).collect();
        let words = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let model = serde_json::json!({"type": "BPE", "vocab": vocab, "merges": []});
        let json = serde_json::json!({"version": "1.0", "pre_tokenizer": words, "model": model}).to_string();
        let folder = std::env::temp_dir().join(format!("trimtab-reader-bytes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        tokenizer
    });

    fn codec(max_len: usize) -> Codec<'static> {
        let (bos, eos) = (Some(256), Some(257));
        Codec {
            encode: &bytes,
            tokenizer: Some(&BYTES),
            chats: None,
            bos,
            eos,
            vocab: 258,
            max_len,
            max_target_len: max_len,
            unlabelled: false,
            traced: false,
        }
    }

    fn read_with(path: &Path, codec: &Codec) -> Result<(Dataset, Report)> {
        read(&Data::of(path, None, &[])?, codec, &|row, codec| CausalLm.examples(row, codec), TooLong::Cut)
    }

    /// Tokens and labels of each example.
    fn rows(data: &Dataset) -> Vec<(Vec<i32>, Vec<i32>)> {
        let ints = |i: usize, name| data.column(i, name).unwrap().ints().to_vec();
        (0..data.len()).map(|i| (ints(i, INPUT_IDS), ints(i, LABELS))).collect()
    }

    /// A file of its own that goes when the test ends.
    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str, content: &[u8]) -> Temp {
            let unique = format!("trimtab-reader-{}-{:?}-{name}", std::process::id(), std::thread::current().id());
            let path = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
            std::fs::write(&path, content).unwrap();
            Temp(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    fn read_as(name: &str, content: &[u8], max_seq_len: usize) -> Result<(Dataset, Report)> {
        read_with(&Temp::new(name, content).0, &codec(max_seq_len))
    }

    #[test]
    fn lines_become_tokens_and_labels() {
        const X: i32 = IGNORE;
        let table: &[(&str, &[i32], &[i32])] = &[
            (r#"{"text": "ab"}"#, &[256, 97, 98, 257], &[256, 97, 98, 257]),
            (r#"{"prompt": "ab", "completion": "c"}"#, &[256, 97, 98, 99, 257], &[X, X, X, 99, 257]),
            // The end token is learnt although the prompt has it too: masks go by position.
            (r#"{"prompt": "", "completion": ""}"#, &[256, 257], &[X, 257]),
            (r#"{"input_ids": [5, 257, 6]}"#, &[5, 257, 6], &[5, 257, 6]),
            (r#"{"labels": [-100, 7, -100], "input_ids": [5, 7, 6], "id": "x"}"#, &[5, 7, 6], &[X, 7, X]),
            (r#"{"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]}"#, &[5, 6, 7], &[X, X, 7]),
            (
                r#"{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}"#,
                &[5, 6, 7, 8],
                &[X, 6, X, 8],
            ),
            (
                r#"{"input_ids": [5, 6, 9], "labels": [5, 6, 9], "assistant_masks": [0, 1, 1], "attention_mask": [1, 1, 0]}"#,
                &[5, 6],
                &[X, 6],
            ),
            (
                r#"{"input_ids": [9, 5, 6], "position_ids": [1, 0, 1], "seq_lengths": [2], "attention_mask": [0, 1, 1]}"#,
                &[5, 6],
                &[5, 6],
            ),
            (r#"{"text": "a", "prompt": null, "completion": null}"#, &[256, 97, 257], &[256, 97, 257]),
        ];
        for (line, ids, labels) in table {
            let (data, report) = read_as("a.jsonl", line.as_bytes(), 8).unwrap();
            assert_eq!(rows(&data), [(ids.to_vec(), labels.to_vec())], "{line}");
            let empty = usize::from(line.contains("\"completion\": \"\""));
            assert_eq!(report.empty.count, empty);
            assert_eq!(report, Report { empty: report.empty.clone(), ..Report::default() });
        }
        let all = table.iter().map(|row| row.0).collect::<Vec<_>>().join("\r\n\n");
        let (data, _) = read_as("all", format!("\u{feff} {all}").as_bytes(), 8).unwrap();
        let want: Vec<_> = table.iter().map(|row| (row.1.to_vec(), row.2.to_vec())).collect();
        assert_eq!(rows(&data), want);
        assert_eq!((data.len(), data.longest(INPUT_IDS)), (table.len(), 5));
    }

    #[test]
    fn an_end_written_out_is_not_doubled() {
        let encode = |text: &str| Ok(if text.ends_with('$') { vec![9, 3] } else { vec![9] });
        let codec = Codec { encode: &encode, bos: None, eos: Some(3), vocab: 10, ..codec(8) };
        for text in ["x$", "x"] {
            let file = Temp::new("eos.jsonl", format!("{{\"text\": \"{text}\"}}").as_bytes());
            let (data, _) = read_with(&file.0, &codec).unwrap();
            assert_eq!(data.ids(0), [9, 3]);
        }
    }

    #[test]
    fn long_and_empty_examples_are_counted() {
        let lines = [
            r#"{"prompt": "p", "completion": "c"}"#,
            r#"{"prompt": "longer than the limit", "completion": "never seen"}"#,
            r#"{"text": "123456789"}"#,
            r#"{"input_ids": [1, 2], "labels": [1, -100]}"#,
            r#"{"input_ids": []}"#,
        ];
        let (data, report) = read_as("a.jsonl", lines.join("\n").as_bytes(), 8).unwrap();
        assert_eq!(rows(&data).iter().map(|(ids, _)| ids.len()).collect::<Vec<_>>(), [4, 8]);
        assert_eq!((report.truncated.count, report.untrained.count), (2, 3));
        let first = |count: &Count| count.first.as_ref().unwrap().ends_with("a.jsonl:2");
        assert!(first(&report.truncated) && first(&report.untrained), "{report:?}");
        assert_eq!(report.warnings(8).len(), 2);
        let error = read_as("a.jsonl", lines[3].as_bytes(), 8).unwrap_err().to_string();
        assert!(error.contains("1 examples, none"), "{error}");
    }

    #[test]
    fn odd_texts_are_counted() {
        let lines = [
            r#"{"prompt": "p ", "completion": "c"}"#,
            r#"{"prompt": "p", "completion": ""}"#,
            r#"{"prompt": "p ", "completion": ""}"#,
        ];
        let (_, report) = read_as("a.jsonl", lines.join("\n").as_bytes(), 8).unwrap();
        let warnings = report.warnings(8);
        let one = Report { truncated: Count { count: 1, first: Some("a.jsonl:3".into()) }, ..Report::default() };
        assert!(one.warnings(8)[0].starts_with("1 example was cut to 8 tokens, the first at a.jsonl:3: raise"));
        let told = |i: usize, begins: &str, place: &str| warnings[i].starts_with(begins) && warnings[i].contains(place);
        assert!(told(0, "2 prompts end in a space, the first at ", "a.jsonl:1: most"), "{warnings:?}");
        assert!(told(1, "2 completions are empty, the first at ", "a.jsonl:2: only"), "{warnings:?}");
        assert_eq!(warnings.len(), 2);
        let noted = [(Note::AnswerCut, Count { count: 2, first: Some("a.jsonl:3".into()) })].into();
        let noted = Report { noted, ..Report::default() }.warnings(8);
        assert!(noted[0].starts_with("2 answers are whole in no window of the context, the first at a.jsonl:3: no"));
        let noted = [(Note::NoAssistant("model, user".into()), Count { count: 1, first: None })].into();
        let found = Report { noted, ..Report::default() }.no_assistant();
        assert_eq!(found.as_deref(), Some("1 chat with no turn of the role assistant, but of model, user"));
    }

    #[test]
    fn text_is_cut_into_windows() {
        // Three pieces, one without a line break in it, with characters of several bytes across the borders.
        let mut text = "käse\n".repeat(200_000);
        text.push_str(&"ü".repeat(1 << 20));
        for (length, window) in [(1, 2), (7, 3), (10, 5), (text.len() / 2 * 2, 4096)] {
            let text = &text[..text.floor_char_boundary(length)];
            let (data, report) = match read_as("a.txt", text.as_bytes(), window) {
                Ok(read) => read,
                Err(error) => panic!("{length}: {error}"),
            };
            let mut want = vec![256];
            want.extend(bytes(text).unwrap().into_iter().map(|id| id as i32));
            want.push(257);
            if want.len() % window == 1 {
                want.pop();
            }
            let rows = rows(&data);
            assert_eq!(rows.iter().flat_map(|(ids, _)| ids).copied().collect::<Vec<_>>(), want, "{length}");
            assert!(rows.iter().take(data.len() - 1).all(|(ids, _)| ids.len() == window));
            assert!(rows.iter().all(|(ids, labels)| ids == labels));
            assert_eq!(report, Report::default());
        }
    }

    #[test]
    fn tokenized_files_are_known_by_their_first_line() {
        let table: [(&str, &[u8], bool); 8] = [
            ("a.jsonl", b"\xEF\xBB\xBF\n \r\n{\"input_ids\": [1]}\n{\"text\": \"\"}", true),
            ("a", b"{\"input_ids\": []}", true),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"input_ids\": [1]}", false),
            ("a.jsonl", b"{\"input_ids\": null}", false),
            ("a.jsonl", b"{\"input_ids\": [", false),
            ("a.txt", b"{\"input_ids\": [1]}", true),
            ("a.json", b"[\n{\"input_ids\": [1]}]", true),
            ("a.txt", b"input_ids", false),
        ];
        for (name, content, want) in table {
            let file = Temp::new(name, content);
            let data = Data::of(&file.0, None, &[]);
            assert_eq!(data.is_ok_and(|data| data.is_tokenized()), want, "{name}: {content:?}");
        }
        let columns = [("input_ids".to_string(), "ids".to_string())];
        let file = Temp::new("a.jsonl", b"{\"ids\": [1]}");
        assert!(Data::of(&file.0, None, &columns).unwrap().is_tokenized());
    }

    #[test]
    fn rows_are_the_same_in_every_layout() {
        let rows = [r#"{"text": "ab", "score": NaN}"#, r#"{"prompt": "a", "completion": "b", "x": {"y": [1]}}"#];
        let pretty = rows.map(|row| row.replace(", \"", ",\n  \"").replace('}', "\n}"));
        let (want, _) = read_as("a.jsonl", rows.join("\n").as_bytes(), 8).unwrap();
        for text in [
            rows.concat(),
            pretty.join("\n"),
            format!("[{}]", rows.join(",")),
            format!("[\n{}\n]\n", pretty.join(",\n")),
        ] {
            for name in ["a.json", "a.jsonl", "a.txt", "a"] {
                assert_eq!(read_as(name, text.as_bytes(), 8).unwrap().0, want, "{name}: {text}");
            }
        }
        let two = Temp::new("two.jsonl", b"{\"text\": \"a\"}\nnothing");
        Data::of(&two.0, None, &[]).unwrap();
        assert!(Data::of(&two.0, None, &[("text".into(), "body".into())]).is_err());
        assert!(Data::of(&Temp::new("one.jsonl", b"{\"text\": a}").0, None, &[]).is_err());
        let error = read_as("a.json", b"[{\"text\": \"a\"},\n\n{\"text\":\n3}]", 8).unwrap_err().to_string();
        assert!(error.contains("a.json:3: found text 3"), "{error}");
    }

    #[test]
    fn columns_may_change_places() {
        let columns = [("text", "prompt"), ("id", "text")].map(|(a, b)| (a.to_string(), b.to_string()));
        let file = Temp::new("columns.jsonl", br#"{"text": "a", "prompt": "b", "more": 1}"#);
        let mut seen = Vec::new();
        Data::of(&file.0, None, &columns)
            .unwrap()
            .rows(&mut |row| {
                seen.push((row.need::<String>("text")?, row.need::<String>("id")?, row.has("prompt"), row.has("more")));
                Ok(true)
            })
            .unwrap();
        assert_eq!(seen, [("b".to_string(), "a".to_string(), false, true)]);
        let missing = [("text".to_string(), "body".to_string())];
        let error = Data::of(&file.0, None, &missing).err().unwrap().to_string();
        assert!(error.contains("columns.jsonl:1: found no column body among text, prompt, more"), "{error}");
    }

    #[test]
    fn errors_name_the_line_and_what_was_found() {
        let table: &[(&str, &[u8], &str)] = &[
            ("a.jsonl", b"{\"text\": \"a\"}\n\n{\"text\": 3}", "a.jsonl:3: found text 3, expected a string"),
            ("a.jsonl", b"{\"text\": \"a\"\n", "a.jsonl:1: found an object that does not end"),
            ("a.jsonl", b"{\"messages\": []}", "a.jsonl:1: found a chat without a message, expected at least one"),
            ("a.jsonl", b"{\"label\": 1}", "a.jsonl:1: found the fields label, expected exactly one of: text"),
            ("a.jsonl", b"{\"text\": \"a\", \"prompt\": \"b\"}", "the fields text, prompt"),
            ("a.jsonl", b"{\"prompt\": \"b\"}", "the fields prompt"),
            ("a.jsonl", b"{}", "the fields none"),
            (
                "a.jsonl",
                b"{\"text\": null, \"id\": 1}",
                "a.jsonl:1: found the fields text (null), id, expected exactly",
            ),
            ("a.csv", b"prompt,completion\na,b\nc,", "a.csv:3: found the fields prompt, completion (empty), expected"),
            ("a.jsonl", b"[1]", "a.jsonl:1: found `1]`, expected an object"),
            ("a.jsonl", b"{\"text\": \"\xff\"}", "a.jsonl:1: found bytes that are not UTF-8 at column 11"),
            ("a.jsonl", b"{\"input_ids\": [258]}", "a.jsonl:1: found token id 258, expected ids from 0 to 257"),
            ("a.jsonl", b"{\"input_ids\": [-1]}", "token id -1"),
            ("a.jsonl", b"{\"input_ids\": [99999999999999999999]}", "a.jsonl:1: found"),
            ("a.jsonl", b"{\"input_ids\": [1.5]}", "found input_ids [1.5], expected a list of whole numbers"),
            ("a.jsonl", b"{\"input_ids\": [1], \"labels\": [-99]}", "token id -99"),
            ("a.jsonl", b"{\"input_ids\": [1, 2], \"labels\": [1]}", "2 input_ids and 1 labels"),
            (
                "a.jsonl",
                b"{\"input_ids\": [1, 2], \"completion_mask\": [1]}",
                "2 input_ids and 1 values of completion_mask",
            ),
            (
                "a.jsonl",
                b"{\"input_ids\": [1], \"assistant_masks\": [2]}",
                "found 2 in assistant_masks, expected 1 for",
            ),
            ("a.jsonl", b"{\"input_ids\": [1, 2], \"position_ids\": [0]}", "2 input_ids and 1 position_ids"),
            (
                "a.jsonl",
                b"{\"input_ids\": [1, 2], \"position_ids\": [0, 0]}",
                "found 0 at 1 of position_ids, expected one",
            ),
            ("a.jsonl", b"{\"input_ids\": [1, 2], \"seq_lengths\": [1, 1]}", "found seq_lengths of 2 sequences"),
            ("a.jsonl", b"", "a.jsonl: found an empty file"),
            ("a.jsonl", b"\n", "no examples"),
            ("a.jsonl", b"{\"text\": NaN}", "a.jsonl:1: found text NaN, expected a string"),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": [\"b\"]}", "a.jsonl:2: found text [\"b\"], expected a string"),
            ("a.json", b"{\"data\": [{\"text\": \"a\"}]}", "in its field data, expected the rows: `jq -c '.data[]'"),
            ("a.txt", b"fine\nfine\n\xff\xfe", "a.txt:3: found bytes that are not UTF-8"),
            ("a.txt", b"cut short \xc3", "a.txt:1: found bytes that are not UTF-8"),
        ];
        for (name, content, want) in table {
            let error = read_as(name, content, 8).unwrap_err().to_string();
            assert!(error.contains(want), "{error}\nis not: {want}");
        }
        let small = Codec { vocab: 98, ..codec(8) };
        let file = Temp::new("b.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}");
        let error = read_with(&file.0, &Codec { bos: None, eos: None, ..small }).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:2: found token id 98"), "{error}");
        assert!(read_with(&file.0, &codec(1)).is_err());
        assert!(read_with(Path::new("no such file.txt"), &codec(8)).unwrap_err().to_string().contains("no such file"));
    }
}
