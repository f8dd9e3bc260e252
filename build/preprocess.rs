//! The shader preprocessor: `#include "path"` (each file at most once), `#if A && !B`, `#else`, `#end`, and the
//! `// variant: A B` lines that declare which sets of symbols a shader is compiled with. In one, `A|B` means either,
//! `[A]` for A or nothing, and `A+B` for both together: `A|B+C [D]` declares four sets. A line `// also: C` means
//! each of those above it with C after it once more: for devices that can do more, and doing the same. `@binding(next)`
//! is numbered in the order of the lines that stay, so that a variant without some operand has no gap; `enable` lines
//! move to the top, where WGSL wants them, so that an included file can have them.
//!
//! Every output line remembers the file and line it came from, so that an error of the WGSL compiler is reported
//! where it was written.

use std::path::{Path, PathBuf};

/// A shader text and, for each of its lines, where it came from.
pub struct Text {
    pub text: String,
    pub origin: Vec<(PathBuf, usize)>,
}

/// The sets of symbols that `source` declares, in its order. A shader that declares none has the one without symbols.
pub fn variants(source: &str) -> Vec<Vec<String>> {
    let (mut plain, mut richer) = (Vec::new(), Vec::new());
    for line in source.lines() {
        if let Some(variant) = line.strip_prefix("// variant:") {
            plain.extend(sets(variant));
        } else if let Some(more) = line.strip_prefix("// also:") {
            let more: Vec<String> = more.split_whitespace().map(String::from).collect();
            richer.extend(plain.iter().map(|variant: &Vec<String>| [variant.as_slice(), &more].concat()));
        }
    }
    if plain.is_empty() {
        plain.push(Vec::new());
    }
    plain.extend(richer);
    plain
}

/// The sets of symbols that a line `// variant:` declares.
pub fn sets(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    for word in line.split_whitespace() {
        let inner = word.strip_prefix('[').and_then(|w| w.strip_suffix(']'));
        let mut ways: Vec<Vec<String>> = inner.map(|_| Vec::new()).into_iter().collect();
        ways.extend(inner.unwrap_or(word).split('|').map(|way| way.split('+').map(String::from).collect()));
        all = all.iter().flat_map(|set: &Vec<String>| ways.iter().map(|way| [set.as_slice(), way].concat())).collect();
    }
    all
}

/// Preprocesses `root/file`. `seen` collects every file read.
pub fn preprocess(root: &Path, file: &str, defines: &[String], seen: &mut Vec<PathBuf>) -> Result<Text, String> {
    let mut out = Text { text: String::new(), origin: Vec::new() };
    let mut included = Vec::new();
    expand(root, file, defines, &mut included, &mut out)?;
    seen.extend(included);
    let lines = out.text.lines().zip(&out.origin);
    let (first, rest): (Vec<_>, Vec<_>) = lines.partition(|(line, _)| line.starts_with("enable "));
    if !first.is_empty() {
        let (lines, origin): (Vec<&str>, Vec<_>) = first.into_iter().chain(rest).map(|(l, o)| (l, o.clone())).unzip();
        out = Text { text: lines.join("\n") + "\n", origin };
    }
    let mut parts = out.text.split("@binding(next)");
    let mut numbered = String::from(parts.next().unwrap_or_default());
    for (i, part) in parts.enumerate() {
        numbered.push_str(&format!("@binding({i}){part}"));
    }
    out.text = numbered;
    Ok(out)
}

fn expand(
    root: &Path,
    file: &str,
    defines: &[String],
    included: &mut Vec<PathBuf>,
    out: &mut Text,
) -> Result<(), String> {
    let path = root.join(file);
    if included.contains(&path) {
        return Ok(());
    }
    included.push(path.clone());
    let source = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    // One entry for each open #if: whether its current branch is taken, and whether an #else was seen.
    let mut open: Vec<(bool, bool)> = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let fail = |what: &str| format!("{}:{}: {what}", path.display(), number + 1);
        let trimmed = line.trim();
        let live = open.iter().all(|&(taken, _)| taken);
        if let Some(condition) = trimmed.strip_prefix("#if ") {
            open.push((holds(condition, defines).map_err(|e| fail(&e))?, false));
        } else if trimmed == "#else" {
            match open.last_mut() {
                Some((taken, seen @ false)) => (*taken, *seen) = (!*taken, true),
                _ => return Err(fail("#else without #if")),
            }
        } else if trimmed == "#end" {
            open.pop().ok_or_else(|| fail("#end without #if"))?;
        } else if let Some(rest) = trimmed.strip_prefix("#include ") {
            if live {
                let name = rest.trim().trim_matches('"');
                expand(root, name, defines, included, out).map_err(|e| format!("{}\n{e}", fail("included here")))?;
            }
        } else if trimmed.starts_with('#') {
            return Err(fail("not a directive: #include, #if, #else and #end are"));
        } else if live {
            out.text.push_str(line);
            out.text.push('\n');
            out.origin.push((path.clone(), number + 1));
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("{}: an #if is not closed", path.display())) }
}

/// `A && !B && C`.
fn holds(condition: &str, defines: &[String]) -> Result<bool, String> {
    let mut all = true;
    for term in condition.split("&&").map(str::trim) {
        let (name, wanted) = match term.strip_prefix('!') {
            Some(rest) => (rest.trim(), false),
            None => (term, true),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("#if takes names joined by &&, with ! for not; found {condition:?}"));
        }
        all &= defines.iter().any(|d| d == name) == wanted;
    }
    Ok(all)
}
