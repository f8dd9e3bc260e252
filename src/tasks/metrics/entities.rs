//! A tag for each word: token accuracy, and entities as seqeval's default finds them (`get_entities`, which is
//! conlleval.pl's reading). It takes IOB1, IOB2, IOE and IOBES tags without being told which they are.

use super::{Counts, Values, ratio, same_length};
use crate::data::IGNORE;
use crate::{Error, Result};

/// `precision`, `recall` and `f1` of entities over all types, and `accuracy` of tokens.
///
/// An entity is right if type, first and last token are. The tag of a name is its first letter, and the type what
/// follows the first `-`, or the first letter if there is no `-`. So of names without prefixes every run of one name is an
/// entity, but, as in seqeval, a first letter that is a tag is read as one: a name with O is never an entity, and of names
/// with B, E or S every token is one.
#[derive(Clone, Debug)]
pub struct Entities {
    tags: Vec<Tag>,
    predicted: Reader,
    labelled: Reader,
    position: usize,
    entities: Counts,
    tokens: u64,
    right: u64,
}

impl Entities {
    /// For these names of labels, in the order of their numbers.
    pub fn new(names: &[String]) -> Result<Entities> {
        if names.iter().any(String::is_empty) {
            return Err(Error::config("labels", "an empty name", "names such as O, B-PER, I-PER"));
        }
        let mut tags: Vec<Tag> = names.iter().map(|name| Tag::new(name, names)).collect();
        tags.push(Tag::new("O", names));
        let start = Reader { tag: 'O', kind: None, begin: 0 };
        Ok(Entities {
            tags,
            predicted: start,
            labelled: start,
            position: 0,
            entities: Counts::default(),
            tokens: 0,
            right: 0,
        })
    }

    /// Adds one sequence: the predicted label of each token and the true one. Tokens whose true label is
    /// [`IGNORE`] (special tokens, all but the first of a word) are left out of both.
    pub fn add(&mut self, predicted: &[usize], labels: &[i32]) -> Result<()> {
        same_length("tags", predicted.len(), labels.len())?;
        let outside = self.tags.len() - 1;
        let kept = || predicted.iter().zip(labels).filter(|(_, l)| **l != IGNORE);
        let unknown = kept().find(|&(&p, &l)| p >= outside || usize::try_from(l).is_ok_and(|l| l >= outside) || l < 0);
        if let Some((p, l)) = unknown {
            return Err(Error::config("tags", format!("label {l}, predicted {p}"), format!("labels below {outside}")));
        }
        for (&p, &l) in kept() {
            let l = l as usize;
            self.step(p, l);
            self.tokens += 1;
            self.right += u64::from(p == l);
        }
        // What ends every sequence.
        self.step(outside, outside);
        Ok(())
    }

    /// Both readers take a tag. Entities that end at one place can only be equal to each other.
    fn step(&mut self, predicted: usize, labelled: usize) {
        let predicted = self.predicted.take(self.tags[predicted], self.position);
        let labelled = self.labelled.take(self.tags[labelled], self.position);
        self.entities.right += u64::from(predicted.is_some() && predicted == labelled);
        self.entities.predicted += u64::from(predicted.is_some());
        self.entities.labelled += u64::from(labelled.is_some());
        self.position += 1;
    }

    /// Precision, recall and F1 of entities, and the accuracy of tags.
    pub fn finish(&self) -> Values {
        vec![
            ("precision", self.entities.precision()),
            ("recall", self.entities.recall()),
            ("f1", self.entities.f1()),
            ("accuracy", ratio(self.right, self.tokens)),
        ]
    }
}

/// A label's first letter, and the number of its type.
#[derive(Clone, Copy, Debug)]
struct Tag {
    tag: char,
    kind: usize,
}

impl Tag {
    fn new(name: &str, names: &[String]) -> Tag {
        // The type of a label without one (`O`, `B`) is "_" too.
        fn kind(name: &str) -> &str {
            let mut rest = name.chars();
            rest.next();
            let rest = rest.as_str();
            let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
            if kind.is_empty() { "_" } else { kind }
        }
        let own = kind(name);
        Tag {
            tag: name.chars().next().unwrap_or('O'),
            kind: names.iter().position(|n| kind(n) == own).unwrap_or(names.len()),
        }
    }
}

/// Reads entities off tags, one tag at a time, across sequences (seqeval puts them together with an `O` after each).
#[derive(Clone, Copy, Debug)]
struct Reader {
    /// The tag before, and its type: none yet is no type.
    tag: char,
    kind: Option<usize>,
    /// Where the open entity began.
    begin: usize,
}

impl Reader {
    /// Takes the tag at `position`; gives type and begin of the entity that ended before it.
    fn take(&mut self, next: Tag, position: usize) -> Option<(usize, usize)> {
        let other = self.kind != Some(next.kind);
        let named = |tag: char| tag != 'O' && tag != '.';
        let ends =
            matches!((self.tag, next.tag), ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O')) || named(self.tag) && other;
        let begins =
            matches!((self.tag, next.tag), (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I')) || named(next.tag) && other;
        let ended = self.kind.filter(|_| ends).map(|kind| (kind, self.begin));
        if begins {
            self.begin = position;
        }
        (self.tag, self.kind) = (next.tag, Some(next.kind));
        ended
    }
}
