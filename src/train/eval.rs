//! Evaluation: forward, loss and output of a task, without gradients or dropout. It is a phase of its own, beside those
//! that train on the same weights or alone.

use crate::data::pack::MicroBatch;
use crate::error::Result;
use crate::exec::Exec;
use crate::graph::{Phase, Val};
use crate::models::Model;
use crate::nn::{Axis, Inputs, Nn};
use crate::tasks::{Shape, Task};
use crate::train::feed::Feed;

/// The leaves of an evaluation that the host writes and reads.
#[derive(Clone)]
pub struct Evaluation {
    /// What a micro-batch holds.
    pub inputs: Inputs,
    pub(crate) feed: Feed,
    /// The loss, summed over its units.
    loss: Val,
    output: Option<(Axis, Val)>,
}

/// What was computed of a micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// The loss summed over its units.
    pub loss: f64,
    /// Number of units that the loss is a sum over: trained tokens, rows, or labels.
    pub units: usize,
    /// Of each sequence: the number of its example, and the rows of the output that are its own (virtual tokens and
    /// padding are not).
    pub outputs: Vec<(usize, Vec<f32>)>,
}

impl Evaluation {
    /// Appends the phase EVAL, for micro-batches of `shape`.
    pub fn build(nn: &mut Nn, model: &dyn Model, task: &dyn Task, shape: Shape) -> Result<Evaluation> {
        nn.begin(Phase::EVAL, task.layout(shape))?;
        let one = nn.one();
        let outcome = task.forward(nn, model, one)?;
        let loss = nn.output("eval.loss", outcome.loss)?;
        let output = match outcome.output {
            Some((axis, val)) => Some((axis, nn.output("eval.output", val)?)),
            None => None,
        };
        let inputs = nn.inputs();
        Ok(Evaluation { feed: Feed::new(&nn.g, &inputs), inputs, loss, output })
    }

    /// Computes a micro-batch that was packed for the layout of `inputs`, or for that of a smaller size.
    pub fn run(&self, exec: &mut Exec, batch: &MicroBatch) -> Result<Evaluated> {
        let size = self.feed.check(batch)?;
        self.feed.write(exec, batch)?;
        exec.run_at(Phase::EVAL, size)?;
        let loss = f64::from(exec.download_f32(self.loss)?[0]);
        let mut outputs = Vec::with_capacity(batch.examples.len());
        if let Some((axis, val)) = self.output {
            let width = exec.graph.ty(val).cols();
            let all = exec.download_f32(val)?;
            for (index, (&example, placed)) in batch.examples.iter().zip(&batch.placed).enumerate() {
                let rows = match axis {
                    Axis::Sequence => index..index + 1,
                    // No task has outputs of keys.
                    Axis::Key(_) => 0..0,
                    Axis::Token(stream) => {
                        let at = placed.get(stream.0).copied().unwrap_or_default();
                        at.start.saturating_add(at.lead)..at.start.saturating_add(at.len).saturating_sub(at.pad)
                    }
                };
                let own = all.get(rows.start.saturating_mul(width)..rows.end.saturating_mul(width)).unwrap_or_default();
                outputs.push((example, own.to_vec()));
            }
        }
        Ok(Evaluated { loss, units: batch.trained, outputs })
    }
}
