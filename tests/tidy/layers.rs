//! The floors of docs/architecture.md: an import may only point down, or sideways where no circle comes of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, is_test_module, root, shipped};

/// Imports that break the rule and are known, as (room, room it imports from). Each must still be there.
const KNOWN: &[(&str, &str)] = &[];

/// Crate roots: they declare the rooms.
const ROOTS: [&str; 2] = ["src/lib.rs", "src/main.rs"];

/// Room of each name that `src/lib.rs` re-exports.
type Reexports = BTreeMap<String, String>;

/// An import: the room it is in, the room it names, and the place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: String,
    to: String,
    place: String,
}

/// The floor of each room, by the table under `## Floors`.
fn floors(text: &str) -> BTreeMap<String, usize> {
    let section = text.lines().skip_while(|l| *l != "## Floors").skip(1).take_while(|l| !l.starts_with("## "));
    let mut floors = BTreeMap::new();
    for line in section {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [floor, rooms] = cells[..] else { continue };
        let Some(floor) = floor.split(' ').next().and_then(|n| n.parse().ok()) else { continue };
        for room in rooms.split('`').skip(1).step_by(2) {
            let twice = floors.insert(room.trim_end_matches('/').to_owned(), floor);
            assert!(twice.is_none(), "docs/architecture.md has {room} on two floors");
        }
    }
    floors
}

/// The room that a source file is in, and how many modules below the crate's root it is.
fn room(name: &str) -> (String, usize) {
    let path = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let parts: Vec<&str> = path.split('/').collect();
    (parts[0].to_owned(), parts.len())
}

fn identifier(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// First names of the paths that begin at `text`: one, or those of a group in braces. A `*` is a name too.
fn heads(text: &str) -> Vec<&str> {
    let text = text.trim_start();
    let first = |text: &'_ str| if text.starts_with('*') { 1 } else { identifier(text).len() };
    let Some(group) = text.strip_prefix('{') else { return vec![&text[..first(text)]] };
    let (mut depth, mut names, mut next) = (1, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => next = true,
            c if next && !c.is_whitespace() => {
                let rest = &group[at..];
                names.push(&rest[..first(rest)]);
                next = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Paths from the crate's root: after `crate::`, after `trimtab::` (the binary's name for the library), and after
/// `depth` or more `super::`. Gives the offset of each and the names that follow.
fn paths(code: &str, depth: usize) -> Vec<(usize, Vec<&str>)> {
    let mut found = Vec::new();
    let part_of_a_word = |at: usize| code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    for root in ["crate::", "trimtab::"] {
        for (at, _) in code.match_indices(root).filter(|&(at, _)| !part_of_a_word(at)) {
            found.push((at, heads(&code[at + root.len()..])));
        }
    }
    for (at, _) in code.match_indices("super::").filter(|&(at, _)| !part_of_a_word(at)) {
        let rest = &code[at..];
        let above = rest.trim_start_matches("super::");
        if (rest.len() - above.len()) / "super::".len() >= depth {
            found.push((at, heads(above)));
        }
    }
    found
}

/// The imports of a source file.
fn imports(name: &str, text: &str, reexports: &Reexports, rooms: &BTreeSet<String>) -> Vec<Import> {
    let (from, depth) = room(name);
    let lines = shipped(text);
    let code: String = lines.iter().flat_map(|(_, line)| [line.as_str(), "\n"]).collect();
    let mut found = Vec::new();
    for (at, names) in paths(&code, depth) {
        let line = lines[code[..at].matches('\n').count()].0;
        let above = code[at..].starts_with("super::");
        for name_there in names {
            let to = reexports.get(name_there).map_or(name_there, String::as_str);
            // From a module within a file, `super` may reach an item of the file's own.
            if to != from && (!above || rooms.contains(to)) {
                found.push(Import { from: from.clone(), to: to.to_owned(), place: format!("{name}:{line}") });
            }
        }
    }
    found
}

/// The names that the library's root re-exports.
fn reexports(root: &str) -> Reexports {
    let mut names = Reexports::new();
    let code: String = shipped(root).into_iter().map(|(_, line)| line + "\n").collect();
    for path in code.split("pub use ").skip(1) {
        let Some((room, rest)) = path.split_once("::") else { continue };
        names.extend(heads(rest).into_iter().map(|name| (name.to_owned(), room.trim().to_owned())));
    }
    names
}

/// Rooms that are in the sources but not in the table, and the reverse.
fn unplaced(rooms: &BTreeSet<String>, floors: &BTreeMap<String, usize>) -> Vec<String> {
    let missing = rooms.iter().filter(|r| !floors.contains_key(*r));
    let gone = floors.keys().filter(|r| !rooms.contains(*r));
    missing
        .map(|r| format!("src/{r} is on no floor of docs/architecture.md"))
        .chain(gone.map(|r| format!("docs/architecture.md has a room {r} that src/ has not")))
        .collect()
}

/// The rooms of one floor that cannot be put in an order in which each imports only from those before it.
fn circle(edges: &BTreeSet<(&str, &str)>) -> BTreeSet<String> {
    let mut left = edges.clone();
    loop {
        // A room that nobody imports from, or that imports from nobody, is in no circle.
        let (from, to): (BTreeSet<&str>, BTreeSet<&str>) = left.iter().copied().unzip();
        let fewer: BTreeSet<_> = left.iter().copied().filter(|(a, b)| to.contains(a) && from.contains(b)).collect();
        if fewer.len() == left.len() {
            return left.iter().flat_map(|(a, b)| [a.to_string(), b.to_string()]).collect();
        }
        left = fewer;
    }
}

/// Imports that point up, that name no room, or that close a circle; as (import, complaint).
fn broken(imports: &[Import], floors: &BTreeMap<String, usize>) -> Vec<(Import, String)> {
    let mut found = Vec::new();
    let mut level: BTreeMap<usize, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for import in imports {
        let Import { from, to, place } = import;
        match (floors.get(from), floors.get(to)) {
            // `unplaced` has it.
            (None, _) => {}
            (_, None) => found.push((import.clone(), format!("{place}: {from} names {to}, which is no room"))),
            (Some(a), Some(b)) if a < b => {
                found.push((import.clone(), format!("{place}: {from} (floor {a}) imports from {to} (floor {b})")));
            }
            (Some(a), Some(b)) if a == b => {
                level.entry(*a).or_default().insert((from, to));
            }
            _ => {}
        }
    }
    for (floor, edges) in level {
        let circle = circle(&edges);
        for import in imports.iter().filter(|i| circle.contains(&i.from) && circle.contains(&i.to)) {
            let Import { from, to, place } = import;
            found.push((import.clone(), format!("{place}: {from} imports from {to} in a circle on floor {floor}")));
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let floors = floors(&std::fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    assert!(floors.len() > 10, "the table of floors is not read: {floors:?}");
    let sources: Vec<_> = files("src", "rs").into_iter().filter(|(name, _)| !ROOTS.contains(&name.as_str())).collect();
    let rooms: BTreeSet<String> = sources.iter().map(|(name, _)| room(name).0).collect();
    let reexports = reexports(&std::fs::read_to_string(root().join(ROOTS[0])).unwrap());
    assert_eq!(reexports.get("Result").map(String::as_str), Some("error"));
    let imports: Vec<Import> = sources
        .iter()
        .filter(|(name, _)| !is_test_module(name))
        .flat_map(|(name, text)| imports(name, text, &reexports, &rooms))
        .collect();
    assert!(imports.len() > 100, "only {} imports are seen", imports.len());
    let broken = broken(&imports, &floors);
    let known = |i: &Import| KNOWN.contains(&(i.from.as_str(), i.to.as_str()));
    let mut complaints = unplaced(&rooms, &floors);
    complaints.extend(broken.iter().filter(|(i, _)| !known(i)).map(|(_, c)| c.clone()));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    for (from, to) in KNOWN {
        let there = broken.iter().any(|(i, _)| (i.from.as_str(), i.to.as_str()) == (from, to));
        assert!(there, "{from} breaks no rule by {to} any more: take it out of KNOWN");
    }
}

mod controls {
    use super::*;

    const TABLE: &str = "## Other\n| 9 x | `a` |\n## Floors\n\n| floor | rooms |\n|---|---|\n\
        | 1 tables | `ops/`, `cpu/` (parts), `backend` |\n| 0 ground | `graph/`, `error` |\n## Next\n| 2 y | `b` |\n";

    /// Complaints about one file of these contents.
    fn about(name: &str, text: &str) -> Vec<String> {
        let floors = floors(TABLE);
        let rooms = floors.keys().cloned().collect();
        let reexports = reexports("//! x\npub mod error;\npub use error::{Error, Result};\n");
        broken(&imports(name, text, &reexports, &rooms), &floors).into_iter().map(|(_, c)| c).collect()
    }

    #[test]
    fn the_table_is_read() {
        let found: Vec<_> = floors(TABLE).into_iter().collect();
        let expected = [("backend", 1), ("cpu", 1), ("error", 0), ("graph", 0), ("ops", 1)];
        assert_eq!(found, expected.map(|(room, floor)| (room.to_owned(), floor)));
    }

    #[test]
    fn imports_that_point_up_are_seen() {
        for text in [
            "use crate::ops::OpDef;\n",
            "pub use crate::ops::*;\n",
            "pub(crate) use crate::{\n    error::Error,\n    ops::{add, scale},\n};\n",
            "use crate::{error::{Error, Result}, ops};\n",
            "fn f() -> crate::ops::Row {}\n",
            "macro_rules! m { () => { $crate::ops::f() } }\n",
            "use super::super::ops::OpDef;\n",
            "#[cfg(test)]\nmod tests;\nuse crate::ops;\n",
        ] {
            let found = about("src/graph/op.rs", text);
            assert!(found.len() == 1 && found[0].contains("(floor 1)"), "{text:?}: {found:?}");
        }
        assert_eq!(about("src/graph/op.rs", "\n\nuse crate::ops;\n")[0].split(": ").next(), Some("src/graph/op.rs:3"));
        assert_eq!(about("src/error.rs", "use super::graph::Graph;\nuse super::ops;\n").len(), 1);
        assert_eq!(about("src/graph/mod.rs", "use super::ops::OpDef;\n").len(), 1);
        assert_eq!(about("src/cpu/mod.rs", "use crate::away::Away;\nuse crate::*;\n").len(), 2);
        for fine in [
            "use crate::graph::Val;\nuse crate::error::Error;\nuse crate::{Error, Result};\nuse crate::backend::Caps;\n",
            "use super::graph::Graph;\nuse super::super::graph::Graph;\nuse self::ops::x;\nuse crate::cpu::ops;\n",
            "#[cfg(test)]\nmod tests {\n    use crate::cli::x;\n}\n",
            "// crate::cli\n/// [`crate::cli::x`]\nconst X: &str = \"crate::cli\";\npub(crate) fn f(subcrate::cli: x) {}\n",
        ] {
            assert_eq!(about("src/cpu/gemm.rs", fine), [""; 0], "{fine:?}");
        }
    }

    #[test]
    fn circles_are_seen_and_chains_are_not() {
        let floors = floors(TABLE);
        let import = |(from, to): (&str, &str)| Import { from: from.into(), to: to.into(), place: "here".into() };
        let seen =
            |pairs: &[(&str, &str)]| broken(&pairs.iter().copied().map(import).collect::<Vec<_>>(), &floors).len();
        assert_eq!(seen(&[("ops", "cpu"), ("backend", "cpu"), ("ops", "backend"), ("cpu", "graph")]), 0);
        assert_eq!(seen(&[("ops", "cpu"), ("cpu", "ops"), ("backend", "cpu")]), 2);
        assert_eq!(seen(&[("ops", "cpu"), ("cpu", "backend"), ("backend", "ops"), ("cpu", "error")]), 3);
    }

    #[test]
    fn rooms_must_be_in_the_table_and_the_table_in_the_tree() {
        let set = |rooms: &[&str]| rooms.iter().map(|r| r.to_string()).collect::<BTreeSet<_>>();
        let floors = floors(TABLE);
        assert_eq!(unplaced(&set(&["ops", "cpu", "backend", "graph", "error"]), &floors), [""; 0]);
        let found = unplaced(&set(&["ops", "cpu", "backend", "graph", "attic"]), &floors);
        assert!(found.len() == 2 && found[0].contains("attic") && found[1].contains("error"), "{found:?}");
        assert_eq!(["src/nn.rs", "src/ops/mod.rs", "src/ops/loss/cuda.rs"].map(|n| room(n).1), [1, 1, 3]);
    }
}
