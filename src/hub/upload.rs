//! What is sent to the hub: files in one commit, of which the large ones go to its large storage first, each under the SHA-256
//! of its content, so that nothing is sent twice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use ureq::SendBody;
use ureq::http::HeaderMap;

use super::client::{Client, Failure, REDIRECTS, TRIES, origin};
use super::{Progress, tell};
use crate::error::{Error, Result};

/// Files that are asked about at a time.
const AT_ONCE: usize = 256;
/// Bytes of a file by which the hub tells what it is.
const SAMPLE: u64 = 512;
const JSON: &str = "application/json";
const LFS: &str = "application/vnd.git-lfs+json";

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In a file.
    File(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
}

trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

impl Content {
    fn open(&self) -> Result<Box<dyn Source + '_>> {
        Ok(match self {
            Content::File(path) => Box::new(File::open(path).map_err(|e| Error::io(path, e))?),
            Content::Bytes(bytes) => Box::new(Cursor::new(bytes)),
        })
    }

    /// The error of reading it.
    fn error(&self, e: io::Error) -> Failure {
        Failure::Refused(match self {
            Content::File(path) => Error::io(path, e),
            Content::Bytes(_) => Error::io("memory", e),
        })
    }
}

/// A file to send.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Its name in the repository.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

impl Parcel {
    /// Its bytes.
    pub fn size(&self) -> Result<u64> {
        match &self.content {
            Content::File(path) => Ok(std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len()),
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }
}

/// What was made of it.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Where the commit can be seen.
    pub url: String,
    /// Its name.
    pub commit: String,
    /// Bytes that were sent to large storage.
    pub sent: u64,
}

/// A parcel, and what the hub asks about it.
struct Ready<'a> {
    parcel: &'a Parcel,
    size: u64,
    hash: String,
    sample: Vec<u8>,
    large: bool,
}

/// An answer.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What it says went wrong, if it does.
    fn message(&self) -> String {
        let header = self.headers.get("x-error-message").and_then(|value| value.to_str().ok());
        let said = ["error", "message"].iter().find_map(|key| self.body.get(key)?.as_str()).or(header);
        // One line of it is enough.
        let said = said.and_then(|said| said.lines().next()).unwrap_or_default().trim();
        if said.is_empty() { String::new() } else { format!(": {said}") }
    }
}

/// The SHA-256 of what there is to read.
pub fn sha256(source: &mut dyn Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Client {
    /// Makes a commit of `parcels` in `repo`.
    pub fn push(&self, repo: &str, parcels: &[Parcel], private: bool, summary: &str) -> Result<Pushed, Failure> {
        if self.token.is_none() {
            let expected = "a token that may write: HF_TOKEN=hf_…, from the hub's page settings/tokens";
            return Err(Failure::Refused(Error::file(repo, "no token for the hub", expected)));
        }
        let mut ready = Vec::new();
        for parcel in parcels {
            ready.push(self.ready(parcel)?);
        }
        self.create(repo, private)?;
        self.modes(repo, &mut ready)?;
        let large: Vec<&Ready> = ready.iter().filter(|file| file.large).collect();
        let mut sent = 0;
        for files in large.chunks(AT_ONCE) {
            sent += self.store(repo, files)?;
        }
        let (url, commit) = self.commit(repo, &ready, summary)?;
        Ok(Pushed { url, commit, sent })
    }

    fn ready<'a>(&self, parcel: &'a Parcel) -> Result<Ready<'a>, Failure> {
        let wrong = |e| parcel.content.error(e);
        let size = parcel.size().map_err(Failure::Refused)?;
        let mut source = parcel.content.open().map_err(Failure::Refused)?;
        let mut sample = Vec::new();
        source.by_ref().take(SAMPLE).read_to_end(&mut sample).map_err(wrong)?;
        source.seek(SeekFrom::Start(0)).map_err(wrong)?;
        let hash = sha256(&mut source).map_err(wrong)?;
        Ok(Ready { parcel, size, hash, sample, large: false })
    }

    /// Makes the repository, if it is not there.
    fn create(&self, repo: &str, private: bool) -> Result<(), Failure> {
        let (organization, name) = repo.split_once('/').unwrap_or_default();
        let mut body = json!({"name": name, "organization": organization, "type": "model"});
        if private {
            body["visibility"] = "private".into();
        }
        let url = format!("{}/api/repos/create", self.endpoint);
        let mut tries = 0;
        let answer = loop {
            let answer = self.asked(&url, JSON, &body)?;
            tries += 1;
            // The hub makes one repository of an owner at a time.
            let busy = answer.status == 409 && answer.message().contains("conflicting operation");
            if !busy || tries == TRIES {
                break answer;
            }
            std::thread::sleep(self.pause * 2u32.pow(tries));
        };
        if answer.is_success() {
            return Ok(());
        }
        // A token that may not make repositories may write to one that is there.
        if ![401, 402, 403, 409].contains(&answer.status) {
            return Err(self.not_taken(repo, "no repository could be made", &answer));
        }
        let (found, _) = self.tried(false, &format!("{}/api/models/{repo}", self.endpoint))?;
        if !found.status().is_success() {
            return Err(self.not_taken(repo, "no repository could be made", &answer));
        }
        let text = found.into_body().into_with_config().limit(64 << 20).read_to_vec().unwrap_or_default();
        let about: Value = serde_json::from_slice(&text).unwrap_or_default();
        if private && about.get("private").and_then(Value::as_bool) != Some(true) {
            let expected = "a private one: another name, or make it private on its page; nothing was sent";
            return Err(Failure::Refused(Error::file(repo, "a public repository", expected)));
        }
        Ok(())
    }

    /// Asks which files are for large storage.
    fn modes(&self, repo: &str, ready: &mut [Ready]) -> Result<(), Failure> {
        let url = format!("{}/api/models/{repo}/preupload/main", self.endpoint);
        for files in ready.chunks_mut(AT_ONCE) {
            let asked: Vec<Value> = files
                .iter()
                .map(|f| json!({"path": f.parcel.name, "sample": STANDARD.encode(&f.sample), "size": f.size}))
                .collect();
            let answer = self.asked(&url, JSON, &json!({ "files": asked }))?;
            if !answer.is_success() {
                return Err(self.not_taken(repo, "the files were not taken", &answer));
            }
            let told = answer.body.get("files").and_then(Value::as_array).into_iter().flatten();
            let told: BTreeMap<&str, &Value> =
                told.filter_map(|file| Some((file.get("path")?.as_str()?, file))).collect();
            for file in files {
                let name = &file.parcel.name;
                let about = told.get(name.as_str());
                if about.and_then(|about| about.get("shouldIgnore")?.as_bool()) == Some(true) {
                    let expected = "a repository that takes it: change that file on the hub";
                    let found = format!("a .gitignore that leaves out {name}");
                    return Err(Failure::Refused(Error::file(repo, found, expected)));
                }
                match about.and_then(|about| about.get("uploadMode")?.as_str()) {
                    // Large storage has nothing empty.
                    Some("lfs") => file.large = file.size > 0,
                    Some("regular") => file.large = false,
                    _ => return Err(self.odd(&format!("nothing of {name}"))),
                }
            }
        }
        Ok(())
    }

    /// Sends what large storage does not have yet. Returns its bytes.
    fn store(&self, repo: &str, files: &[&Ready]) -> Result<u64, Failure> {
        let url = format!("{}/{repo}.git/info/lfs/objects/batch", self.endpoint);
        let objects: Vec<Value> = files.iter().map(|file| json!({"oid": file.hash, "size": file.size})).collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": "main"},
        });
        let answer = self.asked(&url, LFS, &body)?;
        if !answer.is_success() {
            return Err(self.not_taken(repo, "large files were not taken", &answer));
        }
        let told = answer.body.get("objects").and_then(Value::as_array).into_iter().flatten();
        let told: BTreeMap<&str, &Value> = told.filter_map(|told| Some((told.get("oid")?.as_str()?, told))).collect();
        let mut sent = 0;
        let mut done: Vec<&str> = Vec::new();
        for file in files {
            let name = &file.parcel.name;
            let told = told.get(file.hash.as_str()).ok_or_else(|| self.odd(&format!("nothing of {name}")))?;
            if let Some(error) = told.get("error") {
                let said = error.get("message").and_then(Value::as_str).unwrap_or("no reason");
                let found = format!("{name}, which was not taken: {said}");
                return Err(Failure::Refused(Error::file(repo, found, "a file that the hub takes")));
            }
            // Two files may have one content.
            let Some(actions) = told.get("actions").filter(|_| !done.contains(&file.hash.as_str())) else { continue };
            done.push(&file.hash);
            self.send(repo, file, actions)?;
            sent += file.size;
        }
        Ok(sent)
    }

    /// Sends a file as the hub says.
    fn send(&self, repo: &str, file: &Ready, actions: &Value) -> Result<(), Failure> {
        let name = &file.parcel.name;
        let address = |action: &str| Some(actions.get(action)?.get("href")?.as_str()?.to_owned());
        let url = address("upload").ok_or_else(|| self.odd(&format!("no address for {name}")))?;
        let empty = Map::new();
        let header = actions["upload"].get("header").and_then(Value::as_object).unwrap_or(&empty);
        let size = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).filter(|size| *size > 0);
        tell(&Progress { sent: true, file: name, done: 0, all: file.size });
        match header.get("chunk_size") {
            None => drop(self.put(repo, file, &url, 0, file.size)?),
            Some(piece) => {
                let piece = size(piece).ok_or_else(|| self.odd("no size of parts"))?;
                let part = |(key, url): (&String, &Value)| Some((key.parse::<u64>().ok()?, url.as_str()?.to_owned()));
                let mut parts: Vec<(u64, String)> = header.iter().filter_map(part).collect();
                parts.sort();
                if parts.len() as u64 != file.size.div_ceil(piece) {
                    return Err(self.odd(&format!("{} addresses for {name} of {} bytes", parts.len(), file.size)));
                }
                let mut tags = Vec::new();
                for (i, (_, url)) in parts.iter().enumerate() {
                    let from = i as u64 * piece;
                    let headers = self.put(repo, file, url, from, piece.min(file.size - from))?;
                    let tag = headers.get("etag").and_then(|tag| tag.to_str().ok());
                    let tag = tag.ok_or_else(|| self.odd(&format!("no ETag of a part of {name}")))?;
                    tags.push(json!({"partNumber": i + 1, "etag": tag}));
                }
                let answer = self.asked(&url, LFS, &json!({"oid": file.hash, "parts": tags}))?;
                if !answer.is_success() {
                    return Err(self.not_taken(repo, &format!("the parts of {name} were not taken"), &answer));
                }
            }
        }
        let Some(verify) = address("verify") else { return Ok(()) };
        let answer = self.asked(&verify, JSON, &json!({"oid": file.hash, "size": file.size}))?;
        match answer.is_success() {
            true => Ok(()),
            false => Err(self.not_taken(repo, &format!("{name} did not arrive whole"), &answer)),
        }
    }

    /// Sends `size` bytes of a file from byte `from` on, in several tries if need be.
    fn put(&self, repo: &str, file: &Ready, url: &str, from: u64, size: u64) -> Result<HeaderMap, Failure> {
        let name = &file.parcel.name;
        let mut why = String::new();
        for again in 0..TRIES {
            if again > 0 {
                std::thread::sleep(self.pause * 2u32.pow(again - 1));
            }
            let mut source = file.parcel.content.open().map_err(Failure::Refused)?;
            source.seek(SeekFrom::Start(from)).map_err(|e| file.parcel.content.error(e))?;
            let progress = Progress { sent: true, file: name, done: from, all: file.size };
            let mut body = Told { source: source.take(size), progress };
            let request = self.agent.put(url).header("content-length", size.to_string());
            // Whoever has the address may write: the token is for the hub alone.
            match request.send(SendBody::from_reader(&mut body)) {
                Ok(answer) if answer.status().is_success() => return Ok(answer.headers().clone()),
                Ok(answer) if answer.status().is_server_error() => why = answer.status().to_string(),
                Ok(answer) => {
                    let found = format!("large storage, which answers {} to {name}", answer.status());
                    let expected = "the same command again: what has arrived is not sent again";
                    return Err(Failure::Refused(Error::file(repo, found, expected)));
                }
                Err(error) => why = error.to_string(),
            }
        }
        let found = format!("{name} of {} bytes not sent after {TRIES} tries ({why})", file.size);
        let expected = "the same command again: what has arrived is not sent again";
        Err(Failure::Refused(Error::file(repo, found, expected)))
    }

    /// The commit, one line of JSON a file. Returns its address and its name.
    fn commit(&self, repo: &str, files: &[Ready], summary: &str) -> Result<(String, String), Failure> {
        let mut body = line(json!({"key": "header", "value": {"summary": summary, "description": ""}}));
        for file in files {
            let name = &file.parcel.name;
            let value = match file.large {
                true => json!({"key": "lfsFile",
                    "value": {"path": name, "algo": "sha256", "oid": file.hash, "size": file.size}}),
                false => {
                    let mut bytes = Vec::new();
                    let mut source = file.parcel.content.open().map_err(Failure::Refused)?;
                    source.read_to_end(&mut bytes).map_err(|e| file.parcel.content.error(e))?;
                    json!({"key": "file",
                        "value": {"path": name, "encoding": "base64", "content": STANDARD.encode(bytes)}})
                }
            };
            body += &line(value);
        }
        let url = format!("{}/api/models/{repo}/commit/main", self.endpoint);
        // Not tried again: an answer that is lost may be that of a commit that was made.
        let answer = self.post(&url, "application/x-ndjson", body.as_bytes());
        let answer = answer.map_err(|why| Failure::Unreachable(format!("{}: {why}", self.endpoint)))?;
        if !answer.is_success() {
            return Err(self.not_taken(repo, "the commit was not taken", &answer));
        }
        let told = |key: &str| answer.body.get(key).and_then(Value::as_str).map(str::to_owned);
        let url = told("commitUrl").unwrap_or_else(|| format!("{}/{repo}", self.endpoint));
        Ok((url, told("commitOid").unwrap_or_default()))
    }

    /// What [`Client::post`] gives, or gives in a later try where nobody answers or a server fails.
    fn asked(&self, url: &str, kind: &str, body: &Value) -> Result<Answer, Failure> {
        let body = body.to_string();
        let mut why = String::new();
        for again in 0..3 {
            if again > 0 {
                std::thread::sleep(self.pause * again);
            }
            match self.post(url, kind, body.as_bytes()) {
                Ok(answer) if answer.status >= 500 => why = format!("{}{}", answer.status, answer.message()),
                Ok(answer) => return Ok(answer),
                Err(error) => why = error,
            }
        }
        Err(Failure::Unreachable(format!("{}: {why}", self.endpoint)))
    }

    /// Posts, and follows to where a repository is that has moved.
    fn post(&self, url: &str, kind: &str, body: &[u8]) -> Result<Answer, String> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let accept = if kind == LFS { LFS } else { JSON };
            let mut request = self.agent.post(&url).header("content-type", kind).header("accept", accept);
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.send(body).map_err(|e| e.to_string())?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let target = headers.get("location").and_then(|target| target.to_str().ok());
            match target.filter(|_| status == 307 || status == 308) {
                Some(target) if target.starts_with('/') => url = format!("{}{target}", origin(&url)),
                Some(target) => url = target.to_owned(),
                None => {
                    let text = response.into_body().into_with_config().limit(64 << 20).read_to_vec();
                    let body = serde_json::from_slice(&text.map_err(|e| e.to_string())?).unwrap_or_default();
                    return Ok(Answer { status, headers, body });
                }
            }
        }
        Err("it leads on and on".into())
    }

    fn odd(&self, what: &str) -> Failure {
        Failure::Unreachable(format!("{what} from {}", self.endpoint))
    }

    /// What an answer that is no says.
    fn not_taken(&self, repo: &str, what: &str, answer: &Answer) -> Failure {
        let (status, said) = (answer.status, answer.message());
        let expected = match status {
            401 => "a token that is valid: HF_TOKEN, from the hub's page settings/tokens",
            402 | 403 => "HF_TOKEN, a token that may write, of an account that may write there",
            404 => "a repository that is there, of an account that the token is of",
            409 | 412 => "nobody else who writes it: the same command again",
            _ => "what the hub takes",
        };
        Failure::Refused(Error::file(repo, format!("{what} ({status}{said})"), expected))
    }
}

fn line(value: Value) -> String {
    format!("{value}\n")
}

/// Tells how far the reading is.
struct Told<'a> {
    source: io::Take<Box<dyn Source + 'a>>,
    progress: Progress<'a>,
}

impl Read for Told<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(into)?;
        self.progress.done += n as u64;
        tell(&self.progress);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's examples.
    #[test]
    fn hashes_are_sha256() {
        let hash = |bytes: &[u8]| sha256(&mut Cursor::new(bytes)).unwrap();
        assert_eq!(hash(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let million = vec![b'a'; 1_000_000];
        assert_eq!(hash(&million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}
