//! Archives whose entries are stored as they are, not compressed: what PyTorch's `save` writes. The directory at the end says
//! where each entry is.

use std::collections::BTreeMap;

use flate2::Crc;

/// Where an entry is in the archive, checked when it is read.
struct Entry {
    /// Of its own header.
    at: usize,
    len: usize,
    crc: u32,
}

/// An archive in memory.
pub(super) struct Zip<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
}

/// What an archive begins with.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";
const ENTRY: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const END_64_LOCATOR: &[u8] = b"PK\x06\x07";
const END_LEN: usize = 22;
/// A number that is in the extra field of 64-bit numbers instead.
const ELSEWHERE: u64 = u32::MAX as u64;

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let found = bytes.get(at..at.checked_add(len)?)?;
    Some(found.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

fn place(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    usize::try_from(number(bytes, at, len)?).ok()
}

impl<'a> Zip<'a> {
    /// Reads the directory; none if it is damaged, or has entries that are compressed or encrypted.
    pub fn open(bytes: &'a [u8]) -> Option<Zip<'a>> {
        // A comment of up to 64 KiB may follow the end.
        let last = bytes.len().checked_sub(END_LEN)?;
        let first = last.saturating_sub(usize::from(u16::MAX));
        let end = (first..=last).rev().find(|&at| bytes[at..].starts_with(END))?;
        let mut count = number(bytes, end + 10, 2)?;
        let mut at = number(bytes, end + 16, 4)?;
        if let Some(locator) = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(END_64_LOCATOR)) {
            let end = place(bytes, locator + 8, 8)?;
            if !bytes.get(end..)?.starts_with(END_64) {
                return None;
            }
            (count, at) = (number(bytes, end + 32, 8)?, number(bytes, end + 48, 8)?);
        }
        let mut at = usize::try_from(at).ok()?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let header = bytes.get(at..)?;
            let (flags, method) = (number(header, 8, 2)?, number(header, 10, 2)?);
            if !header.starts_with(ENTRY) || flags & 1 != 0 || method != 0 {
                return None;
            }
            let [name, extra, comment] = [28, 30, 32].map(|at| place(header, at, 2));
            let (name, extra, comment) = (name?, extra?, comment?);
            let (packed, len, offset) = (number(header, 20, 4)?, number(header, 24, 4)?, number(header, 42, 4)?);
            let mut wide = wide(header.get(46 + name..46 + name + extra)?);
            let mut whole = |x: u64| if x == ELSEWHERE { wide.next() } else { Some(x) };
            // In this order, and only those that are elsewhere.
            let (len, packed, offset) = (whole(len)?, whole(packed)?, whole(offset)?);
            if packed != len {
                return None;
            }
            let title = std::str::from_utf8(header.get(46..46 + name)?).ok()?;
            let (at_entry, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
            let entry = Entry { at: at_entry, len, crc: number(header, 16, 4)? as u32 };
            if entries.insert(title.to_string(), entry).is_some() {
                return None;
            }
            at = at.checked_add(46 + name + extra + comment)?;
        }
        Some(Zip { bytes, entries })
    }

    /// Names of the entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The bytes of an entry; none if it is not there, or not whole.
    pub fn read(&self, name: &str) -> Option<&'a [u8]> {
        let Entry { at, len, crc } = self.entries.get(name)?;
        let header = self.bytes.get(*at..)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let start = at.checked_add(30 + place(header, 26, 2)? + place(header, 28, 2)?)?;
        let found = self.bytes.get(start..start.checked_add(*len)?)?;
        let mut sum = Crc::new();
        sum.update(found);
        (sum.sum() == *crc).then_some(found)
    }
}

/// The numbers of an entry's extra field of 64-bit numbers.
fn wide(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut numbers = Vec::new();
    while let (Some(id), Some(len)) = (number(extra, 0, 2), place(extra, 2, 2)) {
        let Some(field) = extra.get(4..4 + len) else { break };
        if id == 1 {
            numbers.extend(field.as_chunks::<8>().0.iter().map(|x| u64::from_le_bytes(*x)));
        }
        extra = &extra[4 + len..];
    }
    numbers.into_iter()
}
