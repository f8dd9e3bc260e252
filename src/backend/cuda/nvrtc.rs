//! NVRTC's library: where it is looked for, and its functions, each bound from that file and no other.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::compile::NVRTC_PATH;

/// What a function returns; 0 is success.
pub type Status = c_int;

/// A program of NVRTC's.
#[repr(C)]
pub struct Opaque([u8; 0]);

pub type Program = *mut Opaque;

macro_rules! functions {
    ($($name:ident: $symbol:literal, ($($arg:ty),*) -> $result:ty;)+) => {
        /// The functions that are called.
        pub struct Nvrtc {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> $result,)+
            /// Stays loaded as long as the functions are there.
            _library: Library,
        }

        impl Nvrtc {
            /// Binds those of an open library.
            fn bind(library: Library) -> Result<Nvrtc, libloading::Error> {
                Ok(Nvrtc {
                    $(
                        // SAFETY: the name has this type in every NVRTC (nvrtc.h), and the library is kept beside it.
                        $name: unsafe { *library.get($symbol)? },
                    )+
                    _library: library,
                })
            }
        }
    };
}

functions! {
    version: b"nvrtcVersion\0", (*mut c_int, *mut c_int) -> Status;
    archs_count: b"nvrtcGetNumSupportedArchs\0", (*mut c_int) -> Status;
    archs: b"nvrtcGetSupportedArchs\0", (*mut c_int) -> Status;
    create: b"nvrtcCreateProgram\0",
        (*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status;
    destroy: b"nvrtcDestroyProgram\0", (*mut Program) -> Status;
    compile: b"nvrtcCompileProgram\0", (Program, c_int, *const *const c_char) -> Status;
    log_size: b"nvrtcGetProgramLogSize\0", (Program, *mut usize) -> Status;
    log: b"nvrtcGetProgramLog\0", (Program, *mut c_char) -> Status;
    ptx_size: b"nvrtcGetPTXSize\0", (Program, *mut usize) -> Status;
    ptx: b"nvrtcGetPTX\0", (Program, *mut c_char) -> Status;
    cubin_size: b"nvrtcGetCUBINSize\0", (Program, *mut usize) -> Status;
    cubin: b"nvrtcGetCUBIN\0", (Program, *mut c_char) -> Status;
    error: b"nvrtcGetErrorString\0", (Status) -> *const c_char;
}

impl Nvrtc {
    /// The library, opened once; the error says what was not there.
    pub fn get() -> Result<&'static Nvrtc, String> {
        static FOUND: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        FOUND.get_or_init(Nvrtc::find).as_ref().map_err(Clone::clone)
    }

    fn find() -> Result<Nvrtc, String> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(named) = var(NVRTC_PATH).map(PathBuf::from) {
            return Nvrtc::open(&named).map_err(|e| format!("{NVRTC_PATH}={}: {e}", named.display()));
        }
        let places = candidates(cfg!(windows), var("CUDA_PATH"));
        places.iter().find_map(|place| Nvrtc::open(place).ok()).ok_or_else(|| "no NVRTC library".into())
    }

    /// The library of this path or name.
    fn open(path: &Path) -> Result<Nvrtc, libloading::Error> {
        // NVRTC opens its built-in functions by their name, which the loader may not find: they are in the same folder.
        for builtins in beside(path) {
            // SAFETY: as below. It stays loaded, so that the search by its name finds it.
            let _ = unsafe { Library::new(builtins) }.map(std::mem::forget);
        }
        // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
        Nvrtc::bind(unsafe { Library::new(path) }?)
    }

    /// An error unless `status` is success.
    pub fn ok(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it returns a constant text for every number.
        let text = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// What is tried where nobody named a library, in order: names that the loader looks for and, on Windows, where the toolkit
/// puts them (CUDA 13 has a folder for x64). All of CUDA 12 has one name there.
fn candidates(windows: bool, toolkit: Option<OsString>) -> Vec<PathBuf> {
    const UNIX: [&str; 3] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
    const WINDOWS: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    if !windows {
        return UNIX.map(PathBuf::from).into();
    }
    let toolkit = toolkit.map(|path| PathBuf::from(path).join("bin"));
    let folders = toolkit.into_iter().flat_map(|bin| [bin.join("x64"), bin]);
    let there = folders.flat_map(|folder| WINDOWS.map(|name| folder.join(name)));
    WINDOWS.map(PathBuf::from).into_iter().chain(there).collect()
}

/// Libraries of built-in functions in the folder of `path`; none if it is a name that the loader looks for.
fn beside(path: &Path) -> Vec<PathBuf> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Vec::new() };
    let builtins = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64")
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(builtins).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_every_system() {
        let names = |windows, toolkit: Option<&str>| -> Vec<String> {
            let all = candidates(windows, toolkit.map(OsString::from));
            all.iter().map(|path| path.to_string_lossy().replace('\\', "/")).collect()
        };
        assert_eq!(names(false, Some("/usr/local/cuda")), ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]);
        assert_eq!(names(true, None), ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]);
        let toolkit = names(true, Some("C:/cuda"));
        assert_eq!(toolkit[..2], names(true, None));
        assert_eq!(toolkit[2..4], ["C:/cuda/bin/x64/nvrtc64_130_0.dll", "C:/cuda/bin/x64/nvrtc64_120_0.dll"]);
        assert!(beside(Path::new("libnvrtc.so.13")).is_empty());
    }

    /// The file of this process's memory that has `address`.
    #[cfg(target_os = "linux")]
    fn mapped(address: usize) -> PathBuf {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let has = |line: &&str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
            let [first, end] = [range.0, range.1].map(|hex| usize::from_str_radix(hex, 16).unwrap());
            (first..end).contains(&address)
        };
        maps.lines().find(has).and_then(|line| line.split_whitespace().nth(5)).unwrap().into()
    }

    /// Of two that have one name, the functions are those of the one that was named, whichever was opened first.
    #[cfg(target_os = "linux")]
    #[test]
    fn functions_are_of_the_named_file() {
        let Some(named) = std::env::var_os(NVRTC_PATH).map(PathBuf::from).filter(|path| path.exists()) else {
            eprintln!("SKIPPED: {NVRTC_PATH} names no library");
            return;
        };
        let named = named.canonicalize().unwrap();
        let folder = std::env::temp_dir().join(format!("trimtab-nvrtc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let copy = folder.canonicalize().unwrap().join(named.file_name().unwrap());
        std::fs::copy(&named, &copy).unwrap();
        let at = |nvrtc: &Nvrtc| [nvrtc.version as usize, nvrtc.compile as usize, nvrtc.cubin as usize].map(mapped);
        let (first, second) = (Nvrtc::open(&named).unwrap(), Nvrtc::open(&copy).unwrap());
        let found = (at(&first), at(&second));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, ([&named; 3].map(PathBuf::clone), [&copy; 3].map(PathBuf::clone)));
        assert!(!beside(&named).is_empty(), "no built-in functions beside {}", named.display());
        // The control: what is no NVRTC is not taken for one.
        assert!(Nvrtc::open(Path::new("libc.so.6")).is_err());
    }
}
