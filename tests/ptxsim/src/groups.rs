//! Groups of asynchronous operations, as `commit_group` closes them and `wait_group` waits for them.

use std::collections::VecDeque;

use crate::readers::Id;

/// The operations of a warp or a thread that nobody has waited for.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    open: Vec<Id>,
    closed: VecDeque<Vec<Id>>,
}

impl Groups {
    pub fn add(&mut self, id: Id) {
        self.open.push(id);
    }

    pub fn commit(&mut self) {
        self.closed.push_back(std::mem::take(&mut self.open));
    }

    /// Ends all but the last `keep` closed groups. What was never committed does not end.
    pub fn wait(&mut self, keep: usize) -> Vec<Id> {
        let done = self.closed.len().saturating_sub(keep);
        self.closed.drain(..done).flatten().collect()
    }

    pub fn pending(&self) -> bool {
        !self.open.is_empty() || self.closed.iter().any(|g| !g.is_empty())
    }
}
