//! Language modelling, from what a loss adds up.

use super::{Values, ratio};

/// `perplexity`, exp of the mean loss of a token, and `accuracy`, the share of tokens whose best guess was right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Language {
    loss: f64,
    tokens: u64,
    right: u64,
}

impl Language {
    /// No tokens yet.
    pub fn new() -> Language {
        Language::default()
    }

    /// Adds the summed loss (in nats) of a number of tokens, of which `right` were guessed.
    pub fn add(&mut self, loss: f64, tokens: u64, right: u64) {
        self.loss += loss;
        self.tokens += tokens;
        self.right += right;
    }

    /// The perplexity of no tokens is NaN; one that is too large for a number is infinite.
    pub fn finish(&self) -> Values {
        let perplexity = (self.loss / self.tokens as f64).exp();
        vec![("perplexity", perplexity), ("accuracy", ratio(self.right, self.tokens))]
    }
}
