//! With the feature `cubins`: machine code of the CUDA kernels for the common architectures, compiled by NVRTC when the
//! crate is built and carried in the binary, so that who runs it needs only the driver. `kernels/variants.txt` lists what.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::{Library, Symbol};

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// NVRTC, from `TRIMTAB_NVRTC` or wherever the system's loader finds it.
pub fn nvrtc() -> Option<Library> {
    let named = std::env::var("TRIMTAB_NVRTC").ok().filter(|path| !path.is_empty());
    let names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
    let open = |name: &str| unsafe { Library::new(name) }.ok();
    named.as_deref().and_then(open).or_else(|| names.into_iter().find_map(open))
}

/// `&[(file, architecture, macros, machine code), …]` as Rust source, ordered as `kernels/variants.txt` is.
pub fn table(library: &Library, root: &Path, out: &Path) -> Result<String, String> {
    let list = std::fs::read_to_string(root.join("variants.txt")).map_err(|e| format!("kernels/variants.txt: {e}"))?;
    let headers = headers(root)?;
    let mut code = String::from("&[\n");
    for line in list.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let (file, rest) = line.split_once(' ').ok_or_else(|| format!("kernels/variants.txt: {line}"))?;
        let (arch, macros) = rest.split_once(' ').unwrap_or((rest, ""));
        let cubin = compile(library, root, &headers, file, arch, macros).map_err(|e| format!("{line}: {e}"))?;
        let path = out.join(format!("{file}-{arch}-{}.cubin", macros.replace([' ', '='], "_")));
        std::fs::write(&path, cubin).map_err(|e| format!("{}: {e}", path.display()))?;
        code += &format!("    ({file:?}, {arch}, {macros:?}, include_bytes!({:?})),\n", path.display().to_string());
    }
    code.push_str("]\n");
    Ok(code)
}

/// Names and texts of what kernels include.
fn headers(root: &Path) -> Result<Vec<(CString, CString)>, String> {
    let mut headers = Vec::new();
    let dir = root.join("common");
    for entry in std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?.flatten() {
        let text = std::fs::read_to_string(entry.path()).map_err(|e| format!("{}: {e}", entry.path().display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        for alias in [format!("common/{name}"), name] {
            headers.push((c(&alias)?, c(&text)?));
        }
    }
    Ok(headers)
}

fn c(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|e| e.to_string())
}

fn compile(
    library: &Library,
    root: &Path,
    headers: &[(CString, CString)],
    file: &str,
    arch: &str,
    macros: &str,
) -> Result<Vec<u8>, String> {
    let path = root.join(format!("{file}.cu"));
    let text = c(&std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)?;
    let name = c(&format!("kernels/{file}.cu"))?;
    // What only this architecture has, none after it.
    let only = if macros.split_whitespace().any(|m| m == "WGMMA=1") { "a" } else { "" };
    let mut options =
        vec!["--std=c++17".to_string(), "-default-device".into(), format!("--gpu-architecture=sm_{arch}{only}")];
    options.extend(macros.split_whitespace().map(|m| format!("-D{m}")));
    let options = options.iter().map(|o| c(o)).collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
    let texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
    // SAFETY: the signatures are NVRTC's (nvrtc.h); strings end in a zero and outlive the program; the sizes that the
    // library names are allocated before it writes; the program is destroyed once.
    unsafe {
        let symbol = |e: libloading::Error| e.to_string();
        let create: Symbol<Create> = library.get(b"nvrtcCreateProgram\0").map_err(symbol)?;
        let run: Symbol<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int> =
            library.get(b"nvrtcCompileProgram\0").map_err(symbol)?;
        let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> =
            library.get(b"nvrtcDestroyProgram\0").map_err(symbol)?;
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let fetch = |program: Program, size: &[u8], get: &[u8]| -> Result<Vec<u8>, String> {
            let (size, get): (Symbol<Size>, Symbol<Get>) =
                (library.get(size).map_err(symbol)?, library.get(get).map_err(symbol)?);
            let mut bytes = 0;
            size(program, &mut bytes);
            let mut buffer = vec![0u8; bytes];
            get(program, buffer.as_mut_ptr().cast());
            Ok(buffer)
        };
        let mut program: Program = std::ptr::null_mut();
        let count = headers.len() as c_int;
        let status = create(&mut program, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr());
        if status != 0 {
            return Err(format!("NVRTC error {status}"));
        }
        let result = match run(program, pointers.len() as c_int, pointers.as_ptr()) {
            0 => fetch(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0"),
            _ => {
                let log = fetch(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?;
                Err(String::from_utf8_lossy(&log).into_owned())
            }
        };
        destroy(&mut program);
        result
    }
}
