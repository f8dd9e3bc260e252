//! Steps whose loss or gradient was not finite: counted, and the error that ends a run of too many.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::finite::NotFinite;
use crate::train::trainer::StepReport;

/// Steps whose loss or gradient was not finite. The update leaves everything as it was where the gradient is not finite.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Skips {
    /// Since the run began.
    pub all: u64,
    /// Since the last one that was not skipped.
    in_a_row: u64,
}

impl Skips {
    /// Counts a step.
    pub fn count(&mut self, report: &StepReport) {
        let skipped = !report.is_finite();
        self.all += u64::from(skipped);
        self.in_a_row = if skipped { self.in_a_row + 1 } else { 0 };
    }

    /// An error if there were `most` in a row, up to step `step` with this report, or if it is the `last` one of a run that has
    /// come to a loss that is not finite; `find` then says where it left the finite numbers.
    pub fn check(
        &self,
        most: u64,
        (step, last): (u64, bool),
        report: &StepReport,
        find: impl FnOnce() -> Result<Option<NotFinite>>,
    ) -> Result<()> {
        let lost = last && !report.loss.is_finite();
        if self.in_a_row < most && !lost {
            return Ok(());
        }
        let (place, hint) = match find()? {
            Some(found) => (format!("; {found}"), found.hint()),
            None => ("; repeated op by op, all numbers were finite".into(), "a lower lr or a longer warmup".into()),
        };
        let steps = if self.in_a_row == 1 { "1 step".into() } else { format!("{} steps in a row", self.in_a_row) };
        let found = format!(
            "{steps}, up to step {step}, whose loss or gradient is not finite (loss {}, gradient norm {}){place}",
            report.loss, report.grad_norm
        );
        Err(Error::config("max-skips", found, format!("finite numbers; try {hint}. Nothing was written")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::graph::LeafKind;
    use crate::train::finite::Pass;

    fn report(loss: f32, grad_norm: f32) -> StepReport {
        StepReport { loss, grad_norm, tokens: 1, trained: 1 }
    }

    /// The last step of a run whose loss is lost ends it badly; one whose gradient alone was too large for f16 does not.
    #[test]
    fn a_run_does_not_end_in_a_loss_that_is_not_finite() {
        for (last, loss, grad_norm, ends) in [
            (true, f32::NAN, f32::NAN, true),
            (true, f32::INFINITY, 1.0, true),
            (true, 1.0, f32::INFINITY, false),
            (true, 1.0, 1.0, false),
            (false, f32::NAN, f32::NAN, false),
        ] {
            let (mut skips, report) = (Skips::default(), report(loss, grad_norm));
            skips.count(&report);
            let ended = skips.check(10, (3, last), &report, || Ok(None));
            assert_eq!(ended.is_err(), ends, "{last} {loss} {grad_norm}");
        }
    }

    #[test]
    fn skips_in_a_row_end_a_run_and_others_do_not() {
        // (loss, norm, skipped so far, whether three in a row are reached)
        let table = [
            (1.0, f32::NAN, 1, false),
            (f32::INFINITY, 1.0, 2, false),
            (1.0, 1.0, 2, false),
            (1.0, f32::INFINITY, 3, false),
            (f32::NAN, 1.0, 4, false),
            (f32::NAN, f32::NAN, 5, true),
        ];
        let mut skips = Skips::default();
        for (i, (loss, norm, all, ends)) in table.into_iter().enumerate() {
            let report = report(loss, norm);
            skips.count(&report);
            let mut asked = false;
            let ended = skips.check(3, (7, false), &report, || {
                asked = true;
                Ok(None)
            });
            assert_eq!((skips.all, ended.is_err(), asked), (all, ends, ends), "{i}");
        }
    }

    #[test]
    fn the_error_names_the_op_and_fits_what_it_is() {
        let found = NotFinite {
            op: "linear",
            site: "layers.3.mlp.up_proj".into(),
            pass: Pass::Forward,
            micro_batch: 1,
            value: f32::INFINITY,
            dtype: DType::F32,
            operand: None,
        };
        let weight = |kind| Some(("model.norm.weight".to_string(), kind));
        let table = [
            (
                found.clone(),
                "the first inf is in the output of op linear at layers.3.mlp.up_proj, in the forward pass of micro-batch 2",
            ),
            (found.clone(), "a lower lr or a longer warmup"),
            (NotFinite { pass: Pass::Backward, ..found.clone() }, "in the backward pass"),
            (NotFinite { dtype: DType::F16, ..found.clone() }, "dtype f32 or bf16"),
            (NotFinite { value: f32::NAN, ..found.clone() }, "first NaN"),
            (NotFinite { value: f32::NAN, ..found.clone() }, "not defined"),
            (NotFinite { pass: Pass::Update, ..found.clone() }, "in the optimizer's update"),
            (NotFinite { pass: Pass::Update, ..found.clone() }, "squares"),
            (
                NotFinite { operand: weight(LeafKind::Frozen), ..found.clone() },
                "another copy of the model: its model.norm",
            ),
            (NotFinite { operand: weight(LeafKind::Param), ..found.clone() }, "since an earlier step"),
            (NotFinite { operand: weight(LeafKind::Io), ..found }, "other data"),
        ];
        let report = report(f32::NAN, f32::NAN);
        let skips = Skips { all: 1, in_a_row: 1 };
        for (found, part) in table {
            let error = skips.check(1, (4, false), &report, || Ok(Some(found))).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("1 step, up to step 4"), "{part}: {error}");
        }
        // The control: what was not found has no place.
        let error = skips.check(1, (4, false), &report, || Ok(None)).unwrap_err().to_string();
        assert!(!error.contains("op linear") && error.contains("all numbers were finite"), "{error}");
    }
}
