//! NVRTC, loaded from the path in `TRIMTAB_NVRTC`: CUDA C++ to the PTX that the tests interpret.

#![allow(dead_code)] // each test file uses its part

pub mod matrix;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, OnceLock};

use libloading::Library;

/// What the interpreter's PTX is compiled with.
const OPTIONS: [&str; 3] = ["-lineinfo", "-default-device", "--std=c++17"];

type Create =
    unsafe extern "C" fn(*mut *mut c_void, *const c_char, *const c_char, c_int, *const c_void, *const c_void) -> c_int;
type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut *mut c_void) -> c_int;

/// NVRTC compiles one program at a time here: tests run in threads.
static ONE: Mutex<()> = Mutex::new(());
/// Loaded once: loading takes longer than a compilation.
static NVRTC: OnceLock<Library> = OnceLock::new();

/// The path of NVRTC; `None`, after saying so, where the tests that need it are to be skipped.
///
/// # Panics
/// Where there is none and `TRIMTAB_REQUIRE_NVRTC` is 1.
pub fn nvrtc() -> Option<String> {
    let path = std::env::var("TRIMTAB_NVRTC").ok().filter(|p| !p.is_empty());
    if path.is_none() {
        assert!(
            std::env::var("TRIMTAB_REQUIRE_NVRTC").as_deref() != Ok("1"),
            "TRIMTAB_NVRTC is not set: give it the path of libnvrtc.so.13 (pip install nvidia-cuda-nvrtc==13.5.37)"
        );
        eprintln!("\n*** SKIPPED: TRIMTAB_NVRTC is not set, so no CUDA kernel was compiled or run. ***\n");
    }
    path
}

/// Compiles `source` to PTX, for compute_80 unless `options` say otherwise.
///
/// # Panics
/// With NVRTC's log where it fails.
pub fn ptx(library: &str, name: &str, source: &str, options: &[&str]) -> String {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: NVRTC's initialisers have no preconditions.
    let load = || unsafe { Library::new(library) }.unwrap_or_else(|e| panic!("NVRTC at {library}: {e}"));
    let library = NVRTC.get_or_init(load);
    // SAFETY: the types are those of nvrtc.h.
    let symbol = |name: &CStr| unsafe { *library.get::<*const ()>(name.to_bytes_with_nul()).unwrap() };
    // SAFETY: as above, for each function in turn.
    let (create, compile, destroy) = unsafe {
        (
            std::mem::transmute::<*const (), Create>(symbol(c"nvrtcCreateProgram")),
            std::mem::transmute::<*const (), Compile>(symbol(c"nvrtcCompileProgram")),
            std::mem::transmute::<*const (), Destroy>(symbol(c"nvrtcDestroyProgram")),
        )
    };
    let text = |program: *mut c_void, size: &CStr, get: &CStr| {
        // SAFETY: the types are those of nvrtc.h; the buffer has the size that NVRTC asks for.
        unsafe {
            let size = std::mem::transmute::<*const (), Size>(symbol(size));
            let get = std::mem::transmute::<*const (), Text>(symbol(get));
            let mut n = 0;
            assert_eq!(size(program, &raw mut n), 0);
            let mut bytes = vec![0u8; n.max(1)];
            assert_eq!(get(program, bytes.as_mut_ptr().cast()), 0);
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
        }
    };
    let (code, file) = (CString::new(source).unwrap(), CString::new(name).unwrap());
    let named = options.iter().any(|o| o.starts_with("-arch"));
    let headers = format!("-I{}/tests/cu", env!("CARGO_MANIFEST_DIR"));
    let arch: &[&str] = if named { &[] } else { &["-arch=compute_80"] };
    let options: Vec<CString> = arch
        .iter()
        .chain(&[headers.as_str()])
        .chain(&OPTIONS)
        .chain(options)
        .map(|o| CString::new(*o).unwrap())
        .collect();
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings outlive the calls; the program is destroyed once, after its texts are copied.
    unsafe {
        assert_eq!(create(&raw mut program, code.as_ptr(), file.as_ptr(), 0, std::ptr::null(), std::ptr::null()), 0);
        let status = compile(program, pointers.len() as c_int, pointers.as_ptr());
        assert!(status == 0, "{name}: {}", text(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog"));
        let out = text(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX");
        destroy(&raw mut program);
        out
    }
}

/// The file of `tests/cu` that is called so.
pub fn source(name: &str) -> String {
    let path = format!("{}/tests/cu/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).replace("\r\n", "\n")
}

/// The bytes of 32-bit floats.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// 32-bit floats from bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
