//! The CUDA sources that `build.rs` put into the binary.

/// (name below `kernels/`, text), ordered.
pub static KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The text of `kernels/<name>`.
pub fn kernel(name: &str) -> Option<&'static str> {
    KERNELS.binary_search_by(|row| row.0.cmp(name)).ok().map(|i| KERNELS[i].1)
}

/// Machine code that the feature `cubins` put into the binary: (file, architecture, macros as typed, code).
static CUBINS: &[(&str, u32, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// Whether there is any for `arch`.
pub fn embedded(arch: u32) -> bool {
    CUBINS.iter().any(|row| row.1 == arch)
}

/// The machine code of `kernels/<file>.cu` with `defines` for `arch`, if it is in the binary.
pub fn cubin(file: &str, defines: &[(&'static str, i64)], arch: u32) -> Option<&'static [u8]> {
    let macros = macros(defines);
    CUBINS.iter().find(|row| row.0 == file && row.1 == arch && row.2 == macros).map(|row| row.3)
}

/// Macros as `kernels/variants.txt` writes them.
pub fn macros(defines: &[(&'static str, i64)]) -> String {
    defines.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}
