//! TensorBoard's event files, read by a reader of this test, beside `metrics.jsonl`: of a whole run, of one that goes on, of one
//! that is killed. `scripts/tensorboard.sh` has TensorBoard itself read them.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::scratch::Scratch;
use serde_json::Value;

/// The bytes of a protobuf message, as fields: number, and what is in it.
enum Field<'a> {
    Varint(u64),
    Fixed(&'a [u8]),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let end = bytes.iter().position(|b| b & 0x80 == 0).expect("a varint without an end");
    let (these, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    these.iter().rev().fold(0, |x, b| x << 7 | u64::from(b & 0x7f))
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, Field::Varint(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            kind => panic!("a field of kind {kind}"),
        };
        let (these, rest) = bytes.split_at(length);
        bytes = rest;
        found.push((key >> 3, if key & 7 == 2 { Field::Bytes(these) } else { Field::Fixed(these) }));
    }
    found
}

/// Bit by bit, with the polynomial as the standard writes it, mirrored.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        for bit in 0..8 {
            let odd = (crc ^ u32::from(byte >> bit)) & 1;
            crc = (crc >> 1) ^ (odd * 0x1edc_6f41u32.reverse_bits());
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a file; one that is cut off ends it.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut found) = (0, Vec::new());
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().unwrap()));
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u64::from_le_bytes(head.try_into().unwrap()) as usize;
        let (Some(of_head), Some(body), Some(of_body)) =
            (word(at + 8), bytes.get(at + 12..at + 12 + length), word(at + 12 + length))
        else {
            break;
        };
        assert_eq!((of_head, of_body), (checksum(head), checksum(body)), "at byte {at}");
        found.push(body.to_vec());
        at += 16 + length;
    }
    found
}

/// What TensorBoard would show: of each tag the steps and values, of texts their steps and letters. A session that starts takes
/// back what is of its step or later, unless `keep`.
#[derive(Default)]
struct Board {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    texts: Vec<(u64, String)>,
    starts: Vec<u64>,
}

fn files(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.to_str().unwrap().contains("tfevents")).collect();
    found.sort();
    found
}

fn board(run: &Path, keep: bool) -> Board {
    let mut board = Board::default();
    for path in files(run) {
        for (i, event) in records(&std::fs::read(path).unwrap()).iter().enumerate() {
            let (mut step, mut when, mut what) = (0, 0.0, Vec::new());
            for (number, field) in fields(event) {
                match (number, field) {
                    (1, Field::Fixed(bytes)) => when = f64::from_le_bytes(bytes.try_into().unwrap()),
                    (2, Field::Varint(n)) => step = n,
                    (_, Field::Bytes(bytes)) => what.push((number, bytes)),
                    _ => panic!("field {number}"),
                }
            }
            assert!(when > 1.7e9, "{when}");
            let [(number, bytes)] = what[..] else { panic!("an event of {} things", what.len()) };
            assert_eq!(i == 0, number == 3, "the version is the first record");
            match number {
                3 => assert_eq!(bytes, b"brain.Event:2"),
                5 => fields(bytes).into_iter().for_each(|(_, value)| board.add(step, value)),
                7 => {
                    assert_eq!(bytes, [8, 1], "SessionLog.START");
                    board.starts.push(step);
                    if !keep {
                        board.scalars.values_mut().for_each(|points| points.retain(|point| point.0 < step));
                        board.texts.retain(|text| text.0 < step);
                    }
                }
                other => panic!("an event of field {other}"),
            }
        }
    }
    board
}

impl Board {
    fn add(&mut self, step: u64, value: Field) {
        let Field::Bytes(bytes) = value else { panic!("a value that is no message") };
        let (mut tag, mut number, mut text) = (String::new(), None, None);
        for (field, value) in fields(bytes) {
            match (field, value) {
                (1, Field::Bytes(name)) => tag = String::from_utf8(name.to_vec()).unwrap(),
                (2, Field::Fixed(bytes)) => number = Some(f32::from_le_bytes(bytes.try_into().unwrap())),
                (8, Field::Bytes(tensor)) => {
                    text = fields(tensor).into_iter().find_map(|field| match field {
                        (8, Field::Bytes(bytes)) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
                        _ => None,
                    });
                }
                (9, Field::Bytes(metadata)) => assert!(metadata.windows(4).any(|word| word == b"text")),
                (field, _) => panic!("field {field} of {tag}"),
            }
        }
        match (number, text) {
            (Some(x), None) => self.scalars.entry(tag).or_default().push((step, x)),
            (None, Some(text)) => self.texts.push((step, text)),
            _ => panic!("{tag} is neither a number nor a text"),
        }
    }
}

/// The same numbers as `metrics.jsonl` has them.
fn metrics(run: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let mut found: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for line in std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let mut add = |tag: &str, value: &Value| {
            let point = (event["step"].as_u64().unwrap(), value.as_f64().map_or(f32::NAN, |x| x as f32));
            found.entry(tag.into()).or_default().push(point);
        };
        if event["event"] == "step" {
            for name in ["loss", "grad_norm", "tokens", "trained_tokens", "tokens_per_second", "skipped"] {
                add(&format!("train/{name}"), &event[name]);
            }
            add("train/learning_rate", &event["lr"]);
        } else if event["event"] == "eval" {
            add("eval/loss", &event["loss"]);
            let values = event["metrics"].as_object().unwrap();
            values.iter().for_each(|(name, value)| add(&format!("eval/{name}"), value));
        }
    }
    found
}

fn data(scratch: &Scratch) {
    let rows: String = (0..24).map(|i| format!("{{\"input_ids\": [5, {}, 7, {}]}}\n", i % 9, 10 + i)).collect();
    std::fs::write(scratch.0.join("data.jsonl"), rows).unwrap();
}

fn command(scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
    command.args(args).current_dir(&scratch.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn train(scratch: &Scratch, more: &[&str]) {
    let model = common::root("tests/fixtures/golden/base").display().to_string();
    let args = ["train", "--model", &model, "--data", "data.jsonl", "--split", "0.2", "--eval-every", "2"];
    let args = [&args[..], &["--device", "cpu", "--max-seq-len", "16", "--rank", "2", "--batch-size", "4"], more];
    let ran = command(scratch, &args.concat()).output().unwrap();
    assert!(ran.status.success(), "{more:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn the_board_shows_what_the_metrics_tell() {
    let scratch = Scratch::new("board");
    data(&scratch);
    let length = ["--steps", "6", "--schedule", "constant", "--save-every", "2", "--keep", "9"];
    train(&scratch, &[&length[..], &["--out", "run", "--log-tensorboard"]].concat());
    train(&scratch, &[&length[..], &["--out", "without"]].concat());
    let run = scratch.0.join("run");
    let whole = board(&run, false);
    assert_eq!(whole.scalars, metrics(&run));
    assert_eq!((whole.scalars["train/loss"].len(), whole.scalars["eval/perplexity"].len()), (6, 3));
    let [(0, settings)] = &whole.texts[..] else { panic!("{:?}", whole.texts) };
    assert!(settings.contains("\n    rank = 2\n") && !settings.contains("null"), "{settings}");
    // The control: who does not ask gets none, and the same weights.
    assert!(files(&scratch.0.join("without")).is_empty());
    let weights = |run: &str| std::fs::read(scratch.0.join(run).join("adapter_model.safetensors")).unwrap();
    assert!(weights("run") == weights("without"));

    // The run goes on from step 2, and what it told last was cut off.
    for step in [4, 6] {
        let names = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
        let of_step = |path: &PathBuf| path.to_str().unwrap().ends_with(&step.to_string());
        names.filter(of_step).for_each(|path| std::fs::remove_dir_all(path).unwrap());
    }
    let first = files(&run)[0].clone();
    let bytes = std::fs::read(&first).unwrap();
    std::fs::write(&first, &bytes[..bytes.len() - 5]).unwrap();
    let again = ["train", "--resume", "run", "--steps", "8"];
    assert!(command(&scratch, &again).output().unwrap().status.success());
    let found = board(&run, false);
    assert_eq!((found.starts.as_slice(), files(&run).len()), (&[0, 3][..], 2));
    assert_eq!(found.scalars, metrics(&run));
    assert_eq!(found.scalars["train/loss"].len(), 8);
    assert_eq!(found.texts.iter().map(|text| text.0).collect::<Vec<_>>(), [0, 3]);
    // The control: without its start, steps are there twice.
    assert!(board(&run, true).scalars["train/loss"].len() > 8);

    // Another run in its place leaves nothing of it.
    train(&scratch, &[&length[..], &["--out", "run", "--overwrite"]].concat());
    assert!(files(&run).is_empty());
}

#[test]
fn a_run_that_is_killed_has_told_its_steps() {
    let scratch = Scratch::new("killed");
    data(&scratch);
    let model = common::root("tests/fixtures/golden/base").display().to_string();
    let args = ["train", "--model", &model, "--data", "data.jsonl", "--out", "run", "--steps", "1000000"];
    let args = [&args[..], &["--device", "cpu", "--max-seq-len", "16", "--rank", "2", "--log-tensorboard"]].concat();
    let mut child = command(&scratch, &args).stderr(Stdio::null()).spawn().unwrap();
    let run = scratch.0.join("run");
    let steps = || {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        text.matches("\"event\":\"step\"").count()
    };
    while steps() < 5 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let shown = board(&run, false).scalars["train/loss"].len();
    // The step at which it was killed may be in the one file and not yet in the other.
    assert!((shown..=shown + 1).contains(&steps()), "{shown} of {}", steps());
    assert!(shown >= 4);
}
