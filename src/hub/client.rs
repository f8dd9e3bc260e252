//! What is asked of the hub over HTTP.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::{Progress, tell};
use crate::error::{Error, Result};

/// Tries of a transfer that gets no further, before it is given up.
pub(super) const TRIES: u32 = 5;
pub(super) const REDIRECTS: usize = 10;

/// Why there is no answer.
pub enum Failure {
    /// Nobody answers, or not in the way of a hub.
    Unreachable(String),
    /// The answer is no.
    Refused(Error),
}

impl Failure {
    /// The error of what was to be sent to `repo`.
    pub fn of_push(self, repo: &str) -> Error {
        match self {
            Failure::Refused(error) => error,
            Failure::Unreachable(found) => {
                Error::file(repo, found, "a hub that takes it: the same command again sends only what is not there yet")
            }
        }
    }

    /// The error of `name`.
    pub fn of(self, name: &str) -> Error {
        match self {
            Failure::Refused(error) => error,
            Failure::Unreachable(found) => Error::file(
                name,
                format!("no folder of this name, and no answer of the hub ({found})"),
                "a network, or a folder",
            ),
        }
    }
}

/// A hub, and who asks.
pub struct Client {
    pub(super) agent: Agent,
    /// Its address, without a slash at the end.
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    /// The pause before the second try; each one after that is twice as long.
    pub(super) pause: Duration,
}

/// What a hub says of a repository.
pub struct Info {
    /// The commit that the revision is.
    pub commit: String,
    /// Names of its files.
    pub files: Vec<String>,
}

/// What a hub says of a file.
pub struct Meta {
    /// Names its content.
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// Whether it is in large storage, where the name is the SHA-256 of the content.
    pub large: bool,
}

impl Client {
    /// Of the hub at `endpoint`.
    pub fn new(endpoint: &str, token: Option<String>, pause: Duration) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("trimtab/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Client { agent: config.into(), endpoint: endpoint.trim_end_matches('/').into(), token, pause }
    }

    /// What the repository `repo` holds at `revision`.
    pub fn info(&self, repo: &str, revision: &str) -> Result<Info, Failure> {
        let url = format!("{}/api/models/{repo}/revision/{revision}", self.endpoint);
        let (response, _) = self.tried(false, &url)?;
        if !response.status().is_success() {
            return Err(self.refused(repo, None, &response));
        }
        let odd = |what: &str| Failure::Unreachable(format!("{what} from {}", self.endpoint));
        let text =
            response.into_body().into_with_config().limit(64 << 20).read_to_vec().map_err(|_| odd("half an answer"))?;
        let json: Value = serde_json::from_slice(&text).map_err(|_| odd("no JSON"))?;
        let commit =
            json.get("sha").and_then(Value::as_str).filter(|sha| is_plain(sha)).ok_or_else(|| odd("no commit"))?;
        let files = json.get("siblings").and_then(Value::as_array).into_iter().flatten();
        let files = files.filter_map(|file| file.get("rfilename")?.as_str()).filter(|name| is_inside(name));
        Ok(Info { commit: commit.into(), files: files.map(String::from).collect() })
    }

    fn url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!(
            "{}/{repo}/resolve/{commit}/{}",
            self.endpoint,
            file.replace('%', "%25").replace(' ', "%20").replace('#', "%23")
        )
    }

    /// What a file of a commit is.
    pub fn meta(&self, repo: &str, commit: &str, file: &str) -> Result<Meta, Failure> {
        let url = self.url(repo, commit, file);
        let (last, first) = self.tried(true, &url)?;
        if !last.status().is_success() {
            return Err(self.refused(repo, Some(file), &last));
        }
        // Of a file in large storage the hub's own answer tells, not that of the storage.
        let told = |name: &str| {
            [&first, last.headers()].into_iter().find_map(|headers| Some(headers.get(name)?.to_str().ok()?.to_owned()))
        };
        let etag = told("x-linked-etag").or_else(|| last.headers().get("etag")?.to_str().ok().map(String::from));
        let etag =
            etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|etag| is_plain(etag));
        let size =
            told("x-linked-size").or_else(|| last.headers().get("content-length")?.to_str().ok().map(String::from));
        match (etag, size.and_then(|size| size.parse().ok())) {
            (Some(etag), Some(size)) => Ok(Meta { etag, size, large: first.contains_key("x-linked-etag") }),
            _ => Err(Failure::Unreachable(format!("{} says nothing of {file}", self.endpoint))),
        }
    }

    /// Fetches a file of a commit to `path`, which may have its first bytes already.
    pub fn download(&self, repo: &str, commit: &str, file: &str, size: u64, path: &Path) -> Result<(), Failure> {
        let url = self.url(repo, commit, file);
        let io = |e| Failure::Refused(Error::io(path, e));
        let mut out = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
        let mut done = out.seek(SeekFrom::End(0)).map_err(io)?;
        if done > size {
            done = 0;
        }
        let mut tries = 0;
        let mut why = String::new();
        while done < size || tries == 0 && size == 0 {
            if tries == TRIES {
                let found = format!("{done} of {size} bytes of {file} after {TRIES} tries ({why})");
                return Err(Failure::Refused(Error::file(
                    repo,
                    found,
                    "the same command again: it goes on where this one ended",
                )));
            }
            if tries > 0 {
                std::thread::sleep(self.pause * 2u32.pow(tries - 1));
            }
            tries += 1;
            let before = done;
            match self.follow(false, &url, done) {
                Err(e) => why = e.to_string(),
                Ok((response, _)) if response.status().is_server_error() => why = response.status().to_string(),
                Ok((response, _)) if response.status().is_success() => {
                    // Who does not send the rest sends all.
                    if response.status() != StatusCode::PARTIAL_CONTENT {
                        done = 0;
                    }
                    out.seek(SeekFrom::Start(done)).and_then(|at| out.set_len(at)).map_err(io)?;
                    why = copy(response, &mut out, &mut done, &Progress { sent: false, file, done: 0, all: size })
                        .map_err(io)?;
                }
                Ok((response, _)) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => done = 0,
                Ok((response, _)) => return Err(self.refused(repo, Some(file), &response)),
            }
            if done > before {
                tries = 1;
            }
        }
        out.set_len(size).and_then(|()| out.sync_all()).map_err(io)
    }

    /// What [`Client::follow`] gives, or gives in a later try where nobody answers or a server fails.
    pub(super) fn tried(&self, head: bool, url: &str) -> Result<(Response<Body>, HeaderMap), Failure> {
        let mut why = String::new();
        for again in 0..3 {
            if again > 0 {
                std::thread::sleep(self.pause * again);
            }
            match self.follow(head, url, 0) {
                Ok((response, _)) if response.status().is_server_error() => why = response.status().to_string(),
                Ok(answer) => return Ok(answer),
                Err(error) => why = error.to_string(),
            }
        }
        Err(Failure::Unreachable(format!("{}: {why}", self.endpoint)))
    }

    /// Asks for `url`, from byte `from` on, and follows to where it is. Returns the last answer, and the first one's headers.
    /// The token is for the hub alone: nobody it leads to gets it.
    fn follow(&self, head: bool, url: &str, from: u64) -> Result<(Response<Body>, HeaderMap), ureq::Error> {
        let mut url = url.to_owned();
        let mut first = None;
        for _ in 0..REDIRECTS {
            let request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            // A packed answer would have another length.
            let mut request = request.header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call()?;
            let first = first.get_or_insert_with(|| response.headers().clone());
            let target = response.headers().get("location").and_then(|target| target.to_str().ok());
            // Of a file in large storage the hub says all itself.
            let known = head && first.contains_key("x-linked-etag") && first.contains_key("x-linked-size");
            match target.filter(|_| response.status().is_redirection() && !known) {
                Some(target) if target.starts_with('/') => url = format!("{}{target}", origin(&url)),
                Some(target) => url = target.to_owned(),
                None if response.status().is_redirection() && known => {
                    let (mut parts, body) = response.into_parts();
                    parts.status = StatusCode::OK;
                    return Ok((Response::from_parts(parts, body), first.clone()));
                }
                None => return Ok((response, first.clone())),
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// What an answer that is no says.
    fn refused(&self, repo: &str, file: Option<&str>, response: &Response<Body>) -> Failure {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let status = response.status().as_u16();
        let account = match self.token {
            Some(_) => "an account with access: HF_TOKEN is of one that has none",
            None => "a name on the hub; for what is private or gated HF_TOKEN, a token of an account with access",
        };
        let (found, expected) = match (status, header("x-error-code"), file) {
            (404, Some("RevisionNotFound"), _) => {
                ("a repository without this revision (404)".into(), "ORG/NAME@REVISION, a branch, a tag or a commit")
            }
            (403, ..) | (401, Some("GatedRepo"), _) => (format!("a gated repository ({status})"), account),
            (404, _, Some(file)) => (format!("no file {file} on the hub (404)"), "a file of the repository"),
            (401 | 404, ..) => {
                (format!("no folder of this name here, and no repository at {} ({status})", self.endpoint), account)
            }
            _ => return Failure::Unreachable(format!("{} answers {status}", self.endpoint)),
        };
        Failure::Refused(Error::file(repo, found, expected))
    }
}

/// Copies an answer until it ends or breaks off, which is told.
fn copy(response: Response<Body>, out: &mut File, done: &mut u64, progress: &Progress) -> io::Result<String> {
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    while *done < progress.all {
        let read = match body.read(&mut buffer) {
            Ok(0) => return Ok("the transfer ended early".into()),
            Ok(read) => read.min((progress.all - *done) as usize),
            Err(e) => return Ok(e.to_string()),
        };
        out.write_all(&buffer[..read])?;
        *done += read as u64;
        tell(&Progress { done: *done, ..progress.clone() });
    }
    Ok(String::new())
}

/// Scheme and host of an address.
pub(super) fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[..end]
}

/// Whether a text may be the name of a file in the cache.
fn is_plain(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    plain && !text.is_empty() && text.len() <= 128 && !text.starts_with('.')
}

/// Whether a file's name leads into its folder and nowhere else.
fn is_inside(name: &str) -> bool {
    let parts = Path::new(name).components();
    !name.is_empty()
        && !name.contains('\\')
        && parts.into_iter().all(|part| matches!(part, std::path::Component::Normal(_)))
}
