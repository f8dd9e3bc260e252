//! What a program reads: streams of packed tokens, and fields that models, tasks and methods declare. The packer fills
//! fields by name and knows nothing else of them.
//!
//! A *stream* is one row of T packed tokens: sequences one after the other, no padding between them. Encoder-decoder
//! models have two, and sequence s of one belongs to sequence s of the other. A *field* is an input leaf; its `fill`
//! computes a sequence's part of it, so padding, offsets and virtual tokens are in one place.

use std::fmt;
use std::sync::Arc;

use crate::dtype::Ty;
use crate::error::{Error, Result};

/// The label of what is not trained, as in PyTorch and Hugging Face.
pub const IGNORE: i32 = -100;

/// The values of a column of a data set, or of a field of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Whole numbers: token ids, labels, positions.
    Ints(Vec<i32>),
    /// Numbers: targets of regression, rewards.
    Floats(Vec<f32>),
}

impl Column {
    /// No values, of the kind of `self`.
    pub fn empty(&self) -> Column {
        match self {
            Column::Ints(_) => Column::Ints(Vec::new()),
            Column::Floats(_) => Column::Floats(Vec::new()),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Column::Ints(v) => v.len(),
            Column::Floats(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as the device holds them.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Column::Ints(v) => bytemuck::cast_slice(v),
            Column::Floats(v) => bytemuck::cast_slice(v),
        }
    }

    /// The values, if they are whole numbers; else nothing.
    pub fn ints(&self) -> &[i32] {
        match self {
            Column::Ints(v) => v,
            Column::Floats(_) => &[],
        }
    }

    /// The values, if they are floats; else nothing.
    pub fn floats(&self) -> &[f32] {
        match self {
            Column::Ints(_) => &[],
            Column::Floats(v) => v,
        }
    }

    /// Appends `other`; values of the other kind are converted.
    pub fn extend(&mut self, other: &Column) {
        match (self, other) {
            (Column::Ints(to), Column::Ints(from)) => to.extend_from_slice(from),
            (Column::Floats(to), Column::Floats(from)) => to.extend_from_slice(from),
            (Column::Ints(to), Column::Floats(from)) => to.extend(from.iter().map(|&x| x as i32)),
            (Column::Floats(to), Column::Ints(from)) => to.extend(from.iter().map(|&x| x as f32)),
        }
    }
}

/// A stream of tokens, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub usize);

/// The tokens whose hidden states the task reads: all of a decoder or an encoder, the decoder's in encoder-decoders.
pub const MAIN: StreamId = StreamId(0);
/// The encoder's tokens in encoder-decoders.
pub const SOURCE: StreamId = StreamId(1);

/// A stream as the packer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// T: tokens of a micro-batch, virtual ones included.
    pub tokens: usize,
    /// The column of an example whose length is the number of its tokens.
    pub column: &'static str,
    /// Virtual tokens before each sequence (prompt tuning).
    pub lead: usize,
    /// Keys and values before those of each sequence (prefix tuning).
    pub prefix: usize,
}

impl Stream {
    /// Rows of keys: the tokens, and the prefixes of `sequences` sequences.
    pub fn keys(&self, sequences: usize) -> usize {
        self.tokens + sequences * self.prefix
    }
}

/// What an axis of a field counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// `[T, width]` of a stream.
    Token(StreamId),
    /// `[T + sequences·prefix, width]` of a stream: its keys where there is a prefix.
    Key(StreamId),
    /// `[sequences, width]`.
    Sequence,
}

/// What a field holds where there is no sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pad {
    /// This whole number.
    Int(i32),
    /// This number.
    Float(f32),
    /// `[t, t + 1)` in row t: a token of padding is a sequence of its own.
    Own,
}

/// Where a sequence is in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Its first row.
    pub start: usize,
    /// Number of its rows, virtual tokens included.
    pub len: usize,
    /// Its first row among the keys, prefix included.
    pub key: usize,
    /// Virtual tokens at its start.
    pub lead: usize,
    /// Keys of the prefix before its own.
    pub prefix: usize,
    /// Tokens of padding at its end, where the layout pads: they see the others, and none sees them.
    pub pad: usize,
}

/// A sequence that is being packed.
pub struct Item<'a> {
    /// Its columns by name; empty if it has none of that name.
    pub columns: &'a dyn Fn(&str) -> Option<Column>,
    /// Its number in the micro-batch.
    pub index: usize,
    /// Its place in each stream.
    pub placed: &'a [Placed],
}

impl Item<'_> {
    /// The whole numbers of a column; none if there is no such column.
    pub fn ints(&self, name: &str) -> Vec<i32> {
        match (self.columns)(name) {
            Some(Column::Ints(v)) => v,
            Some(Column::Floats(v)) => v.into_iter().map(|x| x as i32).collect(),
            None => Vec::new(),
        }
    }

    /// The numbers of a column; none if there is no such column.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        match (self.columns)(name) {
            Some(Column::Floats(v)) => v,
            Some(Column::Ints(v)) => v.into_iter().map(|x| x as f32).collect(),
            None => Vec::new(),
        }
    }

    /// Its place in `stream`.
    pub fn at(&self, stream: StreamId) -> Placed {
        self.placed.get(stream.0).copied().unwrap_or_default()
    }
}

/// Computes a sequence's values of a field.
pub type Fill = Arc<dyn Fn(&Item) -> Column + Send + Sync>;

/// An input leaf of a program and how the packer fills it.
#[derive(Clone)]
pub struct Field {
    /// Name of the leaf.
    pub name: String,
    /// What its rows are of; gives its number of rows.
    pub axis: Axis,
    /// Values of a row.
    pub width: usize,
    /// What rows hold that no sequence fills.
    pub pad: Pad,
    /// Computes a sequence's rows.
    pub fill: Fill,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} × {}", self.name, self.axis, self.width)
    }
}

impl Field {
    /// A field of whole numbers that `fill` computes.
    pub fn ints(
        name: impl Into<String>,
        axis: Axis,
        pad: i32,
        fill: impl Fn(&Item) -> Vec<i32> + Send + Sync + 'static,
    ) -> Field {
        Field {
            name: name.into(),
            axis,
            width: 1,
            pad: Pad::Int(pad),
            fill: Arc::new(move |item| Column::Ints(fill(item))),
        }
    }

    /// A field of `width` floats a row that `fill` computes.
    pub fn floats(
        name: impl Into<String>,
        axis: Axis,
        width: usize,
        fill: impl Fn(&Item) -> Vec<f32> + Send + Sync + 'static,
    ) -> Field {
        let fill: Fill = Arc::new(move |item| Column::Floats(fill(item)));
        Field { name: name.into(), axis, width, pad: Pad::Float(0.0), fill }
    }

    /// Pairs `[first, one past the last)` a row. Without `pad`, a row of padding is its own.
    pub fn ranges(
        name: impl Into<String>,
        axis: Axis,
        pad: Option<i32>,
        fill: impl Fn(&Item) -> Vec<i32> + Send + Sync + 'static,
    ) -> Field {
        let fill: Fill = Arc::new(move |item| Column::Ints(fill(item)));
        Field { name: name.into(), axis, width: 2, pad: pad.map_or(Pad::Own, Pad::Int), fill }
    }
}

/// Sequences of the main stream are as long as the longest of their batch, padded at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padding {
    /// The columns with a value for each token, and what they are padded with.
    pub columns: Vec<(&'static str, i32)>,
}

/// The shape of a micro-batch.
#[derive(Clone)]
pub struct Layout {
    /// Its token streams: one, or a decoder's and its encoder's.
    pub streams: Vec<Stream>,
    /// The most sequences of a micro-batch.
    pub sequences: usize,
    /// In the order in which they were declared.
    pub fields: Vec<Field>,
    /// The units of a sequence over whose number the loss is a mean: trained tokens, rows, labels.
    pub weight: Arc<dyn Fn(&Item) -> usize + Send + Sync>,
    /// How sequences are padded, if they are.
    pub padding: Option<Padding>,
}

impl Layout {
    /// Streams of these tokens and no fields.
    pub fn new(streams: Vec<Stream>, sequences: usize) -> Layout {
        Layout { streams, sequences, fields: Vec::new(), weight: Arc::new(|_| 1), padding: None }
    }

    /// The stream's shape.
    pub fn stream(&self, id: StreamId) -> Result<&Stream> {
        let missing = || Error::unsupported(format!("stream {} of {}", id.0, self.streams.len()), "a task that has it");
        self.streams.get(id.0).ok_or_else(missing)
    }

    /// Rows of a field.
    pub fn rows(&self, axis: Axis) -> Result<usize> {
        Ok(match axis {
            Axis::Token(s) => self.stream(s)?.tokens,
            Axis::Key(s) => self.stream(s)?.keys(self.sequences),
            Axis::Sequence => self.sequences,
        })
    }

    /// The type of a field's leaf: `[rows]`, or `[rows, width]` where a row has several values.
    pub fn ty(&self, field: &Field) -> Result<Ty> {
        let rows = self.rows(field.axis)?;
        let shape: &[usize] = if field.width == 1 { &[rows] } else { &[rows, field.width] };
        Ok(match field.pad {
            Pad::Float(_) => Ty::f32(&[rows, field.width]),
            _ => Ty::i32(shape),
        })
    }
}

/// Token ids of a stream: `column`, −1 for virtual tokens (their row of a table is zero), 0 for padding.
pub fn ids(name: &str, stream: StreamId, column: &'static str) -> Field {
    Field::ints(name, Axis::Token(stream), 0, move |item| {
        let lead = std::iter::repeat_n(-1, item.at(stream).lead);
        lead.chain(item.ints(column)).collect()
    })
}

/// Position of each token in its sequence, from 0; keys before it count.
pub fn positions(name: &str, stream: StreamId) -> Field {
    Field::ints(name, Axis::Token(stream), 0, move |item| {
        let at = item.at(stream);
        (0..at.len).map(|i| (at.prefix + i) as i32).collect()
    })
}

/// The sequence of each token: its first row, and one past its last; padding is not of it.
pub fn key_range(name: &str, stream: StreamId) -> Field {
    Field::ranges(name, Axis::Token(stream), None, move |item| {
        let at = item.at(stream);
        [at.start as i32, (at.start + at.len - at.pad) as i32].repeat(at.len)
    })
}

const CACHED: &str = "cached.key_range.";

/// The keys of a cache that a token sees through a window, I32[T,2]. Generation, which knows the cache, computes it.
pub fn cached_key_range(window: usize) -> Field {
    Field::ranges(format!("{CACHED}{window}"), Axis::Token(MAIN), None, |_| Vec::new())
}

/// The window of a field of that kind, by its name.
pub fn cached_window(name: &str) -> Option<usize> {
    name.strip_prefix(CACHED)?.parse().ok()
}

/// Where sequences are padded, the tokens that see each token: all of its sequence, or none if it is padding.
pub fn padded_query_range(name: &str, stream: StreamId) -> Field {
    Field::ranges(name, Axis::Token(stream), None, move |item| {
        let at = item.at(stream);
        let own = [at.start as i32, (at.start + at.len) as i32].repeat(at.len - at.pad);
        own.into_iter().chain([0, 0].repeat(at.pad)).collect()
    })
}

/// The keys that a token sees where a prefix comes before each sequence's keys: I32[T,2], causality and window included.
pub fn prefixed_key_range(stream: StreamId, causal: bool, window: Option<usize>) -> Field {
    let name = format!("prefixed.{}.key_range.{causal}.{}", stream.0, window.unwrap_or(0));
    Field::ranges(name, Axis::Token(stream), Some(0), move |item| {
        let at = item.at(stream);
        let all = at.prefix + at.len;
        let row = |i: usize| {
            let end = if causal { at.prefix + i + 1 } else { all };
            let first = window.map_or(0, |w| (at.prefix + i + 1).saturating_sub(w));
            [(at.key + first) as i32, (at.key + end) as i32]
        };
        (0..at.len).flat_map(row).collect()
    })
}

/// The tokens that see a key there, I32[T + sequences·P, 2]: the same relation.
pub fn prefixed_query_range(stream: StreamId, causal: bool, window: Option<usize>) -> Field {
    let name = format!("prefixed.{}.query_range.{causal}.{}", stream.0, window.unwrap_or(0));
    Field::ranges(name, Axis::Key(stream), Some(0), move |item| {
        let at = item.at(stream);
        let row = |key: usize| {
            let first = if causal { key.saturating_sub(at.prefix) } else { 0 };
            let end = window.map_or(at.len, |w| (key + w).saturating_sub(at.prefix).min(at.len));
            if first < end { [(at.start + first) as i32, (at.start + end) as i32] } else { [0, 0] }
        };
        (0..at.prefix + at.len).flat_map(row).collect()
    })
}

/// For each key where a prefix comes before each sequence's: its row among the P rows of the prefix and the stream's
/// own keys after them, I32[T + sequences·P]; −1: none.
pub fn prefixed_rows(stream: StreamId) -> Field {
    Field::ints(format!("prefixed.{}.rows", stream.0), Axis::Key(stream), -1, move |item| {
        let at = item.at(stream);
        let own = (at.start..at.start + at.len).map(|row| at.prefix + row);
        (0..at.prefix).chain(own).map(|row| row as i32).collect()
    })
}

/// For each token of stream `of`, the rows of its sequence in stream `to`, I32[T,2]; none for padding.
pub fn cross_range(name: &str, of: StreamId, to: StreamId) -> Field {
    Field::ranges(name, Axis::Token(of), Some(0), move |item| {
        let at = item.at(to);
        [at.start as i32, (at.start + at.len) as i32].repeat(item.at(of).len)
    })
}
