//! Tensors that PyTorch's `save` wrote: an archive with a pickle, which is a program for a stack machine, and the values of each
//! storage. Nothing of the program is executed: of its steps those are understood that build dictionaries, lists and tuples of
//! texts and numbers, and of the functions that it may name the few that PyTorch's own files name for tensors. Whatever else is
//! named is an error.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use super::HostTensor;
use super::zip::{MAGIC, Zip};
use crate::error::{Error, Result};

/// Steps in a program, things on its stack and things that a thing is made of: far more than an adapter has.
const MOST: usize = 1 << 22;

/// What a pickle's machine works on.
#[derive(Clone, Debug)]
enum Thing {
    Nothing,
    Bool,
    Int(i64),
    Text(Rc<str>),
    /// A function or type, by its module and name.
    Named(Rc<str>),
    Tuple(Rc<Tuple>),
    /// Lists are in no dictionary of tensors; what they hold is of no interest.
    List,
    /// A dictionary by its place among all, since several things may be the same one.
    Dict(usize),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
}

#[derive(Debug)]
struct Tuple {
    parts: Vec<Thing>,
    /// How many tuples are within one another.
    depth: usize,
}

#[derive(Debug)]
struct Storage {
    format: Format,
    /// The entry with its values.
    key: String,
}

#[derive(Debug)]
struct Tensor {
    storage: Rc<Storage>,
    first: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    F64,
    F32,
    F16,
    Bf16,
}

impl Format {
    fn named(name: &str) -> Option<Format> {
        match name {
            "torch DoubleStorage" => Some(Format::F64),
            "torch FloatStorage" => Some(Format::F32),
            "torch HalfStorage" => Some(Format::F16),
            "torch BFloat16Storage" => Some(Format::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Format::F64 => 8,
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
        }
    }

    /// A value of so many bytes, little-endian.
    fn value(self, bytes: &[u8]) -> Option<f32> {
        Some(match self {
            Format::F64 => f64::from_le_bytes(bytes.try_into().ok()?) as f32,
            Format::F32 => f32::from_le_bytes(bytes.try_into().ok()?),
            Format::F16 => half::f16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
            Format::Bf16 => half::bf16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
        })
    }
}

/// The tensors of a file, widened to f32; errors name `path`.
pub fn read(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, HostTensor>> {
    const WANTED: &str = "the tensors of an adapter, as torch.save writes them";
    let wrong = |found: String| Error::file(path, found, WANTED);
    if !bytes.starts_with(MAGIC) {
        let old = bytes.first() == Some(&0x80);
        let found = if old { "a pickle as PyTorch before 1.6 wrote it" } else { "no archive" };
        return Err(wrong(found.into()));
    }
    let zip = Zip::open(bytes).ok_or_else(|| wrong("a damaged archive".into()))?;
    let folder = zip.names().find_map(|name| name.strip_suffix("data.pkl")).unwrap_or_default().to_string();
    let entry = |name: &str| zip.read(&format!("{folder}{name}"));
    let program = entry("data.pkl").ok_or_else(|| wrong("an archive without a sound data.pkl".into()))?;
    if entry("byteorder").is_some_and(|order| order != b"little") {
        return Err(wrong("values of a big-endian machine".into()));
    }
    let mut machine = Machine { program, ..Machine::default() };
    let tensors = machine.run().map_err(&wrong)?;
    let mut found = BTreeMap::new();
    // Tensors may share values, but not so that a small file becomes a large adapter.
    let mut left = bytes.len().saturating_mul(4);
    for (name, tensor) in tensors {
        let key = &tensor.storage.key;
        let values = entry(&format!("data/{key}")).ok_or_else(|| wrong(format!("{name} without its values")))?;
        let tensor = tensor.values(values, &mut left).ok_or_else(|| wrong(format!("{name} beyond its values")))?;
        found.insert(name, tensor);
    }
    Ok(found)
}

impl Tensor {
    /// Its values; none if they reach beyond `bytes`, or if all tensors together take more than is `left`.
    fn values(&self, bytes: &[u8], left: &mut usize) -> Option<HostTensor> {
        let count = self.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
        *left = left.checked_sub(count.checked_mul(self.storage.format.bytes())?)?;
        let size = self.storage.format.bytes();
        let mut data = Vec::with_capacity(count);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let mut at = self.first;
            for (i, stride) in index.iter().zip(&self.strides) {
                at = at.checked_add(i.checked_mul(*stride)?)?;
            }
            let start = at.checked_mul(size)?;
            data.push(self.storage.format.value(bytes.get(start..start.checked_add(size)?)?)?);
            for (i, size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Some(HostTensor { shape: self.shape.clone(), data })
    }
}

#[derive(Default)]
struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Thing>,
    /// Heights of the stack that were marked.
    marks: Vec<usize>,
    memo: BTreeMap<usize, Thing>,
    dicts: Vec<Vec<(Thing, Thing)>>,
}

impl<'a> Machine<'a> {
    /// The tensors of the dictionary that the program makes. An error says what is there instead.
    fn run(&mut self) -> Result<Vec<(String, Rc<Tensor>)>, String> {
        for _ in 0..MOST {
            let at = self.at;
            let cut = || format!("a pickle that is damaged at byte {at}");
            let code = self.take(1).ok_or_else(cut)?[0];
            if code == b'.' {
                return self.tensors();
            }
            self.step(code)?.ok_or_else(cut)?;
            if self.stack.len() > MOST {
                break;
            }
        }
        Err("a pickle of too many steps".into())
    }

    fn tensors(&mut self) -> Result<Vec<(String, Rc<Tensor>)>, String> {
        let Some(Thing::Dict(dict)) = self.stack.pop() else { return Err("a pickle of no dictionary".into()) };
        let mut found = Vec::new();
        for (name, tensor) in std::mem::take(&mut self.dicts[dict]) {
            match (name, tensor) {
                (Thing::Text(name), Thing::Tensor(tensor)) => found.push((name.to_string(), tensor)),
                (Thing::Text(name), _) => return Err(format!("a pickle whose {name} is no tensor")),
                _ => return Err("a pickle of something else than named tensors".into()),
            }
        }
        Ok(found)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let found = self.program.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(found)
    }

    /// A little-endian number.
    fn number(&mut self, len: usize) -> Option<usize> {
        Some(self.take(len)?.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    }

    fn line(&mut self) -> Option<&'a str> {
        let len = self.program.get(self.at..)?.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(self.take(len)?).ok()?;
        self.at += 1;
        Some(line)
    }

    fn text(&mut self, len: usize) -> Option<Thing> {
        let len = self.number(len)?;
        std::str::from_utf8(self.take(len)?).ok().map(|text| Thing::Text(text.into()))
    }

    fn pop(&mut self) -> Option<Thing> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor { self.stack.pop() } else { None }
    }

    fn marked(&mut self) -> Option<Vec<Thing>> {
        let mark = self.marks.pop()?;
        Some(self.stack.split_off(mark))
    }

    /// One step. None: it is damaged; an error: it is something that no file of tensors needs.
    fn step(&mut self, code: u8) -> Result<Option<()>, String> {
        match self.known(code) {
            Some(Ok(thing)) => {
                self.stack.push(thing);
                Ok(Some(()))
            }
            Some(Err(found)) => Err(found),
            None => self.change(code),
        }
    }

    /// A step that puts something on the stack; none if it is another, or damaged.
    fn known(&mut self, code: u8) -> Option<Result<Thing, String>> {
        Some(Ok(match code {
            b'N' => Thing::Nothing,
            0x88 | 0x89 => Thing::Bool,
            b'K' => Thing::Int(self.number(1)? as i64),
            b'M' => Thing::Int(self.number(2)? as i64),
            b'J' => Thing::Int(i64::from(self.number(4)? as u32 as i32)),
            0x8a => {
                let len = self.number(1).filter(|len| (1..=8).contains(len))?;
                let shift = 64 - 8 * len as u32;
                Thing::Int(((self.number(len)? as u64) << shift) as i64 >> shift)
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            b')' => tuple(Vec::new())?,
            b't' => tuple(self.marked()?)?,
            0x85..=0x87 => {
                let mut things = Vec::new();
                for _ in 0..code - 0x84 {
                    things.insert(0, self.pop()?);
                }
                tuple(things)?
            }
            b']' => Thing::List,
            b'}' => self.dict(),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                return Some(named(&format!("{module} {name}")));
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Thing::Text(name), Thing::Text(module)) => return Some(named(&format!("{module} {name}"))),
                _ => return None,
            },
            b'h' => {
                let place = self.number(1)?;
                self.memo.get(&place)?.clone()
            }
            b'j' => {
                let place = self.number(4)?;
                self.memo.get(&place)?.clone()
            }
            b'Q' => {
                let Thing::Tuple(tuple) = self.pop()? else { return None };
                return Some(storage(&tuple.parts));
            }
            b'R' => {
                let (Thing::Tuple(given), Thing::Named(name)) = (self.pop()?, self.pop()?) else { return None };
                let given = &given.parts;
                match &*name {
                    "collections OrderedDict" if given.is_empty() => self.dict(),
                    "torch._utils _rebuild_tensor_v2" => rebuilt(given)?,
                    "torch._utils _rebuild_parameter" => match given.first()? {
                        tensor @ Thing::Tensor(_) => tensor.clone(),
                        _ => return None,
                    },
                    _ => return Some(Err(format!("a pickle that calls {name}"))),
                }
            }
            _ => return None,
        }))
    }

    /// A step that changes what is there.
    fn change(&mut self, code: u8) -> Result<Option<()>, String> {
        const READ: &[u8] = b"NKMJX)t]}chjQR\x88\x89\x8a\x8c\x85\x86\x87\x93";
        if READ.contains(&code) {
            return Ok(None);
        }
        let done = match code {
            0x80 => self.take(1).map(drop),
            // A frame's length, which says nothing.
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Some(())
            }
            b'q' => self.number(1).and_then(|place| self.remember(place)),
            b'r' => self.number(4).and_then(|place| self.remember(place)),
            0x94 => self.remember(self.memo.len()),
            b's' => self.pop().zip(self.pop()).and_then(|(value, key)| self.insert(vec![key, value])),
            b'u' => self.marked().and_then(|things| self.insert(things)),
            b'a' => self.pop().map(drop),
            b'e' => self.marked().map(drop),
            // Of a state dictionary: versions of its modules.
            b'b' => self.pop().filter(|_| matches!(self.stack.last(), Some(Thing::Dict(_)))).map(drop),
            _ => return Err(format!("a pickle with step {code:#04x}, which no file of tensors has")),
        };
        Ok(done)
    }

    fn dict(&mut self) -> Thing {
        self.dicts.push(Vec::new());
        Thing::Dict(self.dicts.len() - 1)
    }

    fn remember(&mut self, place: usize) -> Option<()> {
        let thing = self.stack.last()?.clone();
        self.memo.insert(place, thing);
        Some(())
    }

    /// Pairs of keys and values into the dictionary on top of the stack.
    fn insert(&mut self, things: Vec<Thing>) -> Option<()> {
        let Some(Thing::Dict(dict)) = self.stack.last() else { return None };
        let dict = self.dicts.get_mut(*dict)?;
        let mut things = things.into_iter();
        while let Some(key) = things.next() {
            dict.push((key, things.next()?));
        }
        Some(())
    }
}

/// None if tuples are too deep in one another.
fn tuple(parts: Vec<Thing>) -> Option<Thing> {
    const DEEPEST: usize = 8;
    let depth = |thing: &Thing| if let Thing::Tuple(tuple) = thing { tuple.depth } else { 0 };
    let depth = 1 + parts.iter().map(depth).max().unwrap_or(0);
    (depth <= DEEPEST).then(|| Thing::Tuple(Rc::new(Tuple { parts, depth })))
}

/// What a program may name.
fn named(name: &str) -> Result<Thing, String> {
    let known = ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"];
    match known.contains(&name) || name.starts_with("torch ") && name.ends_with("Storage") {
        true => Ok(Thing::Named(name.into())),
        false => Err(format!("a pickle that names {name}, which is no tensor's")),
    }
}

/// ("storage", type, key, device, number of values)
fn storage(parts: &[Thing]) -> Result<Thing, String> {
    match parts {
        [Thing::Text(kind), Thing::Named(ty), Thing::Text(key), ..] if &**kind == "storage" => {
            match Format::named(ty) {
                Some(format) => Ok(Thing::Storage(Rc::new(Storage { format, key: key.to_string() }))),
                None => Err(format!("tensors of {ty}, not of floats")),
            }
        }
        _ => Err("a pickle with storages of an unknown kind".into()),
    }
}

/// (storage, first value, shape, strides, …)
fn rebuilt(given: &[Thing]) -> Option<Thing> {
    let [Thing::Storage(storage), Thing::Int(first), Thing::Tuple(shape), Thing::Tuple(strides), ..] = given else {
        return None;
    };
    let sizes = |things: &[Thing]| -> Option<Vec<usize>> {
        let one = |thing: &Thing| match thing {
            Thing::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        things.iter().map(one).collect()
    };
    let (shape, strides) = (sizes(&shape.parts)?, sizes(&strides.parts)?);
    let first = usize::try_from(*first).ok()?;
    (shape.len() == strides.len() && shape.len() <= 8).then_some(())?;
    Some(Thing::Tensor(Rc::new(Tensor { storage: storage.clone(), first, shape, strides })))
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
