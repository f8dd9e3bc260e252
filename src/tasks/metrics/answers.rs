//! Question answering: exact match and F1 of words, as the scripts of SQuAD 1.1 (evaluate-v1.1.py) and 2.0
//! (evaluate-v2.0.py) compute them.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::{Values, ratio};

/// Which script's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squad {
    /// Every question has an answer. Gives `exact_match` and `f1`.
    V1,
    /// A question may have none, and the right prediction is then empty. Gives `exact` and `f1`, and both for the
    /// questions with an answer (`HasAns_…`) and without (`NoAns_…`), where there are such.
    V2,
}

/// Scores in percent, means over questions. A prediction counts by the reference answer that it is nearest to.
#[derive(Clone, Debug)]
pub struct Answers {
    rules: Squad,
    with: Sums,
    without: Sums,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    questions: u64,
    exact: u64,
    f1: f64,
}

impl Answers {
    /// No questions yet.
    pub fn new(rules: Squad) -> Answers {
        Answers { rules, with: Sums::default(), without: Sums::default() }
    }

    /// Adds a question: the predicted answer, empty for none, and the answers that are right, none if there is none.
    pub fn add(&mut self, predicted: &str, references: &[impl AsRef<str>]) {
        let predicted = normalize(predicted);
        let mut right: Vec<String> = references.iter().map(|r| normalize(r.as_ref())).collect();
        if self.rules == Squad::V2 {
            right.retain(|r| !r.is_empty());
            if right.is_empty() {
                right.push(String::new());
            }
        }
        let sums = if references.is_empty() { &mut self.without } else { &mut self.with };
        sums.questions += 1;
        sums.exact += u64::from(right.contains(&predicted));
        sums.f1 += right.iter().map(|r| self.rules.f1(&predicted, r)).fold(0.0, f64::max);
    }

    /// The scores of all questions so far, in percent; 0 of none.
    pub fn finish(&self) -> Values {
        let Answers { with, without, .. } = self;
        let all = Sums {
            questions: with.questions + without.questions,
            exact: with.exact + without.exact,
            f1: with.f1 + without.f1,
        };
        let exact = |s: &Sums| 100.0 * ratio(s.exact, s.questions);
        let f1 = |s: &Sums| if s.questions == 0 { 0.0 } else { 100.0 * s.f1 / s.questions as f64 };
        if self.rules == Squad::V1 {
            return vec![("exact_match", exact(&all)), ("f1", f1(&all))];
        }
        let mut values = vec![("exact", exact(&all)), ("f1", f1(&all))];
        if with.questions > 0 {
            values.extend([("HasAns_exact", exact(with)), ("HasAns_f1", f1(with))]);
        }
        if without.questions > 0 {
            values.extend([("NoAns_exact", exact(without)), ("NoAns_f1", f1(without))]);
        }
        values
    }
}

impl Squad {
    /// F1 of two normalized answers as bags of words.
    fn f1(self, predicted: &str, right: &str) -> f64 {
        let words = |text: &str| -> u64 { text.split(' ').filter(|w| !w.is_empty()).count() as u64 };
        let (n, m) = (words(predicted), words(right));
        // In 2.0 no answer is an answer: right if it is one, else wrong.
        if self == Squad::V2 && (n == 0 || m == 0) {
            return f64::from(n == m);
        }
        let mut left = HashMap::<&str, u64>::new();
        for word in right.split(' ').filter(|w| !w.is_empty()) {
            *left.entry(word).or_default() += 1;
        }
        let mut same = 0;
        for word in predicted.split(' ') {
            if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
                *n -= 1;
                same += 1;
            }
        }
        ratio(2 * same, n + m)
    }
}

/// Lower case, without ASCII's punctuation and English articles, one space between words.
fn normalize(answer: &str) -> String {
    // Words as Python's `\b` sees them: letters, numbers and `_`. (`\w` of the regex crate takes marks too, so that an
    // article before one would stay.)
    static WORD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("a pattern that a test compiles"));
    let text: String = answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let text = WORD.replace_all(&text, |found: &regex::Captures| match &found[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    });
    // Python's white space is Unicode's and four separators of ASCII.
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    text.split(space).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}
