//! NVRTC: CUDA C++ to PTX or to a card's machine code. No driver, no card and no CUDA headers are needed.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use super::kernels::{KERNELS, kernel};
use crate::error::{Error, Result};

/// Names the NVRTC library to use: a path to `libnvrtc.so.13` or the like.
pub const NVRTC_PATH: &str = "TRIMTAB_NVRTC";

const INSTALL: &str = "install the CUDA toolkit's NVRTC (Debian: libnvrtc12; or `pip install nvidia-cuda-nvrtc` and set \
                       TRIMTAB_NVRTC to its libnvrtc.so.13)";

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Text for a virtual architecture, with the source's lines in it.
    Ptx,
    /// Machine code of one architecture; the log then tells registers, shared memory and spills.
    Cubin,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// PTX text or a cubin, as was asked for.
    pub code: Vec<u8>,
    /// What the compiler said; of a cubin, with its registers and spills.
    pub log: String,
}

/// The compiler's version; the error says what to install.
pub fn version() -> Result<(i32, i32)> {
    present()?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: the library is there; it writes two integers.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    status.result().map_err(|e| Error::device("NVRTC", e.to_string(), INSTALL))?;
    Ok((major, minor))
}

/// Loads the library once. `cudarc` panics where a library is missing, so this is asked first.
fn present() -> Result<()> {
    static FOUND: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let find = || {
        if let Some(path) = std::env::var_os(NVRTC_PATH).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty()) {
            // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
            let library = unsafe { libloading::Library::new(&path) };
            // It stays loaded, so that the search by name below finds it.
            std::mem::forget(library.map_err(|e| format!("{NVRTC_PATH}={}: {e}", path.display()))?);
        }
        // SAFETY: as above.
        match unsafe { sys::is_culib_present() } {
            true => Ok(()),
            false => Err("no NVRTC library".to_string()),
        }
    };
    FOUND.get_or_init(find).clone().map_err(|found| Error::device("NVRTC", found, INSTALL))
}

/// What to compile to for a card of `arch`: its machine code, or, by a compiler older than the card, the text of the
/// newest architecture the compiler knows, which the driver finishes.
pub fn target(arch: u32) -> Result<(u32, Output)> {
    present()?;
    let mut count: c_int = 0;
    // SAFETY: the library is there; it writes one integer.
    let status = unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) };
    status.result().map_err(|e| Error::device("NVRTC", e.to_string(), INSTALL))?;
    let mut known = vec![0 as c_int; count.max(0) as usize];
    // SAFETY: it writes as many integers as it said.
    let status = unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) };
    status.result().map_err(|e| Error::device("NVRTC", e.to_string(), INSTALL))?;
    match known.iter().map(|&a| a as u32).filter(|&a| a <= arch).max() {
        Some(newest) if newest == arch => Ok((arch, Output::Cubin)),
        Some(newest) => Ok((newest, Output::Ptx)),
        None => Err(Error::device("NVRTC", format!("a compiler that does not know sm_{arch}"), INSTALL)),
    }
}

/// Compiles `kernels/<file>.cu` with `defines` for `sm_<arch>`.
pub fn compile(file: &str, defines: &[(&'static str, i64)], arch: u32, output: Output) -> Result<Compiled> {
    let name = format!("{file}.cu");
    let Some(text) = kernel(&name) else {
        return Err(Error::device("NVRTC", format!("no kernels/{name}"), "this is a bug in the op's lowering"));
    };
    source(text, &format!("kernels/{name}"), &options(defines, arch, output), output)
}

/// The options of a compilation; they are part of the cache's key.
pub fn options(defines: &[(&'static str, i64)], arch: u32, output: Output) -> Vec<String> {
    let mut options = vec!["--std=c++17".into(), "-default-device".into()];
    options.extend(match output {
        Output::Ptx => ["-lineinfo".into(), format!("--gpu-architecture=compute_{arch}")],
        Output::Cubin => ["--ptxas-options=-v".into(), format!("--gpu-architecture=sm_{arch}")],
    });
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// A program that is destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram` and destroyed only here.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Compiles a text that may include the files of `kernels/`.
pub fn source(text: &str, name: &str, options: &[String], output: Output) -> Result<Compiled> {
    present()?;
    let error = |found: String| Error::device("NVRTC", found, "this is a bug in the kernel or a too old NVRTC");
    let c = |s: &str| CString::new(s).map_err(|e| error(e.to_string()));
    let (text, c_name) = (c(text)?, c(name)?);
    let headers = KERNELS.iter().filter(|(name, _)| Path::new(name).extension().is_some_and(|e| e == "cuh"));
    // A header is included as "common/x.cuh" by kernels and as "x.cuh" by its neighbours.
    let mut names: Vec<CString> = Vec::new();
    let mut texts: Vec<CString> = Vec::new();
    for (name, text) in headers {
        for alias in [*name, name.trim_start_matches("common/")] {
            names.push(c(alias)?);
            texts.push(c(text)?);
        }
    }
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
    let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
    let mut raw: sys::nvrtcProgram = std::ptr::null_mut();
    // SAFETY: all strings end in a zero and outlive the program; the two lists have equal lengths.
    let status = unsafe {
        sys::nvrtcCreateProgram(
            &mut raw,
            text.as_ptr(),
            c_name.as_ptr(),
            names.len() as c_int,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    };
    status.result().map_err(|e| error(e.to_string()))?;
    let program = Program(raw);
    // SAFETY: the program was made above and lives.
    let status = unsafe { result::compile_program(program.0, options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map(|log| string(&log)).unwrap_or_default();
    if let Err(e) = status {
        return Err(error(format!("{name} {options:?}: {e}\n{log}")));
    }
    // SAFETY: as above, and it was compiled.
    let code = unsafe {
        match output {
            Output::Ptx => result::get_ptx(program.0).map(|ptx| string(&ptx).into_bytes()),
            Output::Cubin => cubin(program.0),
        }
    };
    Ok(Compiled { code: code.map_err(|e| error(format!("{name}: {e}")))?, log })
}

/// The machine code of a compiled program.
///
/// # Safety
/// `program` is alive and was compiled for a real architecture.
unsafe fn cubin(program: sys::nvrtcProgram) -> std::result::Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's contract; the size is asked for before the bytes.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut bytes = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()).result()?;
        Ok(bytes)
    }
}

/// Text up to its zero.
fn string(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}
