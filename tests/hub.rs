//! Models and adapters by their names, from a server of this test that answers as the hub does: redirects, files in large
//! storage elsewhere, ETags, refusals, transfers that break off; and what is pushed to it.

mod common;
#[path = "hub/uploads.rs"]
mod uploads;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::scratch::Scratch;
use serde_json::json;
use trimtab::hub::{Hub, Kind, name};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a repository of the server has.
#[derive(Clone, Default)]
struct Repo {
    files: BTreeMap<String, Vec<u8>>,
    /// Files in large storage.
    large: Vec<String>,
    /// The token that may read it.
    token: Option<&'static str>,
    commit: Option<&'static str>,
    etag: Option<&'static str>,
    private: bool,
    /// SHA-256 of files in large storage, where it is their ETag.
    hashes: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    /// How many transfers from large storage are yet to break off half way.
    broken: usize,
    /// How many answers are yet to be errors of the server.
    failing: usize,
    /// What was asked: method, path and headers.
    asked: Vec<String>,
    uploads: uploads::Uploads,
}

/// A hub, and its large storage on another port.
struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new(repos: &[(&str, Repo)]) -> Server {
        let repos = repos.iter().map(|(name, repo)| (name.to_string(), repo.clone())).collect();
        let state = Arc::new(Mutex::new(State { repos, ..State::default() }));
        let [hub, storage] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, elsewhere) = (address(&hub), address(&storage));
        for (listener, elsewhere) in [(hub, Some(elsewhere)), (storage, None)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, elsewhere) = (state.clone(), elsewhere.clone());
                    std::thread::spawn(move || while answer(&stream, &state, elsewhere.as_deref()).is_some() {});
                }
            });
        }
        Server { endpoint, state }
    }

    fn hub(&self, cache: &Path, token: Option<&str>) -> Hub {
        Hub::new(&self.endpoint, cache.into(), token.map(String::from), false, Duration::from_millis(1))
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

/// Reads a request and answers it; none when the connection is over.
fn answer(mut stream: &TcpStream, state: &Mutex<State>, elsewhere: Option<&str>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let found =
            lines[1..].iter().find_map(|line| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let mut words = lines[0].split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (range, token) = (header("range"), header("authorization"));
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let place = if elsewhere.is_some() { "hub" } else { "storage" };
    if method == "PUT" && std::mem::take(&mut state.lock().unwrap().uploads.deaf) {
        // Half of it arrives.
        reader.read_exact(&mut vec![0; length / 2]).ok()?;
        stream.shutdown(std::net::Shutdown::Both).ok();
        return None;
    }
    let mut sent = vec![0; length];
    reader.read_exact(&mut sent).ok()?;
    let mut state = state.lock().unwrap();
    state.asked.push(format!(
        "{place} {method} {path} {} {}",
        range.as_deref().unwrap_or("-"),
        token.as_deref().unwrap_or("-")
    ));
    if method == "POST" || method == "PUT" {
        let place = (place, elsewhere.unwrap_or_default(), header("host").unwrap_or_default());
        let (status, told, body) = uploads::answer(place, &path, token.as_deref(), &sent, &mut state);
        drop(state);
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{told}\r\n", body.len());
        return stream.write_all(&[head.into_bytes(), body].concat()).ok();
    }
    let mut told: Vec<String> = Vec::new();
    let (mut status, mut body, mut cut) = ("404 Not Found", Vec::new(), false);
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let repo = match parts[..] {
        ["api", "models", org, name, ..] | [org, name, "resolve", ..] => {
            state.repos.get(&format!("{org}/{name}")).cloned()
        }
        _ => None,
    };
    let open = |repo: &Repo| repo.token.is_none_or(|wanted| token.as_deref() == Some(&format!("Bearer {wanted}")));
    match (&parts[..], &repo) {
        _ if elsewhere.is_some() && state.failing > 0 => {
            state.failing -= 1;
            status = "503 Service Unavailable";
        }
        (_, None) if elsewhere.is_some() => {
            status = "401 Unauthorized";
            told.push("X-Error-Code: RepoNotFound".into());
        }
        (_, Some(repo)) if !open(repo) => {
            status = "401 Unauthorized";
            told.push("X-Error-Code: GatedRepo".into());
        }
        (["api", .., revision], Some(repo))
            if !["main", "v1", repo.commit.unwrap_or(COMMIT), parts[3]].contains(revision) =>
        {
            told.push("X-Error-Code: RevisionNotFound".into());
        }
        (["api", ..], Some(repo)) => {
            status = "200 OK";
            let files: Vec<_> = repo.files.keys().map(|file| json!({"rfilename": file})).collect();
            body = json!({"sha": repo.commit.unwrap_or(COMMIT), "siblings": files, "private": repo.private})
                .to_string()
                .into_bytes();
        }
        ([_, _, "resolve", _, file @ ..], Some(repo)) => {
            let file = file.join("/");
            if let Some(content) = repo.files.get(&file) {
                let etag = repo.etag.map_or(format!("etag-of-{}", file.replace('/', "-")), String::from);
                told.push(format!("X-Repo-Commit: {COMMIT}"));
                if repo.large.contains(&file) {
                    status = "302 Found";
                    let etag = repo.hashes.get(&file).unwrap_or(&etag);
                    told.push(format!("X-Linked-ETag: \"{etag}\""));
                    told.push(format!("X-Linked-Size: {}", content.len()));
                    told.push(format!("Location: {}/{}", elsewhere.unwrap_or_default(), path.trim_start_matches('/')));
                } else if path.contains("/resolve/") && file == "tokenizer.json" && !path.contains("moved") {
                    // The hub sends on to a path of its own for some small files.
                    status = "307 Temporary Redirect";
                    told.push(format!("Location: {}?moved", path));
                } else {
                    status = "200 OK";
                    told.push(format!("ETag: W/\"{etag}\""));
                    body = content.clone();
                }
            } else if let Some(content) = repo.files.get(file.trim_end_matches("?moved")) {
                status = "200 OK";
                told.push("ETag: \"etag-of-moved\"".into());
                body = content.clone();
            } else {
                told.push("X-Error-Code: EntryNotFound".into());
            }
        }
        _ => {}
    }
    if let (None, [org, name, "resolve", _, file @ ..]) = (elsewhere, &parts[..]) {
        body = state.repos.get(&format!("{org}/{name}")).and_then(|repo| repo.files.get(&file.join("/"))).cloned()?;
        status = "200 OK";
        told.clear();
        if let Some(from) =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
        {
            status = "206 Partial Content";
            told.push(format!("Content-Range: bytes {from}-{}/{}", body.len() - 1, body.len()));
            body.drain(..from);
        }
        cut = state.broken > 0;
        state.broken = state.broken.saturating_sub(1);
    }
    drop(state);
    let headers: String = told.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body[..if cut { body.len() / 2 } else { body.len() }]).ok()?;
    }
    if cut {
        stream.shutdown(std::net::Shutdown::Both).ok();
        return None;
    }
    Some(())
}

fn files(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(common::root(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
}

fn tiny() -> Repo {
    let mut files = files("tests/fixtures/golden/base");
    files.insert("pytorch_model.bin".into(), vec![1; 100]);
    files.insert("README.md".into(), b"A model.".to_vec());
    files.insert("tokenizer.json".into(), std::fs::read(common::root("assets/base/tokenizer.json")).unwrap());
    Repo { files, large: vec!["model.safetensors".into()], ..Repo::default() }
}

fn fetch(hub: &Hub, id: &str, kind: Kind) -> Result<PathBuf, String> {
    hub.fetch(&name(Path::new(id)).unwrap(), kind).map_err(|e| e.to_string())
}

#[test]
fn a_model_is_fetched_once_and_kept_as_huggingface_hub_keeps_it() {
    let scratch = Scratch::new("kept");
    let server = Server::new(&[("org/tiny", tiny())]);
    server.state.lock().unwrap().failing = 1;
    let hub = server.hub(&scratch.0, Some("hf_secret"));
    let path = fetch(&hub, "org/tiny", Kind::Model).unwrap();
    let folder = scratch.0.join("models--org--tiny");
    assert_eq!(path, folder.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(std::fs::read(path.join(file)).unwrap() == tiny().files[file], "{file}");
        let target = std::fs::read_link(path.join(file)).unwrap();
        assert!(target.starts_with("../../blobs"), "{target:?}");
    }
    assert!(folder.join("blobs/etag-of-model.safetensors").is_file());
    assert!(folder.join("blobs/etag-of-moved").is_file());
    assert!(!path.join("pytorch_model.bin").exists() && !path.join("README.md").exists());
    // The token is for the hub, not for where it leads.
    let asked = server.asked();
    assert!(asked.iter().filter(|line| line.starts_with("hub ")).all(|line| line.ends_with("Bearer hf_secret")));
    let storage: Vec<_> = asked.iter().filter(|line| line.starts_with("storage ")).collect();
    assert!(storage.len() == 1 && storage[0].ends_with(" - -"), "{storage:?}");

    assert_eq!(fetch(&hub, "org/tiny", Kind::Model).unwrap(), path);
    assert_eq!(server.asked(), ["hub GET /api/models/org/tiny/revision/main - Bearer hf_secret"]);

    // Without a network, what is there counts, and nothing else.
    let offline = Hub::new(&server.endpoint, scratch.0.clone(), None, true, Duration::ZERO);
    let nobody = Hub::new("http://127.0.0.1:9", scratch.0.clone(), None, false, Duration::ZERO);
    for (hub, why) in [(offline, "HF_HUB_OFFLINE is set"), (nobody, "127.0.0.1:9")] {
        assert_eq!(fetch(&hub, "org/tiny", Kind::Model).unwrap(), path);
        let error = fetch(&hub, "org/other", Kind::Model).unwrap_err();
        assert!(
            error.starts_with("org/other: found no folder of this name, and no answer of the hub")
                && error.contains(why),
            "{error}"
        );
        std::fs::rename(folder.join("blobs/etag-of-model.safetensors"), folder.join("blobs/away")).unwrap();
        assert!(fetch(&hub, "org/tiny", Kind::Model).is_err(), "weights are not there");
        std::fs::rename(folder.join("blobs/away"), folder.join("blobs/etag-of-model.safetensors")).unwrap();
    }
    assert!(server.asked().is_empty());
}

#[test]
fn transfers_that_break_off_go_on() {
    let scratch = Scratch::new("broken");
    let server = Server::new(&[("org/tiny", tiny())]);
    let hub = server.hub(&scratch.0, None);
    server.state.lock().unwrap().broken = 3;
    let path = fetch(&hub, "org/tiny", Kind::Model).unwrap();
    let whole = &tiny().files["model.safetensors"];
    assert_eq!(&std::fs::read(path.join("model.safetensors")).unwrap(), whole);
    let ranges: Vec<String> = server
        .asked()
        .iter()
        .filter(|line| line.starts_with("storage "))
        .map(|line| line.split(' ').nth(3).unwrap().to_owned())
        .collect();
    let (half, n) = (whole.len() / 2, whole.len());
    let quarters = half + (n - half) / 2;
    let want = ["-".into(), format!("bytes={half}-"), format!("bytes={quarters}-")];
    assert_eq!(ranges[..3], want, "{ranges:?}");
    assert_eq!(ranges.len(), 4);

    // A server that gives up: so do we, and the next one goes on.
    let other = Scratch::new("gone-on");
    server.state.lock().unwrap().broken = 40;
    let error = fetch(&server.hub(&other.0, None), "org/tiny", Kind::Model).unwrap_err();
    assert!(
        error.contains("of model.safetensors after 5 tries") && error.contains("the same command again"),
        "{error}"
    );
    let begun = other.0.join("models--org--tiny/blobs/etag-of-model.safetensors.incomplete");
    let there = std::fs::metadata(&begun).unwrap().len();
    assert!(there > half as u64 && there < n as u64);
    server.state.lock().unwrap().broken = 0;
    server.asked();
    let path = fetch(&server.hub(&other.0, None), "org/tiny", Kind::Model).unwrap();
    assert_eq!(&std::fs::read(path.join("model.safetensors")).unwrap(), whole);
    assert!(
        server.asked().iter().any(|line| line.starts_with("storage ") && line.contains(&format!("bytes={there}-")))
    );
    assert!(!begun.exists());
}

#[test]
fn refusals_are_told() {
    let scratch = Scratch::new("refused");
    let gated = Repo { token: Some("hf_right"), ..tiny() };
    let ggufs = ["model.Q4_0.gguf", "big/model.Q8_0.gguf"].map(|name| (name.to_string(), b"GGUF".to_vec()));
    let ggufs = Repo { files: ggufs.into_iter().collect(), large: vec!["model.Q4_0.gguf".into()], ..Repo::default() };
    let pickled = Repo { files: [("pytorch_model.bin".into(), vec![])].into_iter().collect(), ..Repo::default() };
    let server =
        Server::new(&[("org/gated", gated), ("org/ggufs", ggufs), ("org/pickled", pickled), ("org/tiny", tiny())]);
    for (id, token, kind, want) in [
        ("org/none", None, Kind::Model, "org/none: found no folder of this name here, and no repository at http://127"),
        (
            "org/gated",
            None,
            Kind::Model,
            "org/gated: found a gated repository (401), expected a name on the hub; for what",
        ),
        ("org/gated", Some("hf_wrong"), Kind::Model, "HF_TOKEN is of one that has none"),
        (
            "org/ggufs",
            None,
            Kind::Model,
            "org/ggufs: found GGUF files: big/model.Q8_0.gguf, model.Q4_0.gguf, expected a model",
        ),
        ("org/ggufs/model.Q5_0.gguf", None, Kind::Model, "no file model.Q5_0.gguf; GGUF files: big/"),
        ("org/pickled", None, Kind::Model, "weights that are pickled (pytorch_model.bin)"),
        ("org/tiny", None, Kind::Adapter, "no adapter_config.json"),
    ] {
        let error = fetch(&server.hub(&scratch.0, token), id, kind).unwrap_err();
        assert!(error.contains(want), "{error}\nis not: {want}");
    }
    // The controls.
    fetch(&server.hub(&scratch.0, Some("hf_right")), "org/gated", Kind::Model).unwrap();
    for file in ["model.Q4_0.gguf", "big/model.Q8_0.gguf"] {
        let path = fetch(&server.hub(&scratch.0, None), &format!("org/ggufs/{file}"), Kind::Model).unwrap();
        assert!(path.ends_with(file) && std::fs::read(&path).unwrap() == b"GGUF");
    }
}

/// A revision is kept under its own name, and PEFT finds it beside the base model's.
#[test]
fn revisions_are_fetched_by_their_names() {
    let scratch = Scratch::new("revisions");
    let server = Server::new(&[("org/tiny", tiny())]);
    let hub = server.hub(&scratch.0, None);
    let folder = scratch.0.join("models--org--tiny");
    let by_commit = format!("org/tiny@{COMMIT}");
    let offline = Hub::new(&server.endpoint, scratch.0.clone(), None, true, Duration::ZERO);
    for (id, known) in [("org/tiny@v1", Some("v1")), (by_commit.as_str(), None)] {
        let path = fetch(&hub, id, Kind::Model).unwrap();
        assert_eq!(path, folder.join("snapshots").join(COMMIT));
        assert_eq!(server.asked()[0], format!("hub GET /api/models/org/tiny/revision/{} - -", &id[9..]));
        let kept: Vec<_> = std::fs::read_dir(folder.join("refs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(kept, ["v1"], "{known:?}");
        assert_eq!(fetch(&offline, id, Kind::Model).unwrap(), path);
    }
    // The control: what was not fetched by this name is not there, and what is not on the hub is no revision.
    fetch(&offline, "org/tiny", Kind::Model).unwrap_err();
    let error = fetch(&hub, "org/tiny@v2", Kind::Model).unwrap_err();
    assert!(error.contains("a repository without this revision (404)") && error.contains("@REVISION"), "{error}");
}

/// Whatever a server says, nothing is written outside the cache.
#[test]
fn names_that_lead_elsewhere_are_not_followed() {
    let scratch = Scratch::new("hostile");
    let with = |change: fn(&mut Repo)| {
        let mut repo = tiny();
        change(&mut repo);
        repo
    };
    let server = Server::new(&[
        ("org/commit", with(|repo| repo.commit = Some("../../../../evil"))),
        ("org/etag", with(|repo| repo.etag = Some("../../../evil"))),
        (
            "org/shard",
            with(|repo| {
                let index = json!({"weight_map": {"a": "../../../evil"}}).to_string().into_bytes();
                repo.files.insert("model.safetensors.index.json".into(), index);
                repo.files.insert("../../../evil".into(), b"evil".to_vec());
            }),
        ),
    ]);
    let cache = scratch.0.join("a/b/cache");
    for id in ["org/commit", "org/etag", "org/shard"] {
        fetch(&server.hub(&cache, None), id, Kind::Model).unwrap_err();
    }
    let mut open = vec![scratch.0.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.to_string_lossy().contains("evil"), "{path:?}");
            open.extend(path.is_dir().then_some(path));
        }
    }
}

/// The name of a file in large storage is the SHA-256 of its content.
#[test]
fn what_arrives_changed_is_not_kept() {
    let scratch = Scratch::new("changed");
    let right = uploads::hash(&tiny().files["model.safetensors"]);
    let hashes = BTreeMap::from([("model.safetensors".to_string(), right)]);
    let server = Server::new(&[("org/tiny", Repo { hashes, ..tiny() })]);
    let hub = server.hub(&scratch.0, None);
    let damage = |repo: &mut Repo| repo.files.get_mut("model.safetensors").unwrap()[1000] ^= 1;
    damage(server.state.lock().unwrap().repos.get_mut("org/tiny").unwrap());
    let error = fetch(&hub, "org/tiny", Kind::Model).unwrap_err();
    assert!(error.contains("model.safetensors that arrived with other bytes"), "{error}");
    // The control: once more, and whole.
    damage(server.state.lock().unwrap().repos.get_mut("org/tiny").unwrap());
    let path = fetch(&hub, "org/tiny", Kind::Model).unwrap();
    assert!(std::fs::read(path.join("model.safetensors")).unwrap() == tiny().files["model.safetensors"]);
}

#[test]
fn commands_take_names() {
    let scratch = Scratch::new("commands");
    let adapter = Repo { files: files("tests/fixtures/golden/lora"), ..Repo::default() };
    let server = Server::new(&[("org/tiny", tiny()), ("org/lora", adapter)]);
    let run = |args: &[&str], offline: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args(args).current_dir(&scratch.0).env("HF_ENDPOINT", &server.endpoint).env("HF_HUB_OFFLINE", offline);
        command.env("HF_HOME", scratch.0.join("hf")).env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {told}");
        told
    };
    let rows: String = (0..4).map(|i| format!("{{\"input_ids\": [5, 6, 7, {i}]}}\n")).collect();
    std::fs::write(scratch.0.join("rows.jsonl"), rows).unwrap();
    let train = [
        "train",
        "--model",
        "org/tiny",
        "--data",
        "rows.jsonl",
        "--out",
        "run",
        "--max-seq-len",
        "16",
        "--device",
        "cpu",
        "--rank",
        "2",
    ];
    let told = run(&train, "0");
    assert!(told.contains("model.safetensors"), "{told}");
    // An adapter tells the name of its base model, not where this machine keeps it.
    let config = std::fs::read_to_string(scratch.0.join("run/adapter_config.json")).unwrap();
    assert!(config.contains("\"base_model_name_or_path\": \"org/tiny\""), "{config}");
    run(&["plan", "--model", "org/tiny", "--adapter", "org/lora", "--device", "cpu"], "0");
    for method in ["lora", "prefix"] {
        let named = train.map(|word| if word == "org/tiny" { "org/tiny@v1" } else { word });
        // The rank is LoRA's, and last.
        let named = if method == "lora" { &named[..] } else { &named[..named.len() - 2] };
        run(&[named, &["--method", method, "--overwrite"]].concat(), "0");
        let config = std::fs::read_to_string(scratch.0.join("run/adapter_config.json")).unwrap();
        for line in ["\"base_model_name_or_path\": \"org/tiny\"", "\"revision\": \"v1\""] {
            assert!(config.contains(line), "{config}");
        }
    }
    // All is there now.
    run(&["plan", "--model", "org/tiny", "--adapter", "org/lora", "--device", "cpu"], "1");
    // A folder of the name counts before the hub's.
    std::fs::create_dir_all(scratch.0.join("org")).unwrap();
    assert!(name(&scratch.0.join("org/tiny")).is_none());
}
