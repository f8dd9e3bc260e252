//! Rules of this source tree that the compiler does not check. Each is a function from text to complaints, and each
//! is shown a text that breaks it.

use std::path::{Path, PathBuf};

#[path = "tidy/layers.rs"]
mod layers;
#[path = "../build/preprocess.rs"]
#[allow(dead_code)]
mod preprocess;

/// Longest source file, in lines.
const LONGEST: usize = 900;
/// How far above `unsafe` its reason may begin, comments and attributes not counted.
const NEAR: usize = 3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this extension: path from the root with forward slashes, and text.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let parts = path.strip_prefix(root()).unwrap().components();
                let name: Vec<String> = parts.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
                found.push((name.join("/"), std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {extension} files in {folder}");
    found
}

/// The crate's sources, and those of the PTX interpreter and the driver that test its CUDA code.
fn sources() -> Vec<(String, String)> {
    ["src", "tests/fakecuda/src", "tests/ptxsim/src"].iter().flat_map(|folder| files(folder, "rs")).collect()
}

/// Fails with every complaint that `rule` has about the sources.
fn holds_in_src(rule: fn(&str) -> Vec<String>) {
    let complaints: Vec<String> =
        sources().iter().flat_map(|(name, text)| rule(text).into_iter().map(move |c| format!("{name}: {c}"))).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// A source text without what comments and literals say: those become spaces, so that lines stay lines.
fn code(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(bytes[from..to.min(bytes.len())].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    };
    while i < bytes.len() {
        let start = i;
        let word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if at(i) == '/' && at(i + 1) == '/' {
            while i < bytes.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == 'r' && !word && (at(i + 1) == '"' || at(i + 1) == '#' && matches!(at(i + 2), '"' | '#')) {
            let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
            i += hashes + 2;
            while i < bytes.len() && !(at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#')) {
                i += 1;
            }
            i += hashes + 1;
        } else if at(i) == '"' {
            i += 1;
            while i < bytes.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += 2;
            while i < bytes.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(at(i));
            i += 1;
            continue;
        }
        blank(&mut out, start, i);
    }
    out
}

/// Lines of code that are compiled into the crate (not only into its tests), numbered from 1.
fn shipped(text: &str) -> Vec<(usize, String)> {
    let code = code(text);
    let mut kept = Vec::new();
    let (mut depth, mut skip): (i64, Option<i64>) = (0, None);
    let mut pending = false;
    for (n, line) in code.lines().enumerate() {
        let before = depth;
        depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
        if skip.is_none() && line.trim_start().starts_with("#[cfg(test)]") {
            pending = true;
        } else if pending && skip.is_none() && !line.trim_start().starts_with("#[") && !line.trim().is_empty() {
            // The item that the attribute is on: to its semicolon, or to the end of its block.
            if depth > before {
                skip = Some(before);
                pending = false;
            } else if line.trim_end().ends_with([';', '}', ',']) {
                pending = false;
            }
            continue;
        }
        match skip {
            Some(outer) if depth <= outer => skip = None,
            Some(_) => {}
            None if !pending => kept.push((n + 1, line.to_owned())),
            None => {}
        }
    }
    kept
}

/// Files that are a `#[cfg(test)] mod name;` of another.
fn is_test_module(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

fn too_long(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LONGEST { vec![format!("{lines} lines, more than {LONGEST}: split it by purpose")] } else { Vec::new() }
}

fn unexplained_file(text: &str) -> Vec<String> {
    let says = text.lines().next().is_some_and(|l| l.strip_prefix("//!").is_some_and(|l| l.trim().len() > 10));
    if says { Vec::new() } else { vec!["its first line does not say what it is (//! …)".into()] }
}

fn unexplained_unsafe(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let comment = |l: &str| l.starts_with("//");
    // The reason stands at the line's end, or in the comment that ends above it, or above the statement it is in.
    let explained = |n: usize| {
        let mut budget = NEAR;
        let mut i = n;
        while i > 0 {
            i -= 1;
            let line = lines[i].trim();
            if line.contains("// SAFETY") {
                return true;
            }
            if !comment(line) && !line.starts_with("#[") {
                // Another statement's end, or another unsafe that had the reason for itself.
                if budget == 0 || line.is_empty() || line.ends_with(';') || line.ends_with('}') {
                    return false;
                }
                budget -= 1;
            }
        }
        false
    };
    // A function's contract is its documentation's matter; that its body has blocks of its own, the compiler's.
    let is_unsafe = |line: &str| {
        let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let at = words.iter().position(|&w| w == "unsafe");
        at.is_some_and(|i| !matches!(words.get(i + 1), Some(&("fn" | "extern"))))
    };
    let code = code(text);
    let unsafes = code.lines().enumerate().filter(|(_, l)| is_unsafe(l));
    unsafes
        .filter(|(n, _)| !lines[*n].contains("// SAFETY") && !explained(*n))
        .map(|(n, _)| format!("line {}: unsafe without a SAFETY comment", n + 1))
        .collect()
}

fn panics(text: &str) -> Vec<String> {
    let banned = [".unwrap()", "todo!", "unimplemented!", "dbg!"];
    let found = |(n, line): &(usize, String)| {
        banned.iter().find(|b| line.contains(*b)).map(|b| format!("line {n}: {b} in code that ships"))
    };
    shipped(text).iter().filter_map(found).collect()
}

/// What the conditions of a shader ask for but no declared variant defines.
fn undeclared_symbols(text: &str) -> Vec<String> {
    if !text.lines().any(|l| l.starts_with("// variant:")) {
        return vec!["declares no `// variant:`".into()];
    }
    let declared: Vec<String> = preprocess::variants(text).into_iter().flatten().collect();
    let mut unknown = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let Some(condition) = line.trim().strip_prefix("#if ") else { continue };
        for symbol in condition.split("&&").map(|s| s.trim().trim_start_matches('!').trim()) {
            if !declared.iter().any(|d| d == symbol) {
                unknown.push(format!("line {}: no variant defines {symbol}", n + 1));
            }
        }
    }
    unknown
}

/// What is wrong about the shaders that family `stem` names in its `texts`, given the stems there are.
fn family_without_shader(stem: &str, texts: &[&str], shaders: &[&str]) -> Vec<String> {
    let own = |s: &&&str| **s == stem || s.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_'));
    if !shaders.iter().any(|s| own(&s)) {
        return vec![format!("shaders/{stem}.wgsl is missing")];
    }
    if !texts.iter().any(|t| t.contains("WgslDispatch")) {
        return vec!["launches nothing on a GPU".into()];
    }
    Vec::new()
}

/// Facts that a row must say, because `OpDef::COMPUTE` cannot say them for it.
const FACTS: [&str; 10] = ["name", "infer", "reference", "grad", "cost", "host", "wgsl", "cuda", "samples", "cases"];

/// Which rows of the op table in `text` leave out which of [`FACTS`].
fn incomplete_rows(text: &str) -> Vec<String> {
    let rows = text.split("\npub static ").skip(1).filter_map(|t| t.split_once(": OpDef = OpDef {\n"));
    let facts = |body: &str| -> Vec<String> {
        let row = body.split("\n};").next().unwrap_or(body);
        row.lines().filter_map(|l| Some(l.strip_prefix("    ")?.split([':', ',']).next()?.to_owned())).collect()
    };
    let lacks = |(name, body): (&str, &str)| {
        let facts = facts(body);
        let missing: Vec<&str> = FACTS.into_iter().filter(|f| !facts.iter().any(|g| g == f)).collect();
        (!missing.is_empty()).then(|| format!("{name} does not say its {}", missing.join(", ")))
    };
    rows.filter_map(lacks).collect()
}

#[test]
fn rows_say_all_that_their_base_cannot() {
    let rust = files("src/ops", "rs");
    let complaints: Vec<String> = rust
        .iter()
        .flat_map(|(name, text)| incomplete_rows(text).into_iter().map(move |c| format!("{name}: {c}")))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    let rows: usize = rust.iter().map(|(_, text)| text.matches(": OpDef = OpDef {\n").count()).sum();
    assert_eq!(rows, trimtab::ops::table().count(), "rows that are not written as `pub static NAME: OpDef = OpDef {{`");
    let row = |facts: &[&str]| {
        let lines: String = facts.iter().map(|f| format!("    {f}: x,\n")).collect();
        format!("//! A family.\n\npub static ROW: OpDef = OpDef {{\n{lines}    ..OpDef::COMPUTE\n}};\n")
    };
    assert_eq!(incomplete_rows(&row(&FACTS)), [""; 0]);
    assert_eq!(incomplete_rows(&row(&FACTS[..7])), ["ROW does not say its cuda, samples, cases"]);
}

#[test]
fn files_are_short() {
    holds_in_src(too_long);
    assert!(!too_long(&"x\n".repeat(LONGEST + 1)).is_empty());
}

#[test]
fn files_say_what_they_are() {
    holds_in_src(unexplained_file);
    for broken in ["use x;\n//! Late.\n", "//!\n", ""] {
        assert!(!unexplained_file(broken).is_empty(), "{broken:?}");
    }
}

#[test]
fn unsafe_has_a_reason() {
    holds_in_src(unexplained_unsafe);
    for broken in [
        "fn f() {\n    unsafe { g() }\n}\n",
        "// SAFETY: for the first only.\nunsafe impl Send for X {}\nunsafe impl Sync for X {}\n",
        "// SAFETY: of another statement.\nlet a = 1;\nunsafe { g() };\n",
        "let s = \"SAFETY\";\nunsafe { g() };\n",
    ] {
        assert_eq!(unexplained_unsafe(broken).len(), 1, "{broken:?}");
    }
    for fine in [
        "// SAFETY: the reason,\n// on two lines.\n#[allow(x)]\nunsafe { g() };\n",
        "// SAFETY: the reason.\nlet a = b\n    .map(|x| unsafe { g(x) });\n",
        "unsafe fn f() {}\n",
        "// an unsafe word\nlet s = \"unsafe\";\n",
    ] {
        assert_eq!(unexplained_unsafe(fine), [""; 0], "{fine:?}");
    }
}

#[test]
fn nothing_that_ships_is_unfinished_or_unwraps() {
    let rust = sources();
    let complaints: Vec<String> = rust
        .iter()
        .filter(|(name, _)| !is_test_module(name))
        .flat_map(|(name, text)| panics(text).into_iter().map(move |c| format!("{name}: {c}")))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    // What is called a test module is one.
    for (name, _) in rust.iter().filter(|(name, _)| is_test_module(name)) {
        let stem = Path::new(name).file_stem().unwrap().to_string_lossy().into_owned();
        let declared = rust.iter().any(|(_, text)| {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let names = [format!("mod {stem};"), format!("#[path = \"{stem}.rs\"]")];
            lines.windows(2).any(|w| w[0] == "#[cfg(test)]" && names.iter().any(|n| n == w[1]))
        });
        assert!(declared, "{name} is no #[cfg(test)] module");
    }
    for broken in [
        "fn f() { g().unwrap() }\n",
        "#[cfg(test)]\nmod tests;\nfn f() { todo!() }\n",
        "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap() }\n}\nfn h() { g().unwrap() }\n",
        "fn f() {\n    let s = \"#[cfg(test)]\"; dbg!(s);\n}\n",
    ] {
        assert_eq!(panics(broken).len(), 1, "{broken:?}");
    }
    for fine in [
        "#[cfg(test)]\nmod tests {\n    fn f() {\n        g().unwrap();\n    }\n}\n",
        "// todo! .unwrap()\nlet s = \"{ .unwrap()\";\nlet r = r#\"todo!\"#;\n",
    ] {
        assert_eq!(panics(fine), [""; 0], "{fine:?}");
    }
}

#[test]
fn shaders_declare_their_variants() {
    let complaints: Vec<String> = files("shaders", "wgsl")
        .iter()
        .filter(|(name, _)| !name.starts_with("shaders/common/"))
        .flat_map(|(name, text)| undeclared_symbols(text).into_iter().map(move |c| format!("{name}: {c}")))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    assert!(!undeclared_symbols("// One line.\n").is_empty());
    assert!(!undeclared_symbols("// variant:\n// variant: A\n#if A && !B\n#end\n").is_empty());
    assert!(undeclared_symbols("// variant:\n// variant: A B\n#if A && !B\n#end\n").is_empty());
}

#[test]
fn families_have_shaders_of_their_stem() {
    let (rust, wgsl) = (files("src/ops", "rs"), files("shaders", "wgsl"));
    let stems: Vec<&str> =
        wgsl.iter().filter_map(|(name, _)| name.strip_prefix("shaders/")?.strip_suffix(".wgsl")).collect();
    let family = |name: &str| {
        let rest = name.strip_prefix("src/ops/").unwrap();
        rest.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
    };
    let mut count = 0;
    for (name, _) in rust.iter().filter(|(_, text)| text.contains("pub static OPS: &[&OpDef]")) {
        let stem = family(name);
        let texts: Vec<&str> = rust.iter().filter(|(n, _)| family(n) == stem).map(|(_, t)| t.as_str()).collect();
        assert_eq!(family_without_shader(&stem, &texts, &stems), [""; 0], "{name}");
        count += 1;
    }
    assert_eq!(count, trimtab::ops::FAMILIES.len(), "families that are no file of their own");
    assert!(!family_without_shader("norm", &["WgslDispatch"], &["linear", "normal"]).is_empty());
    assert!(!family_without_shader("norm", &["nothing"], &["norm"]).is_empty());
}
