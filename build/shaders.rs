//! The table of shaders that the binary carries: every variant, preprocessed. `tests/shaders.rs` holds them to be valid.

use std::fmt::Write;
use std::path::Path;

use super::preprocess;

/// `&[(stem, symbols joined by a space, text), …]` as Rust source, ordered for binary search.
pub fn table(root: &Path) -> Result<String, String> {
    let mut stems: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|e| format!("{}: {e}", root.display()))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "wgsl")
            && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
        {
            stems.push(stem.into());
        }
    }
    stems.sort();
    let mut rows: Vec<(String, String, String)> = Vec::new();
    let mut errors = String::new();
    let mut seen = Vec::new();
    for stem in &stems {
        let file = format!("{stem}.wgsl");
        let source = std::fs::read_to_string(root.join(&file)).map_err(|e| format!("{file}: {e}"))?;
        for defines in preprocess::variants(&source) {
            let mut check = || {
                let text = preprocess::preprocess(root, &file, &defines, &mut seen)?;
                // What `// also:` asks for where it changes nothing is no variant.
                let asked =
                    |l: &str| l.strip_prefix("// variant:").is_some_and(|v| preprocess::sets(v).contains(&defines));
                // Comments stay here: they are half of the bytes.
                let code: Vec<&str> = text.text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
                let code = code.join("\n");
                if !source.lines().any(asked) && rows.iter().any(|row| row.0 == *stem && row.2 == code) {
                    return Ok(None);
                }
                Ok::<_, String>(Some(code))
            };
            match check() {
                Ok(Some(text)) => rows.push((stem.clone(), defines.join(" "), text)),
                Ok(None) => {}
                Err(e) => {
                    let _ = writeln!(errors, "{e}\n(variant {defines:?})");
                }
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // A changed directory does not tell of a changed file in it.
    seen.sort();
    seen.dedup();
    for path in &seen {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    rows.sort();
    if let Some(pair) = rows.windows(2).find(|w| (&w[0].0, &w[0].1) == (&w[1].0, &w[1].1)) {
        return Err(format!("shaders/{}.wgsl declares the variant {:?} twice", pair[0].0, pair[0].1));
    }
    let mut code = String::from("&[\n");
    for (stem, defines, text) in rows {
        let _ = writeln!(code, "    ({stem:?}, {defines:?}, {text:?}),");
    }
    code.push_str("]\n");
    Ok(code)
}
