//! PTX statements to decoded kernels: variables, registers, labels, calls.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::Module;
use crate::build::Builder;
use crate::lex::{Statement, Token, statements};
use crate::program::{Program, Variable};
use crate::types::Type;

/// A declaration of memory: `.shared .align 4 .b8 name[28] = {…}`.
#[derive(Clone, Debug, Default)]
pub struct Declaration {
    pub space: String,
    pub name: String,
    pub align: usize,
    pub bytes: usize,
    /// `name[]`: as long as the launch says.
    pub open: bool,
    pub data: Vec<u8>,
}

/// A function or kernel: its head, and its body's statements.
pub struct Function<'a> {
    pub name: String,
    pub entry: bool,
    pub returns: Vec<Declaration>,
    pub params: Vec<Declaration>,
    pub body: &'a [Statement],
}

fn word(token: Option<&Token>) -> Option<&str> {
    match token {
        Some(Token::Word(w)) => Some(w),
        _ => None,
    }
}

/// Reads a declaration; `None` where the tokens declare no memory.
pub fn declaration(tokens: &[Token]) -> Result<Option<Declaration>, String> {
    let spaces = [".shared", ".global", ".const", ".local", ".param"];
    let Some(space) = tokens.iter().find_map(|t| word(Some(t)).filter(|w| spaces.contains(w))) else {
        return Ok(None);
    };
    let mut found = Declaration { space: space[1..].to_owned(), align: 1, ..Declaration::default() };
    let (mut unit, mut lanes, mut i) = (1, 1, 0);
    while let Some(w) = word(tokens.get(i)) {
        match w {
            ".align" => {
                if let Some(Token::Number(n)) = tokens.get(i + 1) {
                    found.align = *n as usize;
                }
                i += 1;
            }
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            _ => match w.strip_prefix('.') {
                Some(suffix) => {
                    if let Some(t) = Type::of(suffix) {
                        unit = t.bytes();
                    }
                }
                None => w.clone_into(&mut found.name),
            },
        }
        i += 1;
    }
    let mut count = lanes;
    while tokens.get(i) == Some(&Token::Mark('[')) {
        match tokens.get(i + 1) {
            Some(Token::Number(n)) => {
                count *= *n as usize;
                i += 3;
            }
            _ => {
                found.open = true;
                count = 0;
                i += 2;
            }
        }
    }
    found.align = found.align.max(unit);
    found.bytes = unit * count;
    let mut negative = false;
    for token in tokens.get(i..).unwrap_or(&[]) {
        match token {
            Token::Number(n) => {
                let n = if negative { n.wrapping_neg() } else { *n };
                found.data.extend_from_slice(&n.to_le_bytes()[..unit.min(8)]);
                negative = false;
            }
            Token::Mark('-') => negative = true,
            Token::Mark(_) => {}
            other => return Err(format!("the initial value {other:?} of '{}'", found.name)),
        }
    }
    Ok(Some(found))
}

/// The declarations in a parenthesised list that begins at `open`, and the index after it.
fn list(tokens: &[Token], open: usize) -> Result<(Vec<Declaration>, usize), String> {
    let mut end = open;
    while end < tokens.len() && tokens[end] != Token::Mark(')') {
        end += 1;
    }
    let inner = tokens.get(open + 1..end).ok_or("a parameter list")?;
    let mut found = Vec::new();
    for part in inner.split(|t| *t == Token::Mark(',')).filter(|p| !p.is_empty()) {
        found.extend(declaration(part)?);
    }
    Ok((found, end + 1))
}

/// A function's head: `.visible .entry name(…)` or `.func (…) name(…)`.
fn head<'a>(tokens: &[Token], body: &'a [Statement]) -> Result<Function<'a>, String> {
    let at = tokens.iter().position(|t| matches!(t, Token::Word(w) if w == ".entry" || w == ".func"));
    let mut i = at.ok_or("a function's head")?;
    let entry = word(tokens.get(i)) == Some(".entry");
    i += 1;
    let (mut returns, mut params) = (Vec::new(), Vec::new());
    if tokens.get(i) == Some(&Token::Mark('(')) {
        (returns, i) = list(tokens, i)?;
    }
    let name = word(tokens.get(i)).ok_or("a function's name")?.to_owned();
    if tokens.get(i + 1) == Some(&Token::Mark('(')) {
        (params, _) = list(tokens, i + 1)?;
    }
    Ok(Function { name, entry, returns, params, body })
}

fn is_head(statement: &Statement) -> bool {
    statement.tokens.iter().any(|t| matches!(t, Token::Word(w) if w == ".entry" || w == ".func"))
}

/// The index after the brace that closes the one at `open`.
fn past_body(all: &[Statement], open: usize) -> usize {
    let mut depth = 0;
    for (i, statement) in all.iter().enumerate().skip(open) {
        match statement.tokens.first() {
            Some(Token::Mark('{')) => depth += 1,
            Some(Token::Mark('}')) => {
                depth -= 1;
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    all.len()
}

/// Names of functions that `body` calls.
fn calls(body: &[Statement]) -> Vec<&str> {
    let is_call = |t: &Token| matches!(t, Token::Word(w) if w == "call" || w.starts_with("call."));
    let of = |s: &'_ Statement| s.tokens.iter().any(is_call);
    body.iter().filter(|s| of(s)).flat_map(|s| s.tokens.iter().filter_map(|t| word(Some(t)))).collect()
}

/// The functions that `entry` reaches, in the text's order; a recursion is an error.
fn reachable<'f, 'a>(entry: &'f Function<'a>, all: &'f [Function<'a>]) -> Result<Vec<&'f Function<'a>>, String> {
    fn visit<'f, 'a>(
        f: &'f Function<'a>,
        all: &'f [Function<'a>],
        open: &mut Vec<String>,
        seen: &mut HashSet<String>,
    ) -> Result<(), String> {
        if open.contains(&f.name) {
            return Err(format!("the function '{}' calls itself", f.name));
        }
        open.push(f.name.clone());
        for name in calls(f.body) {
            if let Some(callee) = all.iter().find(|g| !g.entry && g.name == name) {
                visit(callee, all, open, seen)?;
            }
        }
        open.pop();
        seen.insert(f.name.clone());
        Ok(())
    }
    let mut seen = HashSet::new();
    visit(entry, all, &mut Vec::new(), &mut seen)?;
    Ok(all.iter().filter(|f| seen.contains(&f.name)).collect())
}

/// Parses and decodes a whole PTX text.
pub fn module(ptx: &str) -> Result<Module, String> {
    let all = statements(ptx)?;
    let mut files = HashMap::new();
    let mut variables = Vec::new();
    let mut shared = Vec::new();
    let mut functions = Vec::new();
    let mut i = 0;
    while i < all.len() {
        let statement = &all[i];
        let here = |e: String| format!("PTX line {}: {e}", statement.line);
        i += 1;
        if is_head(statement) {
            let open = all[i..].iter().position(|s| s.tokens.first() == Some(&Token::Mark('{')));
            let open = i + open.ok_or_else(|| here("a function without a body".into()))?;
            i = past_body(&all, open);
            functions.push(head(&statement.tokens, &all[open + 1..i - 1]).map_err(here)?);
            continue;
        }
        match statement.tokens.as_slice() {
            [Token::Word(w), Token::Number(n), Token::Text(name), ..] if w == ".file" => {
                files.insert(*n as u32, name.clone());
            }
            tokens => match declaration(tokens).map_err(here)? {
                Some(d) if d.space == "shared" => shared.push(d),
                Some(mut d) if d.space == "global" || d.space == "const" => {
                    d.data.resize(d.bytes, 0);
                    variables.push(Variable { name: d.name, bytes: d.data, constant: d.space == "const" });
                }
                _ => {}
            },
        }
    }
    let mut entries: BTreeMap<String, Program> = BTreeMap::new();
    for entry in functions.iter().filter(|f| f.entry) {
        let wanted = reachable(entry, &functions)?;
        let program = Builder::new(&entry.name, &variables, &shared).program(&wanted)?;
        entries.insert(entry.name.clone(), program);
    }
    Ok(Module { entries, variables, files, lines: ptx.lines().map(str::to_owned).collect() })
}
