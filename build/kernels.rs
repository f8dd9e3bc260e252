//! The table of CUDA sources that the binary carries: they are compiled on the machine that runs them.

use std::fmt::Write;
use std::path::Path;

/// `&[(name below the folder, text), …]` as Rust source, ordered for binary search.
pub fn table(root: &Path) -> Result<String, String> {
    let mut rows: Vec<(String, String)> = Vec::new();
    for folder in ["", "common"] {
        let dir = root.join(folder);
        for entry in std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                println!("cargo:rerun-if-changed={}", path.display());
                rows.push((name, text));
            }
        }
    }
    rows.sort();
    let mut code = String::from("&[\n");
    for (name, text) in rows {
        let _ = writeln!(code, "    ({name:?}, {text:?}),");
    }
    code.push_str("]\n");
    Ok(code)
}
