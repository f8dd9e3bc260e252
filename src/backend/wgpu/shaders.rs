//! The shader texts that `build.rs` preprocessed and validated.

/// (file stem, symbols joined by a space, text), ordered.
pub static SHADERS: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// The text of one variant.
pub fn shader(stem: &str, defines: &[&str]) -> Option<&'static str> {
    let defines = defines.join(" ");
    let found = SHADERS.binary_search_by(|row| (row.0, row.1).cmp(&(stem, defines.as_str())));
    found.ok().map(|i| SHADERS[i].2)
}
