//! The data that a run's settings name.

use crate::config::{RunConfig, Sources};
use crate::data::source::{Data, STDIN};
use crate::data::split::Split;
use crate::error::{Error, Result};

/// What a run learns from and what it is evaluated on.
pub struct RunData {
    /// What is learnt from.
    pub train: Data,
    /// What is evaluated on.
    pub eval: Option<Data>,
}

impl RunData {
    /// Opens all of it: what is wrong with files of data is said before anything takes its time.
    pub fn open(config: &RunConfig) -> Result<RunData> {
        let data = config.need_data()?;
        if let Some(eval) = &config.eval_data
            && [data, eval].iter().all(|sources| sources.0.iter().any(|source| source == STDIN))
        {
            return Err(Error::config("eval-data", "standard input, as for data", "a file, or --split 0.05"));
        }
        let train = open(config, data)?;
        let eval = match (&config.eval_data, config.split) {
            (Some(sources), _) => Some(open(config, sources)?),
            (None, Some(share)) => Some(train.side(Some(Split { share, held_out: true }))),
            (None, None) => None,
        };
        if let Some(part) =
            eval.iter().flat_map(Data::parts).find(|part| part.weight.is_some() && config.split.is_none())
        {
            let found = format!("a weight of {}", part.name);
            return Err(Error::config("eval-data", found, "none: all rows are evaluated on"));
        }
        let split = config.split.map(|share| Split { share, held_out: false });
        Ok(RunData { train: train.side(split), eval })
    }

    /// The same, or none if the settings name no data to learn from.
    pub fn of(config: &RunConfig) -> Result<Option<RunData>> {
        config.data.is_some().then(|| RunData::open(config)).transpose()
    }

    /// What is read, and as what.
    pub fn about(&self) -> String {
        match (&self.eval, self.train.split()) {
            (_, Some(split)) => format!("data {}, of which {} is held out", self.train, split.share),
            (Some(eval), None) => format!("data {}; evaluated on {eval}", self.train),
            (None, None) => format!("data {}", self.train),
        }
    }
}

/// The data that `sources` name.
pub fn open(config: &RunConfig, sources: &Sources) -> Result<Data> {
    Data::open(&sources.0, config.format.map(|format| format.0), config.columns())
}
