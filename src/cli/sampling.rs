//! The flags of how tokens are drawn, for the commands that write text.

use trimtab::generate::sample::Sampling;

use super::Stop;

#[derive(clap::Args)]
pub struct SamplingFlags {
    /// Logits are divided by it; 0 takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the likeliest tokens that together reach this probability; 1 is all
    #[arg(long, value_name = "X", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from this many likeliest tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
}

impl SamplingFlags {
    /// What they mean, with a seed.
    pub fn with_seed(&self, seed: u64) -> Result<Sampling, Stop> {
        let SamplingFlags { temperature, top_p, top_k } = *self;
        let sampling = Sampling { temperature, top_p, top_k, seed };
        sampling.check().map(|()| sampling).map_err(Stop::Usage)
    }
}
