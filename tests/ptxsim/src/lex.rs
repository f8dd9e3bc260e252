//! PTX text to statements: tokens up to a semicolon (or a line's end, for the line directives), labels, braces.

/// A word, a number, a string, or one punctuation mark.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Names, opcodes with their suffixes, registers, directives: `ld.global.f32`, `%r1`, `.reg`, `$L__BB0_1`.
    Word(String),
    /// An integer, or the bits of a `0f` or `0d` float.
    Number(u64),
    /// What stands between quotes.
    Text(String),
    /// `, ; : { } [ ] ( ) < > @ ! | + - =`
    Mark(char),
}

/// One statement: its tokens without the closing semicolon, and the line it begins on, from 1.
#[derive(Clone, Debug)]
pub struct Statement {
    pub line: u32,
    pub tokens: Vec<Token>,
}

/// Directives that end with their line.
const LINE_DIRECTIVES: [&str; 10] = [
    ".version",
    ".target",
    ".address_size",
    ".loc",
    ".file",
    ".maxntid",
    ".reqntid",
    ".minnctapersm",
    ".maxnreg",
    ".noreturn",
];

/// All tokens with their lines.
fn tokens(text: &str) -> Result<Vec<(u32, Token)>, String> {
    let bytes = text.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.' | b'%');
    let mut found = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < bytes.len() {
        let start = i;
        match bytes[i] {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b if b.is_ascii_whitespace() => i += 1,
            b'/' if at(i + 1) == b'/' => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if at(i + 1) == b'*' => {
                while i < bytes.len() && !(bytes[i] == b'*' && at(i + 1) == b'/') {
                    line += u32::from(bytes[i] == b'\n');
                    i += 1;
                }
                i += 2;
            }
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += 1;
                }
                found.push((line, Token::Text(text[start + 1..i].to_owned())));
                i += 1;
            }
            b if b.is_ascii_digit() => {
                while word(at(i)) {
                    i += 1;
                }
                let digits = &text[start..i];
                // A decimal float means nothing without its instruction's type; NVRTC writes bits. Versions are words.
                let token = match number(digits) {
                    Some(value) => Token::Number(value),
                    None if digits.contains('.') => Token::Word(digits.to_owned()),
                    None => return Err(format!("line {line}: the number '{digits}'")),
                };
                found.push((line, token));
            }
            b if word(b) => {
                while word(at(i)) || (at(i) == b':' && at(i + 1) == b':') {
                    i += if at(i) == b':' { 2 } else { 1 };
                }
                found.push((line, Token::Word(text[start..i].to_owned())));
            }
            b if b.is_ascii_punctuation() => {
                found.push((line, Token::Mark(b as char)));
                i += 1;
            }
            b => return Err(format!("line {line}: byte {b:#04x} in PTX")),
        }
    }
    Ok(found)
}

/// `12`, `12U`, `0x1F`, `0f3F800000`, `0d3FF0000000000000`.
fn number(digits: &str) -> Option<u64> {
    let digits = digits.trim_end_matches('U');
    match digits.get(..2) {
        Some("0x" | "0X" | "0f" | "0F" | "0d" | "0D") => u64::from_str_radix(&digits[2..], 16).ok(),
        _ => digits.parse().ok(),
    }
}

/// The statements of a PTX text. `{`, `}` and labels (`name :`) stand alone; braces inside a statement stay in it.
pub fn statements(text: &str) -> Result<Vec<Statement>, String> {
    let all = tokens(text)?;
    let mut found: Vec<Statement> = Vec::new();
    let mut i = 0;
    while i < all.len() {
        let (kept, length) = extent(&all[i..]);
        if kept > 0 {
            let tokens = all[i..i + kept].iter().map(|(_, t)| t.clone()).collect();
            found.push(Statement { line: all[i].0, tokens });
        }
        i += length;
    }
    Ok(found)
}

/// Of the statement that begins here: how many of its tokens count, and how many there are.
fn extent(rest: &[(u32, Token)]) -> (usize, usize) {
    let (line, first) = &rest[0];
    let until = |stop: &dyn Fn(&(u32, Token)) -> bool| rest.iter().position(stop).unwrap_or(rest.len());
    let is_mark = |t: &Token, marks: &str| matches!(t, Token::Mark(m) if marks.contains(*m));
    let is_line = |t: &Token| matches!(t, Token::Word(w) if LINE_DIRECTIVES.contains(&w.as_str()));
    match first {
        Token::Mark('{' | '}') => (1, 1),
        Token::Mark(';') => (0, 1),
        Token::Word(_) if matches!(rest.get(1), Some((_, Token::Mark(':')))) => (2, 2),
        // Debug information: `.section name { … }`.
        Token::Word(w) if w == ".section" => (0, rest.len().min(until(&|(_, t)| is_mark(t, "}")) + 1)),
        first if is_line(first) => {
            let n = until(&|(l, _)| l != line);
            (n, n)
        }
        Token::Word(w) if is_function(rest, w) => {
            let n = until(&|(_, t)| is_mark(t, ";{") || is_line(t));
            // A forward declaration says nothing that the definition does not.
            if rest.get(n).is_some_and(|(_, t)| is_mark(t, ";")) { (0, n + 1) } else { (n, n) }
        }
        _ => {
            let n = until(&|(_, t)| is_mark(t, ";"));
            (n, rest.len().min(n + 1))
        }
    }
}

/// Whether a statement that begins here is a function's head, whose body's brace ends it.
fn is_function(rest: &[(u32, Token)], first: &str) -> bool {
    first.starts_with('.')
        && rest.iter().take(3).any(|(_, t)| matches!(t, Token::Word(w) if w == ".entry" || w == ".func"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_they_should() {
        let text = ".version 9.5\n.visible .entry k(\n .param .u64 p\n)\n.maxntid 32, 1, 1\n{\n.loc 1 2 3\n\
                    L: mov.b64 {%r1, _}, %rd1; @!%p1 bra L; }\n.section .debug { .b8 1 }";
        let found = statements(text).unwrap();
        let firsts: Vec<(u32, usize)> = found.iter().map(|s| (s.line, s.tokens.len())).collect();
        assert_eq!(firsts, [(1, 2), (2, 8), (5, 6), (6, 1), (7, 4), (8, 2), (8, 8), (8, 5), (8, 1)]);
    }

    #[test]
    fn numbers_have_three_spellings() {
        for (text, value) in [("12", 12), ("0x1F", 31), ("0f3F800000", 0x3f80_0000), ("7U", 7)] {
            assert_eq!(number(text), Some(value), "{text}");
        }
        assert_eq!(number("1.5"), None);
    }
}
