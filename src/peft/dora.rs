//! DoRA (Liu et al. 2024, arXiv:2402.09353): LoRA whose weight `W + s·B·A` keeps its directions, while the norms of its
//! rows are trained as a tensor of their own.
//!
//! `y = g∘(W x + s·B A x) + bias` with `g = m / ‖W + s·B·A‖`, the norm of each row. m starts as that norm, so g starts
//! at 1; the norm counts as a constant in the gradient (section 4.3). With dropout, `x̃ = dropout(x)`, Hugging Face PEFT
//! (`tuners/lora/dora.py`) computes `y = W x + bias + (g − 1)∘W x̃ + g∘s·B A x̃`, which is
//! `W(x − x̃) + bias + g∘(W x̃ + s·B A x̃)`: two products with W, as many as PEFT has.

use super::files;
use crate::error::Result;
use crate::graph::Val;
use crate::nn::{Init, Linear, LowRank, Next, Nn, RowNorms, Site};
use crate::ops::Lora as Spec;

/// The linear layer at `site` with a low-rank part.
pub(super) fn linear(nn: &mut Nn, site: &Site, layer: Linear, low_rank: LowRank, next: Next) -> Result<Val> {
    let Linear { x, w, bias, low_rank: others } = layer;
    let LowRank { spec: Spec { scale, dropout }, a, b } = low_rank;
    let path = &site.path;
    let norms = RowNorms { w, a, b, scale };
    let magnitude = nn.adapter(&files::magnitude(path), &[nn.g.shape(w)[0]], Init::RowNorms(norms));
    // Where nothing is trained the norms are the same for every token: they are computed once, when weights are loaded.
    let norm = match nn.live {
        true => nn.g.dora_norm(w, a, b, scale)?,
        false => nn.row_norms(&format!("{path}.dora_norm"), norms),
    };
    let gain = nn.g.div_row(magnitude, norm)?;
    let (x, rest) = match dropout {
        None => (x, None),
        Some(drop) => {
            let rng = nn.rng();
            let kept = nn.g.dropout(x, rng, drop)?;
            let minus_one = nn.constant("minus_one", &[1], || vec![-1.0]);
            let minus_kept = nn.g.scale(kept, minus_one)?;
            let dropped = nn.g.add(x, minus_kept)?;
            (kept, Some(next.linear(nn, site, Linear { x: dropped, w, bias, low_rank: Vec::new() })?))
        }
    };
    let low_rank = [LowRank { spec: Spec { scale, dropout: None }, a, b }].into_iter().chain(others).collect();
    let directed = next.linear(nn, site, Linear { x, w, bias: None, low_rank })?;
    let y = nn.g.mul_row(directed, gain)?;
    match (rest, bias) {
        (Some(rest), _) => nn.g.add(rest, y),
        (None, Some(bias)) => nn.g.add_row(y, bias, 1.0),
        (None, None) => Ok(y),
    }
}
