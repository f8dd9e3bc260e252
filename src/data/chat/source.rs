//! The source of a template as minijinja takes it: `{% generation %}` is transformers' own tag. It becomes a scope, which it
//! is there too, with a variable written at its start and at its end. Tags that have nothing between them and the variable
//! stand around it, so that white space is trimmed as the tag's own signs say.

/// The variables that begin and end what a generation block writes. A template that is not given them writes nothing.
pub(super) const MARKS: [&str; 2] = ["__generation_begins__", "__generation_ends__"];

/// The source with its tags of generation replaced, and whether there were any.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut marked) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = next_tag(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let kind = rest.as_bytes()[1];
        let end = match kind {
            b'#' => rest.find("#}").map(|end| end + 2),
            b'{' => code_end(rest, "}}"),
            _ => code_end(rest, "%}"),
        };
        // What does not end is minijinja's to tell.
        let Some(end) = end else { break };
        let tag = &rest[..end];
        rest = &rest[end..];
        if kind != b'%' {
            out.push_str(tag);
            continue;
        }
        let inner = tag[2..end - 2].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let instead = match inner.trim() {
            "generation" => Some(format!("with %}}{{{{ {} }}}}{{% if true", MARKS[0])),
            "endgeneration" => Some(format!("endif %}}{{{{ {} }}}}{{% endwith", MARKS[1])),
            _ => None,
        };
        match instead {
            Some(call) => {
                marked = true;
                out.push_str(&tag.replacen(inner.trim(), &call, 1));
            }
            None => out.push_str(tag),
        }
        if inner.trim() == "raw" {
            let end = raw_end(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    (out, marked)
}

/// Where the next expression, statement or comment begins.
fn next_tag(text: &str) -> Option<usize> {
    let begins = |pair: &[u8]| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#');
    text.as_bytes().windows(2).position(begins)
}

/// Where the code that `text` begins with ends: after the first `close` that is in no string.
fn code_end(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (2, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while *bytes.get(at)? != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            // The braces of a dict may end at the end of an expression.
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            _ if text.as_bytes()[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where a raw block's text ends: before its `{% endraw %}`, or with the text.
fn raw_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let inner = text[from + at + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner.starts_with("endraw") {
            return from + at;
        }
        from += at + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_of_generation_are_replaced() {
        let open = "with %}{{ __generation_begins__ }}{% if true";
        let close = "endif %}{{ __generation_ends__ }}{% endwith";
        let table = [
            ("a{% generation %}b{% endgeneration %}", Some("a{% OPEN %}b{% CLOSE %}")),
            ("{%- generation -%}b{%-endgeneration+%}", Some("{%- OPEN -%}b{%-CLOSE+%}")),
            ("{%  generation\n%}", Some("{%  OPEN\n%}")),
            ("{% if x == '%} {% generation %}' %}{{ '{% generation %}' }}", None),
            ("{# {% generation %} #}{{ {'a': {'b': \"}}\"}} }}", None),
            ("{% raw %}{% generation %}{% endraw %}", None),
            ("{% raw -%}{% if %}{%- endraw %}{% generation %}", Some("{% raw -%}{% if %}{%- endraw %}{% OPEN %}")),
            ("{% set generation = 1 %}{{ generation }}{", None),
            ("{{ 'no end }}{% generation %}", None),
            ("{{ 'é\\'' }}é{% generation %}", Some("{{ 'é\\'' }}é{% OPEN %}")),
        ];
        for (source, want) in table {
            let whole = want.unwrap_or(source).replace("OPEN", open).replace("CLOSE", close);
            assert_eq!(rewrite(source), (whole, want.is_some()), "{source}");
        }
    }
}
