//! A block's shared memory: named arrays with gaps between, a state and a race cell for every byte.
//!
//! Bytes that a tensor copy has brought can be touched by threads that have seen the mbarrier's phase end, or come after
//! one that has; bytes that a thread has written can be read asynchronously after a proxy fence.

use std::ops::Range;

use crate::finding::Kind;
use crate::memory::{Fault, Wish};
use crate::program::{Program, Segment};
use crate::readers::Readers;
use crate::shadow::{Cell, Who};

/// Whether a byte can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unknown,
    Known,
    /// An asynchronous copy to it is under way.
    InFlight,
    /// A tensor copy has brought it, of which only the mbarrier tells.
    Arrived,
}

/// A tensor copy that has landed: the phase of the mbarrier that it counts for.
#[derive(Clone, Copy)]
struct Landing {
    barrier: usize,
    phase: u32,
}

pub struct Shared {
    pub bytes: Vec<u8>,
    state: Vec<State>,
    cells: Vec<Cell>,
    segments: Vec<Segment>,
    /// By 16-byte chunk, which landing brought what it has, an index into `landings`.
    brought: Vec<u32>,
    landings: Vec<Landing>,
    pub readers: Readers,
}

/// Bytes of a chunk that the asynchronous proxy moves as one.
const CHUNK: usize = 16;

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
        Shared {
            bytes: vec![0; size],
            state: vec![State::Unknown; size],
            cells: vec![[0; 4]; size],
            segments,
            brought: vec![0; size.div_ceil(CHUNK)],
            landings: Vec::new(),
            readers: Readers::default(),
        }
    }

    /// Makes all bytes unknown: another block begins. Its stamps tell old races from new ones.
    pub fn clear(&mut self) {
        self.state.fill(State::Unknown);
        self.bytes.fill(0xcd);
        self.landings.clear();
        self.readers = Readers::default();
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
        if !self.landings.is_empty() {
            self.landed_for(range.clone(), wish.verb(), who)?;
        }
        if wish.write {
            self.readers.written(&range, who, |at| self.spell(at))?;
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

    /// A tensor copy begins to overwrite whole chunks.
    pub fn tensor_off(&mut self, at: usize, bytes: usize, who: &Who) -> Result<(), Box<Fault>> {
        let unfenced = |&i: &usize| self.state[i] == State::Known && !who.fenced(self.cells[i][0]);
        if let Some(i) = (at..at + bytes).find(unfenced) {
            return Err(self.no_proxy_fence(i, "a tensor copy overwrites"));
        }
        self.take_off(at, bytes, who)?;
        self.readers.forget(&(at..at + bytes));
        Ok(())
    }

    /// A tensor copy has landed: for those who have seen, or will see, this phase of this mbarrier end.
    pub fn tensor_landed(&mut self, at: usize, bytes: usize, barrier: usize, phase: u32) {
        self.landings.push(Landing { barrier, phase });
        self.state[at..at + bytes].fill(State::Arrived);
        self.cells[at..at + bytes].fill([0; 4]);
        self.brought[at / CHUNK..(at + bytes) / CHUNK].fill(self.landings.len() as u32 - 1);
    }

    /// Checks that what tensor copies brought to `range` has been waited for by `who`.
    fn landed_for(&self, range: Range<usize>, verb: &str, who: &Who) -> Result<(), Box<Fault>> {
        let mut fine = None;
        for at in range.filter(|&at| self.state[at] == State::Arrived) {
            let landing = self.brought[at / CHUNK];
            let Landing { barrier, phase } = self.landings[landing as usize];
            if fine == Some(landing) || who.passed(barrier, phase) {
                fine = Some(landing);
                continue;
            }
            let text = format!(
                "{verb} of {}, which a tensor copy brings: this thread has not seen phase {} of its mbarrier end",
                self.spell(at),
                phase - 1
            );
            return Err(Fault::new(Kind::AsyncInFlight, text));
        }
        Ok(())
    }

    fn no_proxy_fence(&self, at: usize, what: &str) -> Box<Fault> {
        let text = format!("{what} {}, written since the last fence.proxy.async", self.spell(at));
        Fault::new(Kind::Unfenced, text)
    }

    /// Checks that these chunks can be read by the asynchronous proxy for each of `threads`.
    pub fn read_asynchronously(&self, starts: &[usize], what: &str, threads: &[Who]) -> Result<(), Box<Fault>> {
        let verb = format!("{what}: read");
        let mut fine = None;
        for at in starts.iter().flat_map(|&start| start..start + CHUNK) {
            let stamp = self.cells[at][0];
            let same = Some((self.state[at], stamp, self.brought[at / CHUNK]));
            if fine == same {
                continue;
            }
            let place = || self.spell(at);
            match self.state[at] {
                State::Unknown => {
                    return Err(Fault::new(
                        Kind::Uninitialised,
                        format!("{verb} of {}, which nothing has written", place()),
                    ));
                }
                State::InFlight => {
                    let text = format!("{verb} of {} while an asynchronous copy to it is in flight", place());
                    return Err(Fault::new(Kind::AsyncInFlight, text));
                }
                State::Arrived => threads.iter().try_for_each(|who| self.landed_for(at..at + 1, &verb, who))?,
                State::Known => {
                    if threads.iter().any(|who| !who.after(stamp)) {
                        let conflict = Who::conflict(stamp, 0, Some(self.cells[at][3] as u32));
                        return Err(Fault::race(format!("{verb} of {}", place()), conflict));
                    }
                    if threads.iter().any(|who| !who.fenced(stamp)) {
                        return Err(self.no_proxy_fence(at, &format!("{what} reads")));
                    }
                }
            }
            fine = same;
        }
        Ok(())
    }
}
