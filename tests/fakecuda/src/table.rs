//! Handles: numbers that are never given twice, so that a stale one is known.

use std::collections::BTreeMap;

/// Objects of one kind by their handles; what was destroyed leaves its place empty.
pub struct Table<T> {
    kind: &'static str,
    /// Handles of different kinds differ, so that one in the place of another is known.
    first: usize,
    objects: BTreeMap<usize, Option<T>>,
}

impl<T> Table<T> {
    pub fn new(kind: &'static str, first: usize) -> Table<T> {
        Table { kind, first, objects: BTreeMap::new() }
    }

    pub fn add(&mut self, object: T) -> usize {
        let handle = self.first + 16 * self.objects.len();
        self.objects.insert(handle, Some(object));
        handle
    }

    fn missing(&self, handle: usize) -> String {
        match self.objects.contains_key(&handle) {
            true => format!("{} {handle:#x} was destroyed before", self.kind),
            false => format!("{handle:#x} is no {}", self.kind),
        }
    }

    pub fn get(&self, handle: usize) -> Result<&T, String> {
        self.objects.get(&handle).and_then(Option::as_ref).ok_or_else(|| self.missing(handle))
    }

    pub fn get_mut(&mut self, handle: usize) -> Result<&mut T, String> {
        let missing = self.missing(handle);
        self.objects.get_mut(&handle).and_then(Option::as_mut).ok_or(missing)
    }

    pub fn take(&mut self, handle: usize) -> Result<T, String> {
        let missing = self.missing(handle);
        self.objects.get_mut(&handle).and_then(Option::take).ok_or(missing)
    }

    /// Those that live.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.objects.iter().filter_map(|(&handle, object)| Some((handle, object.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.objects.iter_mut().filter_map(|(&handle, object)| Some((handle, object.as_mut()?)))
    }

    /// Destroys all that `which` is true of.
    pub fn clear(&mut self, which: impl Fn(&T) -> bool) {
        for slot in self.objects.values_mut() {
            if slot.as_ref().is_some_and(&which) {
                *slot = None;
            }
        }
    }

    pub fn kind(&self) -> &'static str {
        self.kind
    }
}
