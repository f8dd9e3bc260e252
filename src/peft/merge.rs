//! Merging: what a method adds to a layer is put into the layer's own weight, so that the base model's class computes the
//! same without the method.
//!
//! * LoRA: `W + s·B·A`; on an embedding `W + s·(B·A)ᵀ`; of its bias, `b + s·b_B`.
//! * DoRA: `m∘(W + s·B·A) / ‖W + s·B·A‖`, the norm of each row.
//! * IA3: rows, or columns before a feed-forward layer, times `l`.
//! * Trained tokens: their rows. A head that is tied to the embedding has them too.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{AdapterConfig, files};
use crate::error::Result;
use crate::nn::{Role, WeightRef};
use crate::weights::HostTensor;

/// The trained tensors of a method, by their names in its file, as the graph has them; and which of them were merged.
pub struct Own<'a> {
    tensors: &'a BTreeMap<String, HostTensor>,
    used: BTreeSet<String>,
}

impl<'a> Own<'a> {
    /// None of them is merged yet.
    pub fn new(tensors: &'a BTreeMap<String, HostTensor>) -> Own<'a> {
        Own { tensors, used: BTreeSet::new() }
    }

    /// The tensor of a name, which is then merged.
    pub fn take(&mut self, name: &str) -> Option<&'a HostTensor> {
        let found = self.tensors.get(name)?;
        self.used.insert(name.to_string());
        Some(found)
    }

    /// How many were merged so far.
    pub fn merged(&self) -> usize {
        self.used.len()
    }

    /// A tensor that has no place in any weight.
    pub fn left(&self) -> Option<&str> {
        self.tensors.keys().map(String::as_str).find(|name| !self.used.contains(*name))
    }
}

/// A weight of the base model that is being merged into, or some of its rows: what becomes of a row depends on no other.
pub struct Target<'a> {
    /// Its name and role in the base model.
    pub w: WeightRef<'a>,
    /// `[out, in]` or `[n]`, as the graph has it.
    pub shape: &'a [usize],
    /// The number of the first row that there is; of a vector, of the first value.
    pub first: usize,
    /// The values of these rows; none where only the tensors that are merged into it are asked for.
    pub values: &'a mut [f32],
}

impl Target<'_> {
    /// Calls `f` with each row and its number, on all threads.
    fn each_row(&mut self, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (columns, first) = (self.shape.last().copied().unwrap_or(1).max(1), self.first);
        self.values.par_chunks_exact_mut(columns).enumerate().for_each(|(i, row)| f(first + i, row));
    }

    /// Calls `f` with each value of a vector and that of `other` which has its number.
    fn each_value(&mut self, other: &[f32], f: impl Fn(&mut f32, f32)) {
        let other = other.get(self.first..).unwrap_or_default();
        self.values.iter_mut().zip(other).for_each(|(x, &y)| f(x, y));
    }
}

/// Merges LoRA, DoRA and trained tokens into a weight.
pub(super) fn low_rank(config: &AdapterConfig, target: &mut Target, own: &mut Own) -> Result<()> {
    let module = target.w.module();
    if target.w.is_bias() {
        if let Some(bias) = own.take(&files::lora_bias(module)) {
            let scale = config.spec(module)?.scale;
            target.each_value(&bias.data, |b, x| *b += scale * x);
        }
        return Ok(());
    }
    if let (Some(a), Some(b)) = (own.take(&files::lora_a(module)), own.take(&files::lora_b(module))) {
        let (rank, columns) = (a.shape[0], a.shape[1]);
        let scale = f64::from(config.spec(module)?.scale);
        let magnitude = own.take(&files::magnitude(module));
        target.each_row(|o, row| {
            let mut sum: Vec<f64> = row.iter().copied().map(f64::from).collect();
            for (r, a) in a.data.chunks_exact(columns).enumerate() {
                let b = scale * f64::from(b.data[o * rank + r]);
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
            }
            let gain = magnitude.map_or(1.0, |m| {
                let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
                f64::from(m.data[o]) / norm
            });
            row.iter_mut().zip(&sum).for_each(|(w, sum)| *w = (sum * gain) as f32);
        });
    }
    if let (Some(a), Some(b)) = (own.take(&files::embedding_a(module)), own.take(&files::embedding_b(module))) {
        let (rank, vocab) = (a.shape[0], a.shape[1]);
        let scale = config.spec(module)?.scale;
        target.each_row(|token, row| {
            for (w, b) in row.iter_mut().zip(b.data.chunks_exact(rank)) {
                *w += scale * b.iter().enumerate().map(|(r, b)| b * a.data[r * vocab + token]).sum::<f32>();
            }
        });
    }
    let ids = config.tokens.as_ref().and_then(|tokens| tokens.of(module, target.w.role == Role::Embed));
    if let (Some(ids), Some(rows)) = (ids, own.take(&files::tokens(module))) {
        trained_rows(target, ids, rows);
    }
    Ok(())
}

/// Puts trained rows of a table in the place of its own.
pub(super) fn trained_rows(target: &mut Target, ids: &[usize], rows: &HostTensor) {
    let columns = rows.shape.last().copied().unwrap_or(1).max(1);
    for (&id, row) in ids.iter().zip(rows.data.chunks_exact(columns)) {
        let to = id.checked_sub(target.first).and_then(|at| target.values.chunks_exact_mut(columns).nth(at));
        if let Some(to) = to {
            to.copy_from_slice(row);
        }
    }
}

/// Multiplies the rows of a weight, or its columns where the vector is of its input, `[1, in]`, by a vector; a bias has
/// its values multiplied by that of rows, `[out, 1]`.
pub(super) fn scaled(target: &mut Target, l: &HostTensor) {
    let of_input = l.shape[0] == 1 && l.data.len() > 1;
    match (target.w.is_bias(), of_input) {
        (true, true) => {}
        (true, false) => target.each_value(&l.data, |b, l| *b *= l),
        (false, true) => target.each_row(|_, row| row.iter_mut().zip(&l.data).for_each(|(w, l)| *w *= l)),
        (false, false) => target.each_row(|o, row| {
            // A vector of another length is refused when the adapter is checked.
            let l = l.data.get(o).copied().unwrap_or(1.0);
            row.iter_mut().for_each(|w| *w *= l);
        }),
    }
}
