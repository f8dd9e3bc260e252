//! Vector clocks of the host and the streams.

/// The host is 0; each stream has a number of its own, never given again.
pub type Actor = usize;
pub const HOST: Actor = 0;

/// How far into each actor's work something is known to come after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(Vec<u32>);

impl Clock {
    pub fn at(&self, actor: Actor) -> u32 {
        self.0.get(actor).copied().unwrap_or(0)
    }

    /// Comes after everything that `other` comes after.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, &theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(theirs);
        }
    }

    /// One more step of `actor`; its time.
    pub fn tick(&mut self, actor: Actor) -> u32 {
        if self.0.len() <= actor {
            self.0.resize(actor + 1, 0);
        }
        self.0[actor] += 1;
        self.0[actor]
    }
}
