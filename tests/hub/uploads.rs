//! What is pushed: the server's half of it, and tests. What arrives is hashed, and what is pushed is fetched again.

use std::collections::BTreeMap;
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trimtab::hub::{Hub, Kind};

use super::common::scratch::{Scratch, copy};
use super::{COMMIT, Repo, Server, State, common, fetch, tiny};

/// The token that may write to what is `me`'s.
const TOKEN: &str = "hf_write";
/// Files of more bytes are for large storage.
const SMALL: u64 = 5000;

/// What a server has been sent, and how it behaves.
#[derive(Default)]
pub struct Uploads {
    /// Large storage.
    objects: BTreeMap<String, Vec<u8>>,
    /// Parts of what is sent in parts.
    parts: BTreeMap<(String, u64), Vec<u8>>,
    /// Bytes of a part; without, all is sent at once.
    piece: Option<u64>,
    /// The next transfer breaks off half way.
    pub deaf: bool,
    /// What is answered to paths that hold a text, once.
    says: Vec<(&'static str, &'static str, Value)>,
    /// Commits: lines of JSON.
    commits: Vec<Vec<Value>>,
    ignored: &'static str,
}

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The status, the headers and the body of an answer. `place` is hub or storage, the address of the storage, and that of this.
pub fn answer(
    place: (&str, &str, String),
    path: &str,
    token: Option<&str>,
    sent: &[u8],
    state: &mut State,
) -> (&'static str, String, Vec<u8>) {
    let (place, storage, host) = place;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if place == "storage" {
        assert_eq!(token, None, "the token is for the hub alone");
    }
    if let Some(at) = state.uploads.says.iter().position(|(part, ..)| path.contains(part)) {
        let (_, status, body) = state.uploads.says.remove(at);
        return (status, String::new(), body.to_string().into_bytes());
    }
    let said =
        |status: &'static str, error: &str| (status, String::new(), json!({"error": error}).to_string().into_bytes());
    let ok = |body: Value| ("200 OK", String::new(), body.to_string().into_bytes());
    if place == "hub" && state.failing > 0 {
        state.failing -= 1;
        return said("503 Service Unavailable", "busy");
    }
    match token {
        _ if place == "storage" => {}
        Some(token) if token == format!("Bearer {TOKEN}") => {}
        _ => return said("401 Unauthorized", "Invalid username or password."),
    }
    let body: Value = serde_json::from_slice(sent).unwrap_or_default();
    match parts[..] {
        ["api", "repos", "create"] => {
            let repo = format!("{}/{}", body["organization"].as_str().unwrap(), body["name"].as_str().unwrap());
            assert_eq!(body["type"], "model");
            if !repo.starts_with("me/") {
                return said("403 Forbidden", "You don't have the rights to create a model under this namespace");
            }
            if state.repos.contains_key(&repo) {
                return said("409 Conflict", "You already created this model repo");
            }
            let private = body.get("visibility").is_some_and(|visibility| visibility == "private");
            state.repos.insert(repo, Repo { private, ..Repo::default() });
            ok(json!({"url": "http://x"}))
        }
        ["api", "models", org, name, "preupload", "main"] => {
            assert!(state.repos.contains_key(&format!("{org}/{name}")));
            let told = body["files"].as_array().unwrap().iter().map(|file| {
                let sample = STANDARD.decode(file["sample"].as_str().unwrap()).unwrap();
                let size = file["size"].as_u64().unwrap();
                assert_eq!(sample.len() as u64, size.min(512));
                let mode = if size > SMALL { "lfs" } else { "regular" };
                json!({"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] == state.uploads.ignored})
            });
            ok(json!({"files": told.collect::<Vec<_>>()}))
        }
        [_, _, "info", "lfs", "objects", "batch"] => {
            assert_eq!((&body["operation"], &body["hash_algo"]), (&"upload".into(), &"sha256".into()));
            let told = body["objects"].as_array().unwrap().iter().map(|object| {
                let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap());
                let mut told = json!({"oid": oid, "size": size});
                if state.uploads.objects.contains_key(oid) {
                    return told;
                }
                let verify = json!({"href": format!("http://{host}/verify")});
                let upload = match state.uploads.piece {
                    None => json!({"href": format!("{storage}/put/{oid}")}),
                    Some(piece) => {
                        let mut header = json!({"chunk_size": piece.to_string()});
                        for n in 1..=size.div_ceil(piece) {
                            header[format!("{n:05}")] = format!("{storage}/part/{oid}/{n}").into();
                        }
                        json!({"href": format!("http://{host}/complete/{oid}"), "header": header})
                    }
                };
                told["actions"] = json!({"upload": upload, "verify": verify});
                told
            });
            ok(json!({"transfer": "basic", "objects": told.collect::<Vec<_>>()}))
        }
        ["put", oid] => {
            if hash(sent) != oid {
                return said("400 Bad Request", "another content");
            }
            state.uploads.objects.insert(oid.into(), sent.to_vec());
            ok(json!({}))
        }
        ["part", oid, n] => {
            state.uploads.parts.insert((oid.into(), n.parse().unwrap()), sent.to_vec());
            ("200 OK", format!("ETag: \"tag-{n}\"\r\n"), Vec::new())
        }
        ["complete", oid] => {
            let mut whole = Vec::new();
            for (i, part) in body["parts"].as_array().unwrap().iter().enumerate() {
                assert_eq!((&part["partNumber"], &part["etag"]), (&json!(i + 1), &json!(format!("\"tag-{}\"", i + 1))));
                whole.extend(&state.uploads.parts[&(oid.to_string(), i as u64 + 1)]);
            }
            assert_eq!((body["oid"].as_str(), hash(&whole).as_str()), (Some(oid), oid));
            state.uploads.objects.insert(oid.into(), whole);
            ok(json!({}))
        }
        ["verify"] => {
            let there = state.uploads.objects.get(body["oid"].as_str().unwrap());
            match there.is_some_and(|bytes| bytes.len() as u64 == body["size"].as_u64().unwrap()) {
                true => ok(json!({})),
                false => said("422 Unprocessable Entity", "not there"),
            }
        }
        ["api", "models", org, name, "commit", "main"] => {
            let text = std::str::from_utf8(sent).unwrap();
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert!(lines[0]["key"] == "header" && !lines[0]["value"]["summary"].as_str().unwrap().is_empty());
            let repo = state.repos.get_mut(&format!("{org}/{name}")).unwrap();
            for line in &lines[1..] {
                let path = line["value"]["path"].as_str().unwrap().to_owned();
                let content = match line["key"].as_str().unwrap() {
                    "file" => STANDARD.decode(line["value"]["content"].as_str().unwrap()).unwrap(),
                    "lfsFile" => {
                        let oid = line["value"]["oid"].as_str().unwrap();
                        repo.hashes.insert(path.clone(), oid.into());
                        repo.large.push(path.clone());
                        state.uploads.objects[oid].clone()
                    }
                    other => panic!("{other}"),
                };
                repo.files.insert(path, content);
            }
            state.uploads.commits.push(lines);
            ok(
                json!({"success": true, "commitUrl": format!("http://{host}/{org}/{name}/commit/{COMMIT}"), "commitOid": COMMIT}),
            )
        }
        _ => said("404 Not Found", "Not Found"),
    }
}

/// A machine with a run on it, and a hub.
struct Desk {
    scratch: Scratch,
    server: Server,
}

impl Desk {
    fn new(name: &str) -> Desk {
        let scratch = Scratch::new(name);
        let server = Server::new(&[("org/tiny", tiny())]);
        let run = scratch.0.join("run");
        copy(&common::root("tests/fixtures/golden/lora"), &run);
        std::fs::create_dir_all(run.join("checkpoints/step-1")).unwrap();
        for file in ["metrics.jsonl", "config.toml", "run.lock", "events.out.tfevents.1.trimtab", "notes.txt"] {
            std::fs::write(run.join(file), "/home/someone").unwrap();
        }
        std::fs::write(run.join("tokenizer_config.json"), r#"{"name_or_path": "/home/someone/model", "a": 1}"#)
            .unwrap();
        let config = run.join("adapter_config.json");
        let mut adapter: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        adapter["base_model_name_or_path"] = "org/tiny".into();
        std::fs::write(config, adapter.to_string()).unwrap();
        Desk { scratch, server }
    }

    fn push(&self, token: Option<&str>, args: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.arg("push").args(args).current_dir(&self.scratch.0).env("HF_ENDPOINT", &self.server.endpoint);
        command.env("HF_HOME", self.scratch.0.join("hf")).env_remove("HF_HUB_OFFLINE").env_remove("HF_TOKEN_PATH");
        command.env_remove("HF_TOKEN").env_remove("HUGGING_FACE_HUB_TOKEN");
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.push(Some(TOKEN), args);
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    fn fails(&self, token: Option<&str>, args: &[&str], code: i32) -> String {
        let ran = self.push(token, args);
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!((ran.status.code(), ran.stdout.len()), (Some(code), 0), "{args:?}: {error}");
        error
    }

    fn hub(&self) -> Hub {
        self.server.hub(&self.scratch.0.join("cache"), Some(TOKEN))
    }

    fn repo(&self, name: &str) -> Option<Repo> {
        self.server.state.lock().unwrap().repos.get(name).cloned()
    }

    fn behave(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.server.state.lock().unwrap());
    }
}

#[test]
fn an_adapter_is_pushed_and_comes_back() {
    let desk = Desk::new("pushed");
    let said = desk.ok(&["run", "me/adapter", "--private", "--dry-run"]);
    assert!(desk.server.asked().is_empty() && desk.repo("me/adapter").is_none(), "nothing is asked of the hub");
    for part in
        ["adapter_model.safetensors\n", "README.md\n", "would stay here: ", "checkpoints/", "base_model: \"org/tiny\""]
    {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = desk.ok(&["run", "me/adapter", "--private"]);
    assert_eq!(said, format!("{}/me/adapter/commit/{COMMIT}\n", desk.server.endpoint));
    let repo = desk.repo("me/adapter").unwrap();
    assert!(repo.private);
    let names: Vec<&str> = repo.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]);
    assert_eq!(repo.large, ["adapter_model.safetensors"]);
    // Nothing of this machine goes.
    assert!(repo.files.values().all(|bytes| !bytes.windows(13).any(|part| part == b"/home/someone")));
    let card = String::from_utf8(repo.files["README.md"].clone()).unwrap();
    let head = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
    let lines = [
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        "- \"base_model:adapter:org/tiny\"",
        "- \"lora\"",
        "- trimtab",
    ];
    assert!(lines.iter().all(|line| head.lines().any(|l| l == *line)), "{head}");
    // What was pushed is what was there.
    let path = fetch(&desk.hub(), "me/adapter", Kind::Adapter).unwrap();
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(
            std::fs::read(path.join(file)).unwrap() == std::fs::read(desk.scratch.0.join("run").join(file)).unwrap()
        );
    }
    // What is there is not sent again.
    desk.server.asked();
    desk.ok(&["run", "me/adapter", "--private"]);
    let asked = desk.server.asked();
    assert!(!asked.iter().any(|line| line.starts_with("storage ")), "{asked:?}");
    assert_eq!(desk.server.state.lock().unwrap().uploads.commits.len(), 2);
}

#[test]
fn what_breaks_off_is_sent_again() {
    for (name, piece) in [("whole", None), ("parts", Some(3000))] {
        let desk = Desk::new(name);
        desk.behave(|state| {
            state.uploads.piece = piece;
            state.uploads.deaf = true;
            state.failing = 1;
            state.uploads.says =
                vec![("/put/", "500 Internal Server Error", json!({})), ("/part/", "503 Slow Down", json!({}))];
        });
        desk.ok(&["run", "me/adapter"]);
        let path = fetch(&desk.hub(), "me/adapter", Kind::Adapter).unwrap();
        let [theirs, ours] = [path, desk.scratch.0.join("run")].map(|dir| dir.join("adapter_model.safetensors"));
        assert!(std::fs::read(theirs).unwrap() == std::fs::read(&ours).unwrap(), "{name}");
        let asked = desk.server.asked();
        let sent = asked.iter().filter(|line| line.starts_with("storage PUT")).count() as u64;
        let bytes = std::fs::metadata(ours).unwrap().len();
        assert_eq!(sent, piece.map_or(1, |piece| bytes.div_ceil(piece)) + 1, "once more than needed: {asked:?}");
    }
}

#[test]
fn refusals_of_a_push_are_told() {
    type Change = fn(&mut State);
    type Case<'a> = (&'a str, Option<&'a str>, &'a [&'a str], Change, &'a [&'a str]);
    let nothing: Change = |_| {};
    let table: &[Case] = &[
        ("no-token", None, &["me/a"], nothing, &["no token for the hub", "HF_TOKEN=hf_"]),
        ("bad-token", Some("hf_old"), &["me/a"], nothing, &["(401: Invalid username", "a token that is valid"]),
        ("others", Some(TOKEN), &["they/a"], nothing, &["(403: You don't have the rights", "a token that may write"]),
        (
            "public",
            Some(TOKEN),
            &["me/a", "--private"],
            |state| drop(state.repos.insert("me/a".into(), Repo::default())),
            &["a public repository", "nothing was sent"],
        ),
        (
            "gone",
            Some(TOKEN),
            &["me/a"],
            |state| state.uploads.says.push(("preupload", "404 Not Found", json!({"error": "Repository not found"}))),
            &["(404: Repository not found)", "a repository that is there"],
        ),
        (
            "at-once",
            Some(TOKEN),
            &["me/a"],
            |state| {
                state.uploads.says.push((
                    "commit/main",
                    "412 Precondition Failed",
                    json!({"error": "A commit has happened since."}),
                ))
            },
            &["the commit was not taken (412: A commit has happened since.)", "the same command again"],
        ),
        (
            "conflict",
            Some(TOKEN),
            &["me/a"],
            |state| state.uploads.says.push(("commit/main", "409 Conflict", json!({"error": "Reference was updated"}))),
            &["(409: Reference was updated)", "the same command again"],
        ),
        (
            "card",
            Some(TOKEN),
            &["me/a"],
            |state| {
                state.uploads.says.push((
                    "commit/main",
                    "400 Bad Request",
                    json!({"error": "Invalid metadata in README.md.\nmore"}),
                ))
            },
            &["(400: Invalid metadata in README.md.)"],
        ),
        (
            "ignored",
            Some(TOKEN),
            &["me/a"],
            |state| state.uploads.ignored = "adapter_config.json",
            &[".gitignore that leaves out adapter_config.json"],
        ),
        (
            "expired",
            Some(TOKEN),
            &["me/a"],
            |state| state.uploads.says.push(("/put/", "403 Forbidden", json!({}))),
            &["large storage, which answers 403", "the same command again"],
        ),
        (
            "lost",
            Some(TOKEN),
            &["me/a"],
            |state| {
                state.uploads.says.push(("/verify", "422 Unprocessable Entity", json!({"message": "size differs"})))
            },
            &["adapter_model.safetensors did not arrive whole (422: size differs)"],
        ),
        ("down", Some(TOKEN), &["me/a"], |state| state.failing = 3, &["503: busy", "the same command again"]),
    ];
    for (name, token, args, change, parts) in table {
        let desk = Desk::new(name);
        desk.behave(change);
        let error = desk.fails(*token, &[&["run"], *args].concat(), 1);
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert!(desk.server.state.lock().unwrap().uploads.commits.is_empty(), "{name}");
        // The control: without what was wrong it goes.
        desk.behave(|state| {
            state.uploads.ignored = "";
            state.failing = 0;
        });
        desk.ok(&["run", "me/a"]);
    }
    // One that is made at the same time as another of its owner is tried again.
    let desk = Desk::new("busy");
    let busy = json!({"error": "Cannot create repo: another conflicting operation is in progress"});
    desk.behave(|state| state.uploads.says.push(("create", "409 Conflict", busy)));
    desk.ok(&["run", "me/a"]);
}

#[test]
fn what_nobody_could_load_is_not_pushed() {
    let desk = Desk::new("unsound");
    let run = desk.scratch.0.join("run");
    let write = |name: &str, text: &str| std::fs::write(run.join(name), text).unwrap();
    let config = std::fs::read_to_string(run.join("adapter_config.json")).unwrap();
    write("adapter_config.json", &config.replace("org/tiny", "/home/someone/model"));
    let error = desk.fails(Some(TOKEN), &["run", "me/a"], 1);
    assert!(error.contains("/home/someone/model, which nobody else has") && error.contains("--base-model"), "{error}");
    assert!(desk.server.asked().is_empty());
    // With its name the path gives way to it.
    desk.ok(&["run", "me/a", "--base-model", "org/tiny"]);
    let repo = desk.repo("me/a").unwrap();
    for (file, key) in [("adapter_config.json", "base_model_name_or_path"), ("tokenizer_config.json", "name_or_path")] {
        let sent: Value = serde_json::from_slice(&repo.files[file]).unwrap();
        assert_eq!(sent[key], "org/tiny");
    }
    // A card of one's own.
    write("card.md", "---\nlicense: mit\n---\nMine.\n");
    desk.ok(&["run", "me/a", "--base-model", "org/tiny", "--card", "run/card.md"]);
    assert_eq!(desk.repo("me/a").unwrap().files["README.md"], b"---\nlicense: mit\n---\nMine.\n");

    std::fs::remove_file(run.join("adapter_config.json")).unwrap();
    let error = desk.fails(Some(TOKEN), &["run", "me/a"], 1);
    assert!(error.contains("run/checkpoints/step-1"), "{error}");
    for (args, part) in [
        (["run", "adapter"], "its owner, a slash, its name"),
        (["nowhere", "me/a"], "no folder"),
        (["run/notes.txt", "me/a"], "no folder"),
    ] {
        let error = desk.fails(Some(TOKEN), &args, 2);
        assert!(error.contains(part), "{args:?}: {error}");
    }
}

/// A model in several files goes with its tokenizer, and its card tells of the run that made it.
#[test]
fn a_model_goes_with_its_shards_and_its_story() {
    let desk = Desk::new("model");
    let dir = desk.scratch.0.join("model");
    copy(&common::root("tests/fixtures/golden/base"), &dir);
    std::fs::copy(common::root("assets/base/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    std::fs::rename(dir.join("model.safetensors"), dir.join("model-00001-of-00001.safetensors")).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    let metrics = [
        json!({"event": "run", "config": {"model": "org/tiny", "data": ["/home/someone/mails.jsonl:0.5", "b.csv"], "lr": 2e-4,
            "method": "full", "chat_template": "/home/someone/t.jinja", "dora": false, "rank": null},
            "device": "cpu", "versions": {"trimtab": "9.9.9"}, "trained_parameters": 1234567, "parameters": 2345678}),
        json!({"event": "step", "step": 1, "loss": 2.5}),
        json!({"event": "step", "step": 2, "loss": 1.25}),
        json!({"event": "eval", "step": 2, "loss": 1.5, "metrics": {"perplexity": 4.4817}}),
        json!({"event": "end", "tokens": 4000, "peak_resident_bytes": 1048576}),
    ];
    std::fs::write(dir.join("metrics.jsonl"), metrics.map(|line| format!("{line}\n")).concat()).unwrap();
    desk.ok(&["model", "me/model"]);
    let repo = desk.repo("me/model").unwrap();
    for file in ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"] {
        assert!(repo.files[file] == std::fs::read(dir.join(file)).unwrap(), "{file}");
    }
    assert!(!repo.private && !repo.files.contains_key("metrics.jsonl"));
    let card = String::from_utf8(repo.files["README.md"].clone()).unwrap();
    for part in [
        "base_model: \"org/tiny\"\nlibrary_name: transformers\npipeline_tag: text-generation\n",
        "\"base_model:finetune:org/tiny\"",
        "trained with Trimtab 9.9.9",
        "| data | mails.jsonl:0.5, b.csv |",
        "| chat template | t.jinja |",
        "| lr | 0.0002 |",
        "| trained parameters | 1,234,567 of 2,345,678 |",
        "| training loss, first to last step | 2.5000 to 1.2500 |",
        "| evaluation loss after step 2 | 1.5000 |",
        "| perplexity | 4.4817 |",
        "AutoModelForCausalLM.from_pretrained(\"me/model\")",
    ] {
        assert!(card.contains(part), "{part} is not in {card}");
    }
    assert!(!card.contains("someone") && !card.contains("dora") && !card.contains("null"), "{card}");
    // The control: a shard that is not there.
    std::fs::remove_file(dir.join("model-00001-of-00001.safetensors")).unwrap();
    let error = desk.fails(Some(TOKEN), &["model", "me/model"], 1);
    assert!(error.contains("no model-00001-of-00001.safetensors"), "{error}");
}
