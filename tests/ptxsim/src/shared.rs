//! A block's shared memory: named arrays with gaps between, a state and a race cell for every byte.

use crate::finding::Kind;
use crate::memory::{Fault, Wish};
use crate::program::{Program, Segment};
use crate::shadow::{Cell, Who};

/// Whether a byte can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unknown,
    Known,
    /// An asynchronous copy to it is under way.
    InFlight,
}

pub struct Shared {
    pub bytes: Vec<u8>,
    state: Vec<State>,
    cells: Vec<Cell>,
    segments: Vec<Segment>,
}

/// The name in the source of a mangled `_ZZ6kernelE5array`.
fn plain(name: &str) -> &str {
    let tail = name.rsplit('E').next().filter(|_| name.starts_with("_ZZ")).unwrap_or(name);
    tail.trim_start_matches(|c: char| c.is_ascii_digit())
}

impl Shared {
    pub fn new(program: &Program, dynamic: usize) -> Shared {
        let mut segments: Vec<Segment> = program.shared.clone();
        segments.push(Segment { name: program.dynamic_name.clone(), start: program.dynamic_at, bytes: dynamic });
        for segment in &mut segments {
            segment.name = plain(&segment.name).to_owned();
        }
        let size = program.dynamic_at + dynamic;
        Shared { bytes: vec![0; size], state: vec![State::Unknown; size], cells: vec![[0; 4]; size], segments }
    }

    /// Makes all bytes unknown: another block begins. Its stamps tell old races from new ones.
    pub fn clear(&mut self) {
        self.state.fill(State::Unknown);
        self.bytes.fill(0xcd);
    }

    /// `array` and the offset in it, for messages.
    pub fn spell(&self, at: usize) -> String {
        let near = self.segments.iter().rev().find(|s| s.start <= at);
        near.map_or_else(
            || format!("byte {at} of shared memory"),
            |s| format!("byte {} of shared array '{}' of {} bytes", at - s.start, s.name, s.bytes),
        )
    }

    /// The offset of `bytes` at `address`, if one array has them all.
    pub fn locate(&self, address: u64, bytes: usize, wish: Wish) -> Result<usize, Box<Fault>> {
        let at = usize::try_from(address).unwrap_or(usize::MAX - 64);
        let inside = |s: &Segment| at >= s.start && at + bytes <= s.start + s.bytes;
        if self.segments.iter().any(inside) {
            return Ok(at);
        }
        let text = format!("{} of {bytes} bytes at {}", wish.verb(), self.spell(at));
        Err(Fault::new(Kind::OutOfBounds, text))
    }

    pub fn state(&self, at: usize) -> State {
        self.state[at]
    }

    /// Checks what is known and races of an access, and notes it.
    pub fn note(&mut self, at: usize, bytes: usize, wish: Wish, who: &Who) -> Result<(), Box<Fault>> {
        let range = at..at + bytes;
        let bad = |s: &State| *s == State::InFlight || *s == State::Unknown && !wish.write;
        if let Some(i) = self.state[range.clone()].iter().position(bad) {
            let place = self.spell(at + i);
            return Err(if self.state[at + i] == State::InFlight {
                let text = format!("{} of {place} while an asynchronous copy to it is in flight", wish.verb());
                Fault::new(Kind::AsyncInFlight, text)
            } else {
                Fault::new(Kind::Uninitialised, format!("read of {place}, which nothing has written"))
            });
        }
        if wish.write {
            self.state[range.clone()].fill(State::Known);
        }
        who.touch(&mut self.cells[range], wish.write, wish.strong, true)
            .map_err(|c| Fault::race(format!("{} of {}", wish.verb(), self.spell(at + c.offset)), c))
    }

    /// An asynchronous copy begins: a write, after which the bytes are nobody's until it lands.
    pub fn take_off(&mut self, at: usize, bytes: usize, who: &Who) -> Result<(), Box<Fault>> {
        self.note(at, bytes, Wish::WRITE, who)?;
        self.state[at..at + bytes].fill(State::InFlight);
        Ok(())
    }

    /// The copy has landed for the thread that waited.
    pub fn land(&mut self, at: usize, bytes: usize, who: &Who) -> Result<(), Box<Fault>> {
        self.state[at..at + bytes].fill(State::Known);
        self.note(at, bytes, Wish::WRITE, who)
    }

    /// The copy has landed for everyone: a barrier object carries the order.
    pub fn land_for_all(&mut self, at: usize, bytes: usize) {
        self.state[at..at + bytes].fill(State::Known);
        self.cells[at..at + bytes].fill([0; 4]);
    }
}
