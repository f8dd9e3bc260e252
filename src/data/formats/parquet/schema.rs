//! The shape of a Parquet file's schema, read before the `parquet` crate reads it: that one follows the tree as deep as the
//! file has it, and takes memory for as many children as the file says there are.

/// Groups in groups at most.
const DEEPEST: usize = 32;

/// Types of Thrift's compact protocol.
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// What is wrong with the schema of the metadata `footer`; nothing if it is a tree that is not too deep.
pub(super) fn wrong(footer: &[u8]) -> Option<&'static str> {
    match children(footer) {
        None => Some("metadata that cannot be read"),
        Some(children) => fits(&children).err(),
    }
}

fn fits(children: &[i64]) -> Result<(), &'static str> {
    let [root, rest @ ..] = children else { return Err("no columns") };
    if *root < 1 {
        return Err("no columns");
    }
    // Children that are to come, of each group from the root on.
    let mut open = vec![*root];
    for &count in rest {
        match open.last_mut() {
            Some(left) => *left -= 1,
            None => return Err("a schema that is no tree"),
        }
        if !(0..=rest.len() as i64).contains(&count) {
            return Err("a schema that is no tree");
        }
        open.push(count);
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > DEEPEST {
            return Err("columns nested too deep");
        }
    }
    if open.is_empty() { Ok(()) } else { Err("a schema that is no tree") }
}

/// The number of children of each element of the schema; none if there is no schema.
fn children(footer: &[u8]) -> Option<Vec<i64>> {
    let mut thrift = Thrift(footer);
    let mut children = None;
    thrift.fields(&mut |thrift, id, kind| match (id, kind) {
        (2, LIST) => {
            let (count, kind) = thrift.list()?;
            let mut all = Vec::new();
            for _ in 0..count {
                let mut own = 0;
                if kind != STRUCT {
                    return None;
                }
                thrift.fields(&mut |thrift, id, kind| match (id, kind) {
                    (5, 5) => {
                        own = thrift.zigzag()?;
                        Some(())
                    }
                    _ => thrift.skip(kind, 0),
                })?;
                all.push(own);
            }
            children = Some(all);
            Some(())
        }
        _ => thrift.skip(kind, 0),
    })?;
    children
}

/// What is left of a text of Thrift's compact protocol.
struct Thrift<'a>(&'a [u8]);

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        self.varint().map(|n| (n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn take(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// The length of a list and the type of its elements.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => count.into(),
        };
        // An element takes a byte or more.
        (count <= self.0.len() as u64).then_some((count, head & 15))
    }

    /// Gives each field of a struct to `on`, which reads its value: its number and its type.
    fn fields(&mut self, on: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head & 15 == 0 {
                return Some(());
            }
            id = match head >> 4 {
                0 => self.zigzag()?,
                more => id + i64::from(more),
            };
            on(self, id, head & 15)?;
        }
    }

    /// Passes over a value.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(drop),
            7 => self.take(8),
            BINARY => {
                let length = self.varint()?;
                self.take(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                // Truth values are a byte in a list, and nothing in a struct.
                (0..count).try_for_each(|_| if kind <= 2 { self.take(1) } else { self.skip(kind, depth + 1) })
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip(kinds >> 4, depth + 1)?;
                    self.skip(kinds & 15, depth + 1)
                })
            }
            STRUCT => self.fields(&mut |thrift, _, kind| thrift.skip(kind, depth + 1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with a schema of elements that have so many children.
    fn footer(children: &[u8]) -> Vec<u8> {
        // Version 1; a list of structs.
        let mut bytes = vec![0x15, 2, 0x19, 0xF0 | STRUCT];
        bytes.push(children.len() as u8);
        for count in children {
            // Field 4, a name; field 5, the children.
            bytes.extend([0x48, 1, b'a', 0x15, count * 2, 0]);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn only_trees_that_are_not_too_deep_are_read() {
        let deep = |levels: usize| footer(&[vec![1; levels], vec![0]].concat());
        assert_eq!(wrong(&footer(&[2, 0, 0])), None);
        assert_eq!(wrong(&footer(&[2, 1, 2, 0, 0, 0])), None);
        assert_eq!(wrong(&deep(DEEPEST)), None);
        assert_eq!(wrong(&deep(DEEPEST + 1)), Some("columns nested too deep"));
        for (children, found) in [
            (&[][..], "no columns"),
            (&[0], "no columns"),
            (&[2, 0], "a schema that is no tree"),
            (&[1, 0, 0], "a schema that is no tree"),
            (&[1, 63], "a schema that is no tree"),
        ] {
            assert_eq!(wrong(&footer(children)), Some(found), "{children:?}");
        }
        let whole = footer(&[2, 0, 0]);
        for cut in 0..whole.len() {
            assert_eq!(wrong(&whole[..cut]), Some("metadata that cannot be read"), "{cut}");
        }
        // A list that is longer than the file, and a value nested without end.
        assert!(wrong(&[0x29, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).is_some());
        assert!(wrong(&[0x3C; 10_000]).is_some());
    }
}
