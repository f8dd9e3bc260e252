//! Registers that wgmma uses asynchronously: who may touch them, and when.
//!
//! From the issue of a wgmma until a `wait_group` that covers it, its accumulators and the registers of A are the
//! hardware's. A register that anything else has touched needs a `wgmma.fence` before the next wgmma; so does the first
//! wgmma of all. Products of one shape that follow each other on the same accumulators need none.

use crate::finding::Kind;
use crate::memory::Fault;
use crate::readers::Id;

/// How a wgmma uses a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Left,
    /// An accumulator of products of so many columns.
    Accumulator(usize),
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    /// The wgmma that uses it.
    flight: Option<(Id, Use)>,
    /// An instruction has read or written it since the last `wgmma.fence`.
    touched: bool,
    /// A wgmma has been issued on it since the last `wgmma.fence`.
    issued: bool,
}

impl Guard {
    pub fn fence(&mut self) {
        (self.touched, self.issued) = (false, false);
    }

    /// An instruction other than wgmma reads or writes the register.
    pub fn touch(&mut self) -> Result<(), Box<Fault>> {
        self.touched = true;
        if self.flight.is_none() {
            return Ok(());
        }
        let text = "a register that a wgmma uses, without a wait_group that covers it";
        Err(Fault::new(Kind::AsyncInFlight, text))
    }

    /// A wgmma is about to use it.
    pub fn issue(&mut self, id: Id, how: Use) -> Result<(), Box<Fault>> {
        let unfenced = |what: &str| {
            let text = format!("wgmma uses a register {what}, with no wgmma.fence between");
            Err(Fault::new(Kind::Unfenced, text))
        };
        if self.touched {
            return unfenced("that other instructions have touched");
        }
        match (self.flight, how) {
            (Some((_, Use::Accumulator(_))), Use::Left) => {
                let text = "wgmma takes accumulators as A without a wait_group that covers them";
                return Err(Fault::new(Kind::AsyncInFlight, text));
            }
            (Some((_, before)), how) if before != how && self.issued => {
                return unfenced("of a wgmma of another shape");
            }
            _ => {}
        }
        self.flight = Some((id, how));
        self.issued = true;
        Ok(())
    }

    /// A wgmma has been waited for.
    pub fn done(&mut self, id: Id) {
        if self.flight.is_some_and(|(flight, _)| flight == id) {
            self.flight = None;
        }
    }
}
