//! NVRTC: CUDA C++ to PTX or to a card's machine code. No driver, no card and no CUDA headers are needed.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use super::kernels::{KERNELS, kernel};
use super::nvrtc::{Nvrtc, Program, Status};
use crate::error::{Error, Result};
use crate::graph::op::WGMMA;

/// Names the NVRTC library to use, before any on the loader's path: a path to `libnvrtc.so.13` or the like.
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
    let nvrtc = library()?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: it writes two integers.
    nvrtc.ok(unsafe { (nvrtc.version)(&mut major, &mut minor) }).map_err(missing)?;
    Ok((major, minor))
}

fn missing(found: String) -> Error {
    Error::device("NVRTC", found, INSTALL)
}

fn library() -> Result<&'static Nvrtc> {
    Nvrtc::get().map_err(missing)
}

/// What to compile to for a card of `arch`: its machine code, or, by a compiler older than the card, the text of the
/// newest architecture the compiler knows, which the driver finishes.
pub fn target(arch: u32) -> Result<(u32, Output)> {
    let nvrtc = library()?;
    let mut count: c_int = 0;
    // SAFETY: it writes one integer.
    nvrtc.ok(unsafe { (nvrtc.archs_count)(&mut count) }).map_err(missing)?;
    let mut known = vec![0 as c_int; count.max(0) as usize];
    // SAFETY: it writes as many integers as it said.
    nvrtc.ok(unsafe { (nvrtc.archs)(known.as_mut_ptr()) }).map_err(missing)?;
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
    // What only this architecture has, none after it.
    let only = if defines.contains(&WGMMA) { "a" } else { "" };
    options.extend(match output {
        Output::Ptx => ["-lineinfo".into(), format!("--gpu-architecture=compute_{arch}{only}")],
        Output::Cubin => ["--ptxas-options=-v".into(), format!("--gpu-architecture=sm_{arch}{only}")],
    });
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// A program that is destroyed when dropped.
struct Compiling {
    nvrtc: &'static Nvrtc,
    program: Program,
}

impl Compiling {
    /// What the function `read` has to say of the program, whose length in bytes `size` tells.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        read: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program lives; it writes one integer.
        self.nvrtc.ok(unsafe { size(self.program, &mut bytes) })?;
        let mut text = vec![0u8; bytes];
        // SAFETY: as above; it writes as many bytes as it said.
        self.nvrtc.ok(unsafe { read(self.program, text.as_mut_ptr().cast()) })?;
        Ok(text)
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        // SAFETY: made by `create` and destroyed only here.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

/// Compiles a text that may include the files of `kernels/`.
pub fn source(text: &str, name: &str, options: &[String], output: Output) -> Result<Compiled> {
    let nvrtc = library()?;
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
    let mut program: Program = std::ptr::null_mut();
    // SAFETY: all strings end in a zero and outlive the program; the two lists have equal lengths.
    let status = unsafe {
        (nvrtc.create)(
            &mut program,
            text.as_ptr(),
            c_name.as_ptr(),
            names.len() as c_int,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    };
    nvrtc.ok(status).map_err(error)?;
    let made = Compiling { nvrtc, program };
    let c_options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>>>()?;
    // SAFETY: the program lives, and so do the options.
    let status = unsafe { (nvrtc.compile)(program, c_options.len() as c_int, pointers(&c_options).as_ptr()) };
    let log = made.read(nvrtc.log_size, nvrtc.log).map(string).unwrap_or_default();
    if let Err(e) = nvrtc.ok(status) {
        return Err(error(format!("{name} {options:?}: {e}\n{log}")));
    }
    let code = match output {
        Output::Ptx => made.read(nvrtc.ptx_size, nvrtc.ptx).map(|ptx| string(ptx).into_bytes()),
        Output::Cubin => made.read(nvrtc.cubin_size, nvrtc.cubin),
    };
    Ok(Compiled { code: code.map_err(|e| error(format!("{name}: {e}")))?, log })
}

/// Text up to its zero.
fn string(mut bytes: Vec<u8>) -> String {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    String::from_utf8_lossy(&bytes).into_owned()
}
