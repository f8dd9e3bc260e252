//! A model that does not train, on a device, with an adapter or without.

use std::sync::Arc;

use crate::backend;
use crate::base::Base;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::peft::{self, Frozen, Method};
use crate::run::micro::{Micro, Steps};
use crate::run::options::options;
use crate::session::{Options, Planned, Session};
use crate::tasks::Task;

/// The model with the adapter of the settings, loaded, and what there is to say of them; `steps` are those that are to be
/// evaluated, if that is what it is for, and `wanted` says what else. A head of random weights is an error.
pub fn open(
    config: &RunConfig,
    base: &Arc<Base>,
    task: &dyn Task,
    steps: Option<&Steps>,
    wanted: impl FnOnce(Options) -> Options,
) -> Result<(Session, Vec<String>)> {
    let (method, tensors): (Box<dyn Method>, _) = match &config.adapter {
        Some(dir) => {
            let opened = peft::open(dir)?;
            (opened.method, Some((dir, opened.tensors)))
        }
        None => (Box::new(Frozen), None),
    };
    let backend = backend::open(&config.device)?;
    let config = &config.on(backend.caps());
    let micro = steps.map_or_else(|| Micro::fixed(config), |s| Micro::fitted(config, task, &[&*method], s));
    let evaluate = steps.is_some();
    let options = wanted(Options { train: false, evaluate, step_tokens: None, ..options(config, &micro) });
    let mut planned = Planned::of(base, vec![method], task, options, backend)?;
    if let Some((dir, tensors)) = &tensors {
        peft::check(dir, tensors, &planned.expected(tensors)?)?;
    }
    let tensors = tensors.map(|(_, tensors)| tensors);
    if let Some(name) = planned.drawn(tensors.as_ref()) {
        let found = format!("no {name} in the model, nor in an adapter");
        let expected = format!("a model that was trained for task {}", task.def().name);
        return Err(Error::file(&base.path, found, expected));
    }
    let mut notes: Vec<String> = base.notes.iter().chain(planned.notes()).cloned().collect();
    planned.tune(&config.tune, &mut |text| {
        notes.push(text);
        Ok(())
    })?;
    Ok((planned.start(tensors.as_ref(), &mut |_, _| Ok(()))?, notes))
}
