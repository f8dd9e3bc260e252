//! What a run says of its own numbers while it trains, in words: that nothing is learnt, that the loss is far above its
//! start, that the loss scale was lowered.

use crate::train::trainer::StepReport;

/// Steps in a row with a gradient of exactly 0 until it is said.
const STILL: u64 = 3;
/// Steps that losses are averaged over. A run of fewer than two windows says nothing of its loss.
const WINDOW: usize = 20;
/// How many times the mean of the first window is far above it.
const FAR: f64 = 2.0;

/// Sees every step, and says each thing once; of the loss scale, whenever it is lowered.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Steps in a row whose gradient was 0, and those of them without a trained token.
    still: u64,
    empty: u64,
    said_still: bool,
    /// Losses of the first window: their number, sum and largest.
    first: (usize, f64, f64),
    /// Losses of the last window.
    last: std::collections::VecDeque<f64>,
    said_far: bool,
    scale: Option<f32>,
}

impl Watch {
    /// Before the first step; `scale` is its loss scale.
    pub fn new(scale: Option<f32>) -> Watch {
        Watch { scale, ..Watch::default() }
    }

    /// What there is to say after step `step`; `scale` is the loss scale of the next one.
    pub fn after(&mut self, step: u64, report: &StepReport, scale: Option<f32>) -> Vec<String> {
        [self.nothing_learnt(step, report), self.far_above(step, report), self.scale_lowered(step, scale)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn nothing_learnt(&mut self, step: u64, report: &StepReport) -> Option<String> {
        if report.grad_norm != 0.0 {
            (self.still, self.empty) = (0, 0);
            return None;
        }
        self.still += 1;
        self.empty += u64::from(report.trained == 0);
        if self.still < STILL || std::mem::replace(&mut self.said_still, true) {
            return None;
        }
        let why = match self.empty == self.still {
            true => {
                "no token of these steps is trained on: their labels are all -100, or the prompts leave no room for an \
                 answer in --max-seq-len"
            }
            false => {
                "likely reasons: labels that the model gives with certainty, weights that are all zero, a dropout of \
                 nearly 1, or numbers too small for --dtype"
            }
        };
        Some(format!(
            "nothing is learnt: the gradient was exactly 0 in {STILL} steps in a row, up to step {step}; {why}"
        ))
    }

    /// Batches differ, so one loss says little: the mean of the last window counts. It must be more than twice that of the
    /// first window, and more than any single loss there, so that small losses of small batches, which scatter widely, say
    /// nothing.
    fn far_above(&mut self, step: u64, report: &StepReport) -> Option<String> {
        let loss = f64::from(report.loss);
        if self.said_far || !loss.is_finite() || report.trained == 0 {
            return None;
        }
        let (count, sum, largest) = &mut self.first;
        if *count < WINDOW {
            (*count, *sum, *largest) = (*count + 1, *sum + loss, largest.max(loss));
            return None;
        }
        self.last.push_back(loss);
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
        let (before, now) = (*sum / WINDOW as f64, self.last.iter().sum::<f64>() / WINDOW as f64);
        if self.last.len() < WINDOW || now <= FAR * before || now <= *largest {
            return None;
        }
        self.said_far = true;
        Some(format!(
            "the loss is far above its start: {now:.3} on average over the {WINDOW} steps up to step {step}, {before:.3} over \
             the first {WINDOW}; a lower lr or a longer warmup, unless the data became another"
        ))
    }

    fn scale_lowered(&mut self, step: u64, scale: Option<f32>) -> Option<String> {
        let before = std::mem::replace(&mut self.scale, scale)?;
        let scale = scale.filter(|&scale| scale < before)?;
        Some(format!("the gradient of step {step} overflowed f16: the loss scale is {scale} from here on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says of which steps there are notes, and their first words.
    fn notes(steps: impl Iterator<Item = (f32, f32, usize)>) -> Vec<(u64, String)> {
        let mut watch = Watch::default();
        let mut notes = Vec::new();
        for (i, (loss, grad_norm, trained)) in steps.enumerate() {
            let report = StepReport { loss, grad_norm, tokens: 9, trained };
            let step = i as u64 + 1;
            notes.extend(watch.after(step, &report, None).into_iter().map(|note| (step, note)));
        }
        notes
    }

    #[test]
    fn a_gradient_of_zero_is_said_once() {
        /// Gradient norms, trained tokens, step of the note and a part of it.
        type Row<'a> = (&'a [f32], usize, Option<(u64, &'a str)>);
        let table: [Row; 7] = [
            (&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 5, Some((3, "likely reasons"))),
            (&[1.0, 0.0, 0.0, 0.0], 0, Some((4, "all -100"))),
            (&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], 5, None),
            (&[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 5, Some((3, "nothing is learnt"))),
            (&[1e-30, 1e-30, 1e-30, 1e-30], 5, None),
            (&[f32::NAN, f32::NAN, f32::NAN], 5, None),
            (&[0.0, 0.0, f32::INFINITY, 0.0], 5, None),
        ];
        for (norms, trained, want) in table {
            let found = notes(norms.iter().map(|&norm| (1.0, norm, trained)));
            assert_eq!(
                found.iter().map(|n| n.0).collect::<Vec<_>>(),
                want.iter().map(|w| w.0).collect::<Vec<_>>(),
                "{norms:?}"
            );
            assert!(found.iter().zip(want).all(|(note, want)| note.1.contains(want.1)), "{found:?}");
        }
    }

    #[test]
    fn a_loss_far_above_its_start_is_said_once_and_noise_is_not() {
        // A number from −1 to 1, another each time.
        let noise = |i: usize| (i as f32 * 12.9898).sin();
        let run = |n: usize, loss: &dyn Fn(usize) -> f32| notes((0..n).map(|i| (loss(i), 1.0, 5)));
        /// What it is, number of steps, their losses, and whether there is a note.
        type Row<'a> = (&'a str, usize, &'a dyn Fn(usize) -> f32, bool);
        let table: [Row; 10] = [
            ("rises", 200, &|i| 2.0 + 0.05 * i as f32, true),
            ("jumps", 60, &|i| if i < 30 { 2.0 } else { 11.0 }, true),
            (
                "jumps with steps that are skipped",
                90,
                &|i| {
                    if i % 3 == 0 {
                        f32::NAN
                    } else if i < 40 {
                        2.0
                    } else {
                        11.0
                    }
                },
                true,
            ),
            ("falls", 400, &|i| 3.0 / (1.0 + i as f32), false),
            ("stays", 400, &|i| 2.0 + noise(i), false),
            ("one outlier, as high as it likes", 400, &|i| if i == 50 { 35.0 } else { 2.0 }, false),
            ("small batches of small losses", 400, &|i| 0.05 * (1.0 + noise(i)), false),
            ("seldom large from the start", 400, &|i| if i % 7 == 3 { 1.0 } else { 0.01 }, false),
            ("rises less than twofold", 400, &|i| if i < 100 { 2.0 } else { 3.9 }, false),
            ("too short", 39, &|i| if i < 20 { 2.0 } else { 20.0 }, false),
        ];
        for (name, n, loss, said) in table {
            let found = run(n, loss);
            assert_eq!(found.len(), usize::from(said), "{name}: {found:?}");
            assert!(found.iter().all(|note| note.1.contains("far above its start")), "{name}: {found:?}");
        }
        // Steps without a trained token have a loss of 0, which is no start.
        let untrained = notes((0..100).map(|i| if i < 30 { (0.0, 1.0, 0) } else { (2.0, 1.0, 5) }));
        assert!(untrained.is_empty(), "{untrained:?}");
    }

    #[test]
    fn a_lower_loss_scale_is_said_each_time() {
        let report = StepReport { loss: 1.0, grad_norm: 1.0, tokens: 9, trained: 5 };
        let mut watch = Watch::new(Some(1024.0));
        let table = [
            (Some(1024.0), None),
            (Some(512.0), Some("512")),
            (Some(512.0), None),
            (Some(256.0), Some("256")),
            (Some(512.0), None),
            (Some(256.0), Some("256")),
        ];
        for (step, (scale, want)) in table.into_iter().enumerate() {
            let notes = watch.after(step as u64, &report, scale);
            assert_eq!(notes.len(), usize::from(want.is_some()), "{step}");
            assert!(notes.iter().zip(want).all(|(note, want)| note.contains(want)), "{notes:?}");
        }
        assert!(Watch::default().after(1, &report, None).is_empty());
    }
}
