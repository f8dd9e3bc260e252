//! Tables of rotary angles, with the context extensions that Hugging Face models use.

use std::f64::consts::PI;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Which angles a model rotates by: config.json's `rope_theta`, `rope_scaling` or `rope_parameters`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Features of a head that are rotated: `head_dim · partial_rotary_factor`.
    pub dim: usize,
    /// The config's `max_position_embeddings`.
    pub max_positions: usize,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How the angles are stretched for longer contexts: the config's `rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies `theta^(−2i/dim)` as they are.
    Default,
    /// Frequencies divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// The config's `factor`.
        factor: f64,
    },
    /// A larger theta for sequences beyond `max_positions` (NTK-aware, by u/bloc97 and u/emozilla).
    Dynamic {
        /// The config's `factor`.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// What long wavelengths' frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context of the training before: the config's `original_max_position_embeddings`.
        original_max_positions: usize,
    },
    /// Low frequencies divided, high ones kept, a ramp between, and cosines and sines scaled.
    Yarn(Yarn),
    /// A factor for each frequency, one list up to `original_max_positions`, the other beyond (Ding et al. 2024).
    Longrope {
        /// Divisors of the `dim / 2` frequencies for sequences of up to `original_max_positions` tokens.
        short_factor: Vec<f64>,
        /// Divisors of the `dim / 2` frequencies for longer sequences.
        long_factor: Vec<f64>,
        /// None: `max_positions / original_max_positions`.
        factor: Option<f64>,
        /// Multiplies cosines and sines. None: derived from `factor`.
        attention_factor: Option<f64>,
        /// Context of the training before: the config's `original_max_position_embeddings`.
        original_max_positions: usize,
    },
}

/// YaRN (Peng et al. 2023). Absent fields of the config are None, or their defaults in [`Yarn::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// None: `max_positions / original_max_positions`.
    pub factor: Option<f64>,
    /// Context of the training before: the config's `original_max_position_embeddings`.
    pub original_max_positions: usize,
    /// Multiplies cosines and sines. None: derived from `factor` and the two mscales.
    pub attention_factor: Option<f64>,
    /// Weight of ln(factor) in the numerator of the attention factor; it counts only together with `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// The same in the denominator.
    pub mscale_all_dim: Option<f64>,
    /// Turns over the original context at and above which a frequency is kept.
    pub beta_fast: f64,
    /// Turns over the original context at and below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Whether the ramp starts and ends at whole dimensions.
    pub truncate: bool,
}

impl Yarn {
    /// The defaults of transformers for all other fields.
    pub fn new(factor: Option<f64>, original_max_positions: usize) -> Yarn {
        Yarn {
            factor,
            original_max_positions,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        }
    }
}

impl RopeSpec {
    /// Without scaling.
    pub fn new(theta: f64, dim: usize, max_positions: usize) -> RopeSpec {
        RopeSpec { theta, dim, max_positions, scaling: RopeScaling::Default }
    }

    /// The longest sequence that is rotated as short ones are, if longer ones are rotated by other angles.
    pub fn short_positions(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Dynamic { .. } => Some(self.max_positions),
            RopeScaling::Longrope { original_max_positions, .. } => Some(original_max_positions),
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let positive = |key: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(Error::config(key, value.to_string(), "a positive number")),
        };
        let lists = |key: &str, factors: &[f64]| {
            factors.iter().try_for_each(|&f| positive(key, f))?;
            match factors.len() == self.dim / 2 {
                true => Ok(()),
                false => Err(Error::config(key, format!("{} factors", factors.len()), format!("{}", self.dim / 2))),
            }
        };
        let original = |value: usize| positive("original_max_position_embeddings", value as f64);
        positive("rope_theta", self.theta)?;
        positive("max_position_embeddings", self.max_positions as f64)?;
        if self.dim == 0 || !self.dim.is_multiple_of(2) {
            return Err(Error::config("head_dim", self.dim.to_string(), "an even number of rotated features"));
        }
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", *factor),
            RopeScaling::Dynamic { factor } => {
                if self.dim <= 2 {
                    return Err(Error::config("head_dim", self.dim.to_string(), "more than 2 with dynamic scaling"));
                }
                positive("rope_scaling.factor", *factor)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.low_freq_factor", *low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", *high_freq_factor)?;
                original(*original_max_positions)
            }
            RopeScaling::Yarn(y) => {
                positive("rope_scaling.factor", y.factor.unwrap_or(1.0))?;
                positive("rope_scaling.beta_fast", y.beta_fast)?;
                positive("rope_scaling.beta_slow", y.beta_slow)?;
                if self.theta == 1.0 {
                    return Err(Error::config("rope_theta", "1", "another base with YaRN"));
                }
                original(y.original_max_positions)
            }
            RopeScaling::Longrope { short_factor, long_factor, factor, original_max_positions, .. } => {
                positive("rope_scaling.factor", factor.unwrap_or(1.0))?;
                lists("rope_scaling.short_factor", short_factor)?;
                lists("rope_scaling.long_factor", long_factor)?;
                original(*original_max_positions)
            }
        }
    }

    /// The frequencies `theta^(−2i/dim)`, stretched, and what cosines and sines are multiplied by, for sequences of
    /// up to `positions` tokens. Follows transformers' `modeling_rope_utils`, in f32 where that computes in f32.
    pub fn frequencies(&self, positions: usize) -> Result<(Vec<f32>, f64)> {
        self.check()?;
        let half = self.dim / 2;
        let exponent = |i: usize| (2 * i) as f32 / self.dim as f32;
        let power = |base: f64, i: usize| base.powf(exponent(i) as f64) as f32;
        let plain = |base: f64| (0..half).map(|i| 1.0 / power(base, i)).collect::<Vec<f32>>();
        let ratio = |original: usize| self.max_positions as f64 / original as f64;
        Ok(match &self.scaling {
            RopeScaling::Default => (plain(self.theta), 1.0),
            RopeScaling::Linear { factor } => (plain(self.theta).iter().map(|f| f / *factor as f32).collect(), 1.0),
            RopeScaling::Dynamic { factor } => {
                let n = positions.max(self.max_positions) as f64;
                let stretch = factor * n / self.max_positions as f64 - (factor - 1.0);
                let dim = self.dim as f64;
                (plain(self.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let (low, high) = (*low_freq_factor, *high_freq_factor);
                let context = *original_max_positions as f64;
                let (factor, longest, shortest) = (*factor as f32, (context / low) as f32, (context / high) as f32);
                let stretch = |f: f32| {
                    let wavelength = (2.0 * PI) as f32 / f;
                    if wavelength > longest {
                        f / factor
                    } else if wavelength < shortest {
                        f
                    } else {
                        let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (plain(self.theta).into_iter().map(stretch).collect(), 1.0)
            }
            RopeScaling::Yarn(y) => {
                let factor = y.factor.unwrap_or(ratio(y.original_max_positions));
                let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let attention = y.attention_factor.unwrap_or(match (y.mscale, y.mscale_all_dim) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
                    _ => mscale(1.0),
                });
                // The dimension whose angle makes this many turns over the original context.
                let turns = |n: f64| {
                    let context = y.original_max_positions as f64;
                    self.dim as f64 * (context / (n * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (turns(y.beta_fast), turns(y.beta_slow));
                let (low, high) = if y.truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let stretch = |i: usize| {
                    let ramp = ((i as f32 - low as f32) / width as f32).clamp(0.0, 1.0);
                    let kept = 1.0 - ramp;
                    let p = power(self.theta, i);
                    1.0 / (factor as f32 * p) * (1.0 - kept) + 1.0 / p * kept
                };
                ((0..half).map(stretch).collect(), attention)
            }
            RopeScaling::Longrope { short_factor, long_factor, factor, attention_factor, original_max_positions } => {
                let original = *original_max_positions;
                let factor = factor.unwrap_or(ratio(original));
                let attention = attention_factor.unwrap_or(match factor <= 1.0 || original <= 1 {
                    true => 1.0,
                    false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                });
                let factors = if positions > original { long_factor } else { short_factor };
                let stretch = |i: usize| 1.0 / (factors[i] as f32 * power(self.theta, i));
                ((0..half).map(stretch).collect(), attention)
            }
        })
    }
}

/// The operand `table` of [`ROPE`](super::ROPE) for positions `0..positions`: f32[positions, dim], in each row cosines, then
/// sines, times the attention factor. The angle is the f32 product of position and frequency, as in transformers.
pub fn rope_table(spec: &RopeSpec, positions: usize) -> Result<Vec<f32>> {
    let fill = rope_rows(spec, None, positions)?;
    let mut table = vec![0.0; positions * spec.dim];
    fill(0, &mut table);
    Ok(table)
}

/// The same piece by piece: writes the rows of the table from element `start` on, the start of a row. With `short`, there are as
/// many rows before those, of sequences of up to that many tokens.
pub fn rope_rows(
    spec: &RopeSpec,
    short: Option<usize>,
    positions: usize,
) -> Result<impl Fn(usize, &mut [f32]) + Send + Sync + 'static> {
    let (before, long) = (short.unwrap_or(0), spec.frequencies(positions)?);
    let short = spec.frequencies(short.unwrap_or(positions))?;
    let dim = spec.dim;
    Ok(move |start: usize, out: &mut [f32]| {
        out.par_chunks_mut(dim).with_min_len(256).enumerate().for_each(|(row, out)| {
            let row = start / dim + row;
            let (position, (frequencies, factor)) = match row.checked_sub(before) {
                Some(position) => (position as f32, &long),
                None => (row as f32, &short),
            };
            let (cosines, sines) = out.split_at_mut(dim / 2);
            for ((c, s), f) in cosines.iter_mut().zip(sines).zip(frequencies) {
                let angle = (position * f) as f64;
                *c = (angle.cos() * factor) as f32;
                *s = (angle.sin() * factor) as f32;
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(theta: f64, max_positions: usize, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { theta, dim: 16, max_positions, scaling }
    }

    fn llama3(factor: f64, original_max_positions: usize) -> RopeScaling {
        RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions }
    }

    fn longrope(original_max_positions: usize) -> RopeScaling {
        RopeScaling::Longrope {
            short_factor: vec![1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0],
            long_factor: vec![1.0, 1.1, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0],
            factor: None,
            attention_factor: None,
            original_max_positions,
        }
    }

    /// Distance in units of the last place.
    fn ulps(a: f32, b: f32) -> u32 {
        a.to_bits().abs_diff(b.to_bits())
    }

    /// `inv_freq` and `attention_scaling` of transformers 5.23's LlamaRotaryEmbedding for 32 positions.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let yarn = Yarn::new(Some(4.0), 64);
        let deepseek = Yarn {
            mscale: Some(0.707),
            mscale_all_dim: Some(1.0),
            beta_fast: 16.0,
            beta_slow: 2.0,
            truncate: false,
            ..Yarn::new(Some(40.0), 4096)
        };
        let given = Yarn { attention_factor: Some(1.5), ..Yarn::new(Some(32.0), 4096) };
        let plain: [f64; 8] = [1.0, 0.31622776, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0003162278];
        #[rustfmt::skip]
        let cases = [
            ("default", spec(500000.0, 64, RopeScaling::Default), 1.0,
             [1.0, 0.193922758, 0.0376060307, 0.00729266508, 0.00141421345, 0.000274248188, 5.31829573e-05, 1.03133852e-05]),
            ("linear", spec(10000.0, 64, RopeScaling::Linear { factor: 2.5 }), 1.0,
             [0.400000006, 0.1264911, 0.0399999991, 0.0126491114, 0.00399999972, 0.00126491114, 0.000400000019, 0.000126491112]),
            ("dynamic, short", spec(10000.0, 64, RopeScaling::Dynamic { factor: 2.0 }), 1.0, plain),
            ("dynamic, long", spec(10000.0, 8, RopeScaling::Dynamic { factor: 2.0 }), 1.0,
             [1.0, 0.239481345, 0.057351321, 0.0137345716, 0.00328917382, 0.000787695812, 0.000188638456, 4.51753913e-05]),
            ("llama3", spec(500000.0, 131072, llama3(32.0, 8192)), 1.0,
             [1.0, 0.193922758, 0.0376060307, 0.00729266508, 0.000429556705, 8.57025589e-06, 1.66196742e-06, 3.22293289e-07]),
            ("llama3, small", spec(10000.0, 256, llama3(8.0, 64)), 1.0,
             [1.0, 0.244384587, 0.0130422562, 0.00395284733, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05]),
            ("yarn", spec(10000.0, 256, RopeScaling::Yarn(yarn.clone())), 1.138629436111989,
             [1.0, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05]),
            ("yarn, factor from the lengths", spec(10000.0, 256, RopeScaling::Yarn(Yarn { factor: None, ..yarn })), 1.138629436111989,
             [1.0, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05]),
            ("yarn, mscale", spec(1000000.0, 163840, RopeScaling::Yarn(deepseek)), 0.9210423553163399,
             [1.0, 0.177827939, 0.0316227786, 0.00173821906, 2.49999994e-05, 4.44569832e-06, 7.90569402e-07, 1.40585328e-07]),
            ("yarn, attention factor", spec(150000.0, 131072, RopeScaling::Yarn(given)), 1.5,
             [1.0, 0.225418001, 0.0508132726, 0.00775546534, 0.000914454344, 1.8188337e-05, 4.09997847e-06, 9.24208962e-07]),
            ("longrope, short", spec(10000.0, 256, longrope(64)), 1.1547005383792517,
             [1.0, 0.316227764, 0.095238097, 0.0287479796, 0.00833333284, 0.00243252143, 0.00066666666, 0.000158113893]),
            ("longrope, long", spec(10000.0, 256, longrope(16)), std::f64::consts::SQRT_2,
             [1.0, 0.287479758, 0.0666666701, 0.0158113893, 0.00249999994, 0.000395284733, 6.2500003e-05, 9.88211832e-06]),
        ];
        for (name, spec, factor, want) in &cases {
            let (got, attention) = spec.frequencies(32).unwrap();
            assert!((attention - factor).abs() < 1e-15 * factor, "{name}: attention factor {attention}");
            for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                // torch's pow is within an ulp of the rounded power, and a division or two follow.
                assert!(ulps(got, want as f32) <= 3, "{name}: frequency {i} is {got}, not {want}");
            }
        }
        // The control: another scaling is seen.
        assert!(ulps(cases[0].1.frequencies(32).unwrap().0[4], cases[4].3[4] as f32) > 3);
    }

    #[test]
    fn table_rows_are_cosines_then_sines() {
        // Position 31 of "yarn" above, from the same source.
        let want = [
            1.04155254,
            0.547572196,
            0.0236776583,
            1.10460579,
            1.13521171,
            1.13828754,
            1.13859522,
            1.1386261,
            -0.460049152,
            0.998319387,
            1.13838327,
            0.276266307,
            0.0881554708,
            0.0279023424,
            0.00882428978,
            0.00279051065,
        ];
        let table = rope_table(&spec(10000.0, 256, RopeScaling::Yarn(Yarn::new(Some(4.0), 64))), 32).unwrap();
        assert_eq!(table.len(), 32 * 16);
        for (got, want) in table[31 * 16..].iter().zip(want) {
            assert!((*got as f64 - want).abs() < 31.0 * 1.2e-7 * 1.2, "{got} {want}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            RopeSpec { dim: 7, ..spec(1e4, 64, RopeScaling::Default) },
            RopeSpec { dim: 0, ..spec(1e4, 64, RopeScaling::Default) },
            RopeSpec { dim: 2, ..spec(1e4, 64, RopeScaling::Dynamic { factor: 2.0 }) },
            spec(f64::NAN, 64, RopeScaling::Default),
            spec(1e4, 64, RopeScaling::Linear { factor: 0.0 }),
            spec(1e4, 64, llama3(8.0, 0)),
            spec(1.0, 64, RopeScaling::Yarn(Yarn::new(None, 64))),
            RopeSpec { dim: 8, ..spec(1e4, 64, longrope(64)) },
        ];
        for spec in bad {
            assert!(rope_table(&spec, 4).is_err(), "{spec:?}");
        }
        assert!(rope_table(&spec(1e4, 64, RopeScaling::Default), 4).is_ok());
    }
}
