//! Parts of a model by pattern: what `--train` names. A pattern is words joined by `/`, which must all hold of a tensor; a
//! tensor is meant if one pattern of the list holds.
//!
//! | word | tensors |
//! |---|---|
//! | `layers.3`, `layers.3-5` | of these layers, from 0, both ends included |
//! | `attention`, `mlp`, `norm`, `embed`, `head` | of these components: projections of attention, of the feed-forward part, norms, tables of tokens and positions, the output head and a task's |
//! | `weight`, `bias` | of this kind |
//! | any other | whose name has it between dots or at an end; `*` is anything: `q_proj`, `model.norm.*`, `*.k_*` |
//!
//! `layers.3-5/attention/bias,head` are the biases of attention in three layers, and the head.

use std::fmt;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::nn::{Role, WeightRef};

const EXPECTED: &str = "patterns divided by commas, words in them by /: layers.3-5, attention, mlp, norm, embed, head, \
                        weight, bias, or parts of tensors' names, with *";

/// The components, and the roles of their weights.
const COMPONENTS: [(&str, &[Role]); 5] = [
    ("attention", &[Role::Q, Role::K, Role::V, Role::Qkv, Role::O]),
    ("mlp", &[Role::Gate, Role::Up, Role::Down]),
    ("norm", &[Role::Norm]),
    ("embed", &[Role::Embed, Role::Position]),
    ("head", &[Role::Head, Role::Classifier, Role::Pooler]),
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Layers(RangeInclusive<usize>),
    /// A number of [`COMPONENTS`].
    Component(usize),
    Weight,
    Bias,
    Name(String),
}

/// A list of patterns: see the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each as typed, and its words.
    patterns: Vec<(String, Vec<Word>)>,
}

/// The number of a tensor's layer: the first one in its name.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Whether `pattern`, in which `*` is anything, is all of `text`.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(i, _)| i).chain([text.len()]);
            ends.into_iter().any(|i| glob(rest, &text[i..]))
        }),
    }
}

impl Word {
    fn parse(text: &str) -> Option<Word> {
        let numbers = |range: &&str| range.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        if let Some(range) = text.strip_prefix("layers.").filter(numbers) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            return (first <= last).then_some(Word::Layers(first..=last));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '*');
        match text {
            "weight" => Some(Word::Weight),
            "bias" => Some(Word::Bias),
            _ => match COMPONENTS.iter().position(|c| c.0 == text) {
                Some(component) => Some(Word::Component(component)),
                None => (!text.is_empty() && text.chars().all(plain)).then(|| Word::Name(text.into())),
            },
        }
    }

    fn holds(&self, w: WeightRef) -> bool {
        match self {
            Word::Layers(range) => layer(w.name).is_some_and(|layer| range.contains(&layer)),
            Word::Component(i) => COMPONENTS[*i].1.contains(&w.role),
            Word::Weight => !w.is_bias(),
            Word::Bias => w.is_bias(),
            Word::Name(pattern) => {
                let starts = [0].into_iter().chain(w.name.match_indices('.').map(|(i, _)| i + 1));
                starts.into_iter().any(|from| {
                    let rest = &w.name[from..];
                    let ends = rest.match_indices('.').map(|(i, _)| i).chain([rest.len()]);
                    ends.into_iter().any(|to| glob(pattern, &rest[..to]))
                })
            }
        }
    }
}

impl Selection {
    /// Patterns as they are typed.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Selection, String> {
        let one = |text: &str| {
            let words: Option<Vec<Word>> = text.trim().split('/').map(|word| Word::parse(word.trim())).collect();
            words.map(|words| (text.trim().to_string(), words)).ok_or_else(|| EXPECTED.to_string())
        };
        let patterns: Vec<_> = patterns.into_iter().map(one).collect::<Result<_, _>>()?;
        if patterns.is_empty() { Err(EXPECTED.into()) } else { Ok(Selection { patterns }) }
    }

    /// The patterns as they were typed.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|(text, _)| text.as_str())
    }

    /// Whether a tensor is meant.
    pub fn contains(&self, w: WeightRef) -> bool {
        self.patterns.iter().any(|(_, words)| words.iter().all(|word| word.holds(w)))
    }

    /// Errors if a pattern means none of a model's tensors, or layers that it has not.
    pub fn check(&self, weights: &[WeightRef]) -> Result<()> {
        let last = weights.iter().filter_map(|w| layer(w.name)).max();
        for (text, words) in &self.patterns {
            let beyond = words.iter().any(|word| match word {
                Word::Layers(range) => last.is_none_or(|last| *range.end() > last),
                _ => false,
            });
            if beyond || !weights.iter().any(|w| words.iter().all(|word| word.holds(*w))) {
                let found =
                    format!("{text}, which names {}", if beyond { "layers that are not there" } else { "nothing" });
                return Err(Error::config("train", found, there(words, weights, last)));
            }
        }
        Ok(())
    }
}

/// What a model has to name.
fn there(words: &[Word], weights: &[WeightRef], last: Option<usize>) -> String {
    let mut known = last.map_or(Vec::new(), |last| vec![format!("layers.0-{last}")]);
    let held = |c: &&(&str, &[Role])| weights.iter().any(|w| c.1.contains(&w.role));
    known.extend(COMPONENTS.iter().filter(held).map(|c| c.0.to_string()));
    known.push("weight".into());
    known.extend(weights.iter().any(|w| w.is_bias()).then(|| "bias".to_string()));
    let parts: Vec<&str> = weights.iter().flat_map(|w| w.name.split('.')).collect();
    let near = words.iter().find_map(|word| match word {
        Word::Name(name) => nearest(name, parts.iter().copied().chain(weights.iter().map(|w| w.name))),
        _ => None,
    });
    let example = near.or(weights.first().map(|w| w.name)).unwrap_or_default();
    let joined = if words.len() > 1 { "; words joined by / must hold of one tensor" } else { "" };
    format!("{}, or parts of tensors' names such as {example}{joined}", known.join(", "))
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [(&str, Role); 8] = [
        ("model.embed_tokens.weight", Role::Embed),
        ("model.layers.0.self_attn.q_proj.weight", Role::Q),
        ("model.layers.0.self_attn.q_proj.bias", Role::Q),
        ("model.layers.0.input_layernorm.weight", Role::Norm),
        ("model.layers.1.mlp.down_proj.weight", Role::Down),
        ("model.layers.10.mlp.down_proj.weight", Role::Down),
        ("model.norm.weight", Role::Norm),
        ("score.weight", Role::Classifier),
    ];

    fn weights() -> Vec<WeightRef<'static>> {
        MODEL.iter().map(|&(name, role)| WeightRef { name, role }).collect()
    }

    #[test]
    fn patterns_name_tensors() {
        let table: [(&str, &[usize]); 14] = [
            ("layers.0", &[1, 2, 3]),
            ("layers.1-10", &[4, 5]),
            ("attention", &[1, 2]),
            ("mlp", &[4, 5]),
            ("norm", &[3, 6]),
            ("embed,head", &[0, 7]),
            ("bias", &[2]),
            ("attention/weight", &[1]),
            ("layers.0/norm, layers.10", &[3, 5]),
            ("q_proj", &[1, 2]),
            ("model.norm.*", &[6]),
            ("*.q_*", &[1, 2]),
            ("layers.1.mlp.*", &[4]),
            ("*norm*.weight", &[3, 6]),
        ];
        for (text, want) in table {
            let selection = Selection::parse(text.split(',')).unwrap();
            let found: Vec<usize> = (0..MODEL.len()).filter(|&i| selection.contains(weights()[i])).collect();
            assert_eq!(found, want, "{text}");
            selection.check(&weights()).unwrap();
            assert_eq!(Selection::parse(selection.to_string().split(',')).unwrap(), selection);
        }
        for wrong in ["", "norm,", "norm//bias", "layers.5-3", "layers.", "q proj", "q[0]"] {
            assert!(Selection::parse(wrong.split(',')).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_that_names_nothing_is_an_error_with_what_there_is() {
        for (text, part) in [
            (
                "norm,q_prj",
                "train: found q_prj, which names nothing, expected layers.0-10, attention, mlp, norm, embed",
            ),
            ("q_prj", "such as q_proj"),
            ("norm/bias", "norm/bias, which names nothing"),
            ("layers.5-11", "layers.5-11, which names layers that are not there"),
            ("layers.5", "layers.5, which names nothing"),
        ] {
            let error = Selection::parse(text.split(',')).unwrap().check(&weights()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
