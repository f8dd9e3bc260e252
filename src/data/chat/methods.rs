//! Methods of Python's strings that templates call, where minijinja-contrib has none or another meaning.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::is_space;

/// A method of a value that is no method of an object's own.
pub(super) fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => string(text, name, args)?,
        None if matches!(value.kind(), ValueKind::Seq) && name == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == wanted);
            Some(Value::from(at.ok_or_else(|| wrong(format!("{wanted} is not in list")))?))
        }
        None => None,
    };
    own.map_or_else(|| unknown_method_callback(state, value, name, args), Ok)
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// The ends that `strip` and its kin take off.
fn stripped<'a>(text: &'a str, chars: Option<&str>, [start, end]: [bool; 2]) -> &'a str {
    let off = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(off) } else { text };
    if end { text.trim_end_matches(off) } else { text }
}

/// `str.strip`, as the filter `trim` is too.
pub(super) fn strip(text: &str, chars: Option<&str>) -> String {
    stripped(text, chars, [true, true]).to_owned()
}

/// The arguments `sep` and `maxsplit` of `split` and `rsplit`.
fn split_args(args: &[Value]) -> Result<(Option<String>, Option<usize>), Error> {
    let (sep, most, named): (Option<Value>, Option<Value>, Kwargs) = from_args(args)?;
    let sep = match sep {
        Some(sep) => Some(sep),
        None => named.get("sep")?,
    };
    let most: Option<i64> = match most {
        Some(most) => Some(i64::try_from(most)?),
        None => named.get("maxsplit")?,
    };
    named.assert_all_used()?;
    let sep = match sep.filter(|sep| !sep.is_none()) {
        Some(sep) => Some(sep.as_str().ok_or_else(|| wrong("split by what is no string"))?.to_owned()),
        None => None,
    };
    if sep.as_deref() == Some("") {
        return Err(wrong("empty separator"));
    }
    // Less than 0 is no limit.
    Ok((sep, most.and_then(|most| usize::try_from(most).ok())))
}

/// `str.split`.
fn split(text: &str, sep: Option<&str>, most: Option<usize>) -> Vec<String> {
    let most = most.unwrap_or(usize::MAX);
    let Some(sep) = sep else {
        let (mut parts, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
        while !rest.is_empty() {
            if parts.len() == most {
                parts.push(rest.into());
                break;
            }
            let end = rest.find(is_space).unwrap_or(rest.len());
            parts.push(rest[..end].into());
            rest = rest[end..].trim_start_matches(is_space);
        }
        return parts;
    };
    text.splitn(most.saturating_add(1), sep).map(String::from).collect()
}

/// `str.rsplit`.
fn rsplit(text: &str, sep: Option<&str>, most: Option<usize>) -> Vec<String> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts: Vec<String> = match sep {
        Some(sep) => text.rsplitn(most.saturating_add(1), sep).map(String::from).collect(),
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end_matches(is_space));
            while !rest.is_empty() {
                if parts.len() == most {
                    parts.push(rest.into());
                    break;
                }
                let start = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(i, c)| i + c.len_utf8());
                parts.push(rest[start..].into());
                rest = rest[..start].trim_end_matches(is_space);
            }
            parts
        }
    };
    parts.reverse();
    parts
}

/// `str.splitlines`.
fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (line, end) = match rest.find(ends) {
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(0, char::len_utf8)),
            None => (rest.len(), rest.len()),
        };
        out.push(rest[..if keep_ends { end } else { line }].into());
        rest = &rest[end..];
    }
    out
}

/// `str.title`: a letter after what is no letter is a capital.
fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// `text` with `fill` around it, to `width` characters.
fn padded(text: &str, args: &[Value], share: impl Fn(usize) -> usize) -> Result<String, Error> {
    /// Wider than any text of a chat.
    const WIDEST: usize = 1 << 20;
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let more = width.min(WIDEST).saturating_sub(text.chars().count());
    let (left, fill) = (share(more), fill.unwrap_or(" "));
    Ok([&fill.repeat(left), text, &fill.repeat(more - left)].concat())
}

/// The method of a string; none if minijinja-contrib's is right.
fn string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let list = |parts: Vec<String>| Value::from(parts);
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<Value>,) = from_args(args)?;
            let chars = chars.filter(|chars| !chars.is_none());
            let chars = chars.as_ref().map(|chars| chars.as_str().ok_or_else(|| wrong("strip of what is no string")));
            stripped(text, chars.transpose()?, [name != "rstrip", name != "lstrip"]).into()
        }
        "split" | "rsplit" => {
            let (sep, most) = split_args(args)?;
            list(if name == "split" { split } else { rsplit }(text, sep.as_deref(), most))
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?);
            named.assert_all_used()?;
            list(lines(text, keep.unwrap_or(false)))
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let (first, at) = (name == "partition", if name == "partition" { text.find(sep) } else { text.rfind(sep) });
            let parts = match at {
                Some(at) => [&text[..at], sep, &text[at + sep.len()..]],
                None if first => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name == "index" { text.find(what) } else { text.rfind(what) };
            text[..at.ok_or_else(|| wrong("substring not found"))?].chars().count().into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "ljust" => padded(text, args, |_| 0)?.into(),
        "rjust" => padded(text, args, |more| more)?.into(),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let width = Value::from(width.saturating_sub(sign.len()));
            (sign.to_owned() + &padded(digits, &[width, "0".into()], |more| more)?).into()
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_do_as_pythons_do() {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(call);
        // What Python 3.11 prints of the same.
        let table = [
            ("' a\x1c '.strip()", "a"),
            ("'xxaxx'.strip('x')", "a"),
            ("'xxaxx'.lstrip('x')", "axx"),
            ("'xyaxy'.rstrip('yx')", "xya"),
            ("' a '.strip(none)", "a"),
            ("' a  b c '.split()|join('|')", "a|b|c"),
            ("' a  b c '.split(none, 1)|join('|')", "a|b c "),
            ("'a,b,,c'.split(',')|join('|')", "a|b||c"),
            ("'a,b,c'.split(',', 1)|join('|')", "a|b,c"),
            ("'a,b,c'.split(',', maxsplit=1)|join('|')", "a|b,c"),
            ("'a,b,c'.split(sep=',')[-1]", "c"),
            ("'a,b,c'.split(',', -1)|length", "3"),
            ("'a,b,c'.rsplit(',', 1)|join('|')", "a,b|c"),
            ("' a  b c '.rsplit(none, 1)|join('|')", " a  b|c"),
            ("'a\\nb\\r\\nc\\u2028d\\n'.splitlines()|join('|')", "a|b|c|d"),
            ("'a\\r\\nb'.splitlines(true)|length", "2"),
            ("'k=v=w'.partition('=')|join('|')", "k|=|v=w"),
            ("'k=v=w'.rpartition('=')|join('|')", "k=v|=|w"),
            ("'k'.partition('=')|join('|')", "k||"),
            ("'k'.rpartition('=')|join('|')", "||k"),
            ("'abc'.removeprefix('ab')", "c"),
            ("'abc'.removesuffix('ab')", "abc"),
            ("'éab'.index('a')", "1"),
            ("['a', 'b'].index('b')", "1"),
            ("\"they're BILL's\".title()", "They'Re Bill'S"),
            ("'aB'.swapcase()", "Ab"),
            ("'7'.zfill(3) ~ '-7'.zfill(3)", "007-07"),
            ("'é'.ljust(3) ~ '|' ~ 'é'.rjust(3, '*')", "é  |**é"),
            ("'abc'.startswith(('x', 'ab'))", "True"),
            ("'aXbX'.replace('X', '-', 1)", "a-bX"),
            ("'abcab'.count('ab') ~ 'abcab'.find('z')", "2-1"),
        ];
        for (code, want) in table {
            let got = environment.render_str(&format!("{{{{ {code} }}}}"), ());
            assert_eq!(got.as_deref().ok(), Some(want), "{code}: {:?}", got.as_ref().err());
        }
        for code in ["'a'.split('')", "'a'.index('b')", "['a'].index('b')", "'a'.append('b')", "['a'].append('b')"] {
            assert!(environment.render_str(&format!("{{{{ {code} }}}}"), ()).is_err(), "{code}");
        }
    }
}
