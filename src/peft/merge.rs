//! Merging: what a method adds to a layer is put into the layer's own weight, so that the base model's class computes the
//! same without the method.
//!
//! * LoRA: `W + s·B·A`; on an embedding `W + s·(B·A)ᵀ`; of its bias, `b + s·b_B`.
//! * DoRA: `m∘(W + s·B·A) / ‖W + s·B·A‖`, the norm of each row.
//! * IA3: rows, or columns before a feed-forward layer, times `l`.

use std::collections::{BTreeMap, BTreeSet};

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

    /// A tensor that has no place in any weight.
    pub fn left(&self) -> Option<&str> {
        self.tensors.keys().map(String::as_str).find(|name| !self.used.contains(*name))
    }
}

/// A weight of the base model that is being merged into.
pub struct Target<'a> {
    /// Its name and role in the base model.
    pub w: WeightRef<'a>,
    /// `[out, in]` or `[n]`, as the graph has it.
    pub shape: &'a [usize],
    /// Its values; none where only the tensors that are merged into it are asked for.
    pub values: &'a mut [f32],
}

impl Target<'_> {
    fn rows(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        let columns = self.shape.last().copied().unwrap_or(1).max(1);
        self.values.chunks_exact_mut(columns)
    }
}

/// Merges LoRA, DoRA and trained tokens into a weight.
pub(super) fn low_rank(config: &AdapterConfig, target: &mut Target, own: &mut Own) -> Result<()> {
    let module = target.w.module();
    if target.w.is_bias() {
        if let Some(bias) = own.take(&files::lora_bias(module)) {
            let scale = config.spec(module)?.scale;
            target.values.iter_mut().zip(&bias.data).for_each(|(b, x)| *b += scale * x);
        }
        return Ok(());
    }
    if let (Some(a), Some(b)) = (own.take(&files::lora_a(module)), own.take(&files::lora_b(module))) {
        let (rank, columns) = (a.shape[0], a.shape[1]);
        let scale = f64::from(config.spec(module)?.scale);
        let magnitude = own.take(&files::magnitude(module));
        let mut sum = vec![0f64; columns];
        for (o, row) in target.rows().enumerate() {
            sum.iter_mut().zip(row.iter()).for_each(|(sum, w)| *sum = f64::from(*w));
            for (r, a) in a.data.chunks_exact(columns).enumerate() {
                let b = scale * f64::from(b.data[o * rank + r]);
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
            }
            let gain = magnitude.map_or(1.0, |m| {
                let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
                f64::from(m.data[o]) / norm
            });
            row.iter_mut().zip(&sum).for_each(|(w, sum)| *w = (sum * gain) as f32);
        }
    }
    if let (Some(a), Some(b)) = (own.take(&files::embedding_a(module)), own.take(&files::embedding_b(module))) {
        let (rank, vocab) = (a.shape[0], a.shape[1]);
        let scale = config.spec(module)?.scale;
        for (token, row) in target.rows().enumerate() {
            for (w, b) in row.iter_mut().zip(b.data.chunks_exact(rank)) {
                *w += scale * b.iter().enumerate().map(|(r, b)| b * a.data[r * vocab + token]).sum::<f32>();
            }
        }
    }
    let ids = config.tokens.as_ref().and_then(|tokens| tokens.of(module, target.w.role == Role::Embed));
    if let (Some(ids), Some(rows)) = (ids, own.take(&files::tokens(module))) {
        let columns = rows.shape.last().copied().unwrap_or(1).max(1);
        let mut all: Vec<&mut [f32]> = target.rows().collect();
        for (&id, row) in ids.iter().zip(rows.data.chunks_exact(columns)) {
            if let Some(to) = all.get_mut(id) {
                to.copy_from_slice(row);
            }
        }
    }
    Ok(())
}

/// Multiplies the rows of a weight, or its columns where the vector is of its input, `[1, in]`, by a vector; a bias has
/// its values multiplied by that of rows, `[out, 1]`.
pub(super) fn scaled(target: &mut Target, l: &HostTensor) {
    let of_input = l.shape[0] == 1 && l.data.len() > 1;
    match (target.w.is_bias(), of_input) {
        (true, true) => {}
        (true, false) => target.values.iter_mut().zip(&l.data).for_each(|(b, l)| *b *= l),
        (false, true) => target.rows().for_each(|row| row.iter_mut().zip(&l.data).for_each(|(w, l)| *w *= l)),
        (false, false) => target.rows().zip(&l.data).for_each(|(row, l)| row.iter_mut().for_each(|w| *w *= l)),
    }
}
