//! Choices that were made before: in the cache, where a file that is damaged counts for nothing, or in a file of the user's,
//! where it is an error.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Tune;
use crate::backend::Backend;
use crate::durable;
use crate::error::{Error, Result};
use crate::plan::Tilings;
use crate::system;

/// What times depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The card's name, as messages show it.
    pub device: String,
    /// Its multiprocessors, where it tells.
    pub processors: Option<u32>,
    /// Versions of driver and compiler, and a digest of the kernels' sources.
    pub kernels: String,
}

impl About {
    /// Of the device that is open.
    pub fn of(backend: &dyn Backend) -> About {
        let caps = backend.caps();
        About { device: caps.device.clone(), processors: caps.multiprocessors, kernels: backend.provenance() }
    }
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: About,
    tilings: Tilings,
}

/// The choices, and where they are kept.
pub struct Kept {
    about: About,
    path: Option<PathBuf>,
    /// Whether the path is a place for caches.
    is_cache: bool,
    /// The choices.
    pub tilings: Tilings,
}

impl Kept {
    /// What there is for the device that is `about`.
    pub fn open(tune: &Tune, about: About) -> Result<Kept> {
        match tune {
            Tune::File(path) => Kept::at(Some(path.clone()), false, about),
            Tune::Auto | Tune::Off => Kept::at(system::cache_dir().map(|dir| cached(&dir, &about)), true, about),
        }
    }

    /// The same of a path.
    pub fn at(path: Option<PathBuf>, is_cache: bool, about: About) -> Result<Kept> {
        let tilings = match path.as_deref().map(|path| read(path, &about)) {
            Some(Ok(tilings)) => tilings,
            Some(Err(error)) if !is_cache => return Err(error),
            Some(Err(_)) | None => Tilings::new(),
        };
        Ok(Kept { about, path, is_cache, tilings })
    }

    /// Keeps the choices; where, as the end of a sentence. What a cache refuses costs time and no results, so that is passed over.
    pub fn write(&self) -> Result<String> {
        let Some(path) = &self.path else { return Ok(String::new()) };
        let file = File { about: self.about.clone(), tilings: self.tilings.clone() };
        let text = serde_json::to_string_pretty(&file).map_err(|e| Error::io(path, e.into()))? + "\n";
        if let Some(folder) = path.parent().filter(|_| self.is_cache) {
            let _ = std::fs::create_dir_all(folder);
        }
        match durable::write(path, text.as_bytes()) {
            Ok(()) => Ok(format!("; kept in {}", path.display())),
            Err(_) if self.is_cache => Ok(String::new()),
            Err(error) => Err(error),
        }
    }
}

/// The file of a device in the folder for caches.
fn cached(dir: &Path, about: &About) -> PathBuf {
    let name = blake3::hash(format!("{about:?}").as_bytes()).to_hex();
    dir.join("tiles").join(format!("{}.json", &name[..32]))
}

/// The choices of a file; none if it is not there.
fn read(path: &Path, about: &About) -> Result<Tilings> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Tilings::new()),
        Err(e) => return Err(Error::io(path, e)),
    };
    const ANEW: &str =
        "what --tune FILE writes on this device; delete it, or name another file, and tiles are timed anew";
    let file: File = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string(), ANEW))?;
    if file.about != *about {
        let shown = |about: &About| {
            let processors = about.processors.map(|n| format!(", {n} multiprocessors")).unwrap_or_default();
            format!("{}{processors}, {}", about.device, about.kernels)
        };
        let found = format!("tiles for {}, where this is {}", shown(&file.about), shown(about));
        return Err(Error::file(path, found, ANEW));
    }
    Ok(file.tilings)
}
