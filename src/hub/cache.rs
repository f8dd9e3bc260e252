//! The cache: `models--org--name/` with `refs/REVISION` (a commit), `snapshots/COMMIT/FILE` (links) and `blobs/ETAG` (contents).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::choice::{self, INDEX};
use super::client::{Client, Failure};
use super::{Kind, Name, Parcel, Progress, Pushed, tell, upload};
use crate::error::{Error, Result};
use crate::system;

/// The revision that counts if none is named.
const MAIN: &str = "main";

/// A hub with the cache of what was fetched from it.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
}

impl Hub {
    /// A hub at an address, with a folder for what is fetched. `pause` is the one before a second try.
    pub fn new(endpoint: &str, cache: PathBuf, token: Option<String>, offline: bool, pause: Duration) -> Hub {
        Hub { client: Client::new(endpoint, token, pause), cache, offline }
    }

    /// The one that the environment names.
    pub fn of_environment() -> Result<Hub> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_on =
            |name: &str| var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()));
        let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
        let user = || var("HOME").or_else(|| var("USERPROFILE")).map(|user| Path::new(&user).join(".cache"));
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| Some(caches.or_else(user)?.join("huggingface")));
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")));
        let cache =
            cache.ok_or_else(|| Error::config("HF_HOME", "nothing, nor a HOME", "the folder of the hub's cache"))?;
        let kept = || {
            let path = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(path).ok().filter(|_| !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        };
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(kept);
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Hub::new(&endpoint, cache, token, is_on("HF_HUB_OFFLINE"), Duration::from_millis(500)))
    }

    /// Where what `name` names is kept: it is fetched as far as it is not there, or is not the hub's newest. Where the hub
    /// does not answer, what is there counts.
    pub fn fetch(&self, name: &Name, kind: Kind) -> Result<PathBuf> {
        let folder = self.cache.join(format!("models--{}", name.repo.replace('/', "--")));
        let revision = name.revision.as_deref().unwrap_or(MAIN);
        let info = match self.offline {
            true => Err(Failure::Unreachable("HF_HUB_OFFLINE is set".into())),
            false => self.client.info(&name.repo, revision),
        };
        let info = match info {
            Ok(info) => info,
            Err(Failure::Unreachable(why)) => {
                return kept(&folder, name, kind).ok_or_else(|| Failure::Unreachable(why).of(&name.repo));
            }
            Err(refused) => return Err(refused.of(&name.repo)),
        };
        let snapshot = folder.join("snapshots").join(&info.commit);
        let one = |file: &str| self.file(&folder, &name.repo, &info.commit, file);
        let missing = |found: String| {
            let what = if kind == Kind::Model { "a model" } else { "an adapter" };
            Error::file(
                &name.repo,
                found,
                format!("{what} in safetensors, or the name of a GGUF file: {}/FILE.gguf", name.repo),
            )
        };
        match &name.file {
            Some(file) if !info.files.contains(file) => {
                let found = format!("no file {file}; {}", choice::needed(&info.files, kind).err().unwrap_or_default());
                return Err(missing(found.trim_end_matches([';', ' ']).into()));
            }
            Some(file) => one(file)?,
            None => {
                let chosen = choice::needed(&info.files, kind).map_err(missing)?;
                chosen.iter().try_for_each(|file| one(file))?;
                if chosen.contains(&INDEX) {
                    let path = snapshot.join(INDEX);
                    let index = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
                    let shards =
                        choice::shards(&index).ok_or_else(|| missing(format!("an {INDEX} without a weight_map")))?;
                    if let Some(lost) = shards.iter().find(|shard| !info.files.contains(shard)) {
                        return Err(missing(format!("no {lost}, which {INDEX} names")));
                    }
                    shards.iter().try_for_each(|shard| one(shard))?;
                }
            }
        }
        let known = folder.join("refs").join(revision);
        // A commit is its own name.
        if info.commit != revision && std::fs::read_to_string(&known).ok().as_ref() != Some(&info.commit) {
            made(&folder.join("refs"))?;
            std::fs::write(&known, &info.commit).map_err(|e| Error::io(&known, e))?;
        }
        Ok(name.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
    }

    /// Puts files into the repository `repo` in one commit; it is made if it is not there, for its owner's eyes alone with
    /// `private`, and files of these names are replaced.
    pub fn push(&self, repo: &str, parcels: &[Parcel], private: bool, summary: &str) -> Result<Pushed> {
        if self.offline {
            return Err(Failure::Unreachable("HF_HUB_OFFLINE is set".into()).of_push(repo));
        }
        self.client.push(repo, parcels, private, summary).map_err(|failure| failure.of_push(repo))
    }

    /// Fetches a file, unless it is there.
    fn file(&self, folder: &Path, repo: &str, commit: &str, file: &str) -> Result<()> {
        let link = folder.join("snapshots").join(commit).join(file);
        if link.exists() {
            return Ok(());
        }
        let meta = self.client.meta(repo, commit, file).map_err(|failure| failure.of(repo))?;
        let blobs = folder.join("blobs");
        let blob = blobs.join(&meta.etag);
        let locks = self.cache.join(".locks").join(folder.file_name().unwrap_or_default());
        for dir in [&blobs, &locks, &link.parent().unwrap_or(folder).to_path_buf()] {
            made(dir)?;
        }
        // One process fetches a file at a time. Where nothing can be locked, each does.
        let lock = File::create(locks.join(format!("{}.lock", meta.etag))).ok();
        let _ = lock.as_ref().map(File::lock);
        if !blob.exists() {
            let begun = blobs.join(format!("{}.incomplete", meta.etag));
            let there = std::fs::metadata(&begun).map_or(0, |kind| kind.len());
            if let Some(free) = system::free_space(&blobs).filter(|free| *free < meta.size.saturating_sub(there)) {
                let found = format!("{free} bytes free in {} for {file} of {} bytes", blobs.display(), meta.size);
                return Err(Error::file(repo, found, "room, or another folder: HF_HOME"));
            }
            tell(&Progress { sent: false, file, done: there, all: meta.size });
            self.client.download(repo, commit, file, meta.size, &begun).map_err(|failure| failure.of(repo))?;
            if meta.large {
                whole(repo, file, &meta.etag, &begun)?;
            }
            std::fs::rename(&begun, &blob).map_err(|e| Error::io(&blob, e))?;
        }
        linked(&blob, &meta.etag, file, &link).map_err(|e| Error::io(&link, e))
    }
}

/// A file in large storage is named by its SHA-256. One that is another is deleted, as it would be gone on with.
fn whole(repo: &str, file: &str, etag: &str, path: &Path) -> Result<()> {
    let is_hash = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hash {
        return Ok(());
    }
    let hash = File::open(path).and_then(|mut file| upload::sha256(&mut file)).map_err(|e| Error::io(path, e))?;
    if hash.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    std::fs::remove_file(path).map_err(|e| Error::io(path, e))?;
    let found = format!("{file} that arrived with other bytes (SHA-256 {hash})");
    Err(Error::file(repo, found, format!("{etag}: the same command again, which fetches it anew")))
}

fn made(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
}

/// Makes `link`, the file of a snapshot, lead to its content.
fn linked(blob: &Path, etag: &str, file: &str, link: &Path) -> std::io::Result<()> {
    // A link may be there that leads nowhere.
    let _ = std::fs::remove_file(link);
    let up = "../".repeat(2 + file.matches('/').count());
    let target = format!("{up}blobs/{etag}");
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(&target, link);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_file(target.replace('/', "\\"), link);
    #[cfg(not(any(unix, windows)))]
    let made: std::io::Result<()> = Err(std::io::Error::other(target));
    // Not every file system has links.
    made.or_else(|_| std::fs::copy(blob, link).map(drop))
}

/// Where the cache has what `name` names, if it has all of it.
fn kept(folder: &Path, name: &Name, kind: Kind) -> Option<PathBuf> {
    let revision = name.revision.as_deref().unwrap_or(MAIN);
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).unwrap_or(revision.into());
    let snapshot = folder.join("snapshots").join(commit.trim());
    if let Some(file) = &name.file {
        return Some(snapshot.join(file)).filter(|path| path.exists());
    }
    let entries = std::fs::read_dir(&snapshot).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let files = entries.filter(|path| path.exists()).filter_map(|path| path.file_name()?.to_str().map(String::from));
    let files: Vec<String> = files.collect();
    let chosen = choice::needed(&files, kind).ok()?;
    if chosen.contains(&INDEX) {
        let shards = choice::shards(&std::fs::read(snapshot.join(INDEX)).ok()?)?;
        if shards.iter().any(|shard| !files.contains(shard)) {
            return None;
        }
    }
    Some(snapshot)
}
