//! The CPU kernels: rows in parallel, each row's loss into scratch memory, which is summed in order.

use crate::cpu::{math, par};
use crate::ops::HostCall;
use crate::ops::host::Ptr;
use crate::ops::loss::softmax_gradient;

/// Elements that a task takes, at least.
const GRAIN: usize = 1 << 13;

/// Rows that a task takes: enough work to be worth a thread.
fn grain(cols: usize) -> usize {
    GRAIN.div_ceil(cols.max(1))
}

/// The gradient, where it is asked for.
fn gradient(call: &HostCall) -> Option<Ptr<f32>> {
    (call.outs.len() > 1).then(|| call.output_ptr::<f32>(1))
}

/// loss = inv·Σ losses.
fn total(call: &HostCall, losses: &[f32], inv: f32) {
    let sum: f64 = losses.iter().map(|&l| l as f64).sum();
    call.output::<f32>(0)[0] = (inv as f64 * sum) as f32;
}

pub fn cross_entropy(call: &HostCall) {
    let (x, labels, inv) = (call.input_ptr::<f32>(0), call.input::<i32>(1), call.input::<f32>(2)[0]);
    let (cols, dx) = (call.ins[0].cols(), gradient(call));
    let losses = call.work::<f32>();
    par::chunks(losses, grain(cols), |piece, losses| {
        // The row that the softmax is made in: the gradient's, or this one.
        let mut apart = vec![0f32; if dx.is_some() { 0 } else { cols }];
        for (i, loss) in losses.iter_mut().enumerate() {
            let r = piece * grain(cols) + i;
            let label = usize::try_from(labels[r]).ok().filter(|&l| l < cols);
            let to = match dx {
                // SAFETY: row r of the gradient.
                Some(dx) => unsafe { dx.add(r * cols) },
                None => apart.as_mut_ptr(),
            };
            let Some(label) = label else {
                // SAFETY: a row of cols elements that no other thread touches.
                unsafe { std::slice::from_raw_parts_mut(to, cols) }.fill(0.0);
                *loss = 0.0;
                continue;
            };
            // SAFETY: both are rows of cols elements, `to` no other thread's, and they are the same or do not overlap;
            // the slice is made after the last access to the logits' row.
            let row = unsafe {
                std::ptr::copy(x.add(r * cols), to, cols);
                std::slice::from_raw_parts_mut(to, cols)
            };
            *loss = softmax_gradient(row, label, inv, dx.is_some());
        }
    });
    total(call, losses, inv);
}

pub fn bce_with_logits(call: &HostCall) {
    elements(call, |x, t| {
        let e = math::exp(-x.abs());
        let p = if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
        (x.max(0.0) - x * t + (e as f64).ln_1p() as f32, p - t)
    });
}

pub fn mse(call: &HostCall) {
    elements(call, |x, t| ((x - t) * (x - t), 2.0 * (x - t)));
}

/// `f`: the loss of an element x with its target t, and the slope.
fn elements(call: &HostCall, f: impl Fn(f32, f32) -> (f32, f32) + Sync) {
    let (x, targets, weights) = (call.input_ptr::<f32>(0), call.input::<f32>(1), call.input::<f32>(2));
    let (inv, cols, dx) = (call.input::<f32>(3)[0], call.ins[0].cols(), gradient(call));
    let losses = call.work::<f32>();
    par::chunks(losses, grain(cols), |piece, losses| {
        for (i, loss) in losses.iter_mut().enumerate() {
            let r = piece * grain(cols) + i;
            let (weight, mut sum) = (weights[r], 0f64);
            let factor = if weight == 0.0 { 0.0 } else { inv * weight };
            for (c, &target) in targets[r * cols..][..cols].iter().enumerate() {
                let at = r * cols + c;
                let (loss, slope) = match weight == 0.0 {
                    true => (0.0, 0.0),
                    // SAFETY: an element of the logits, which this thread alone writes, below.
                    false => f(unsafe { *x.add(at) }, target),
                };
                sum += loss as f64;
                if let Some(dx) = dx {
                    // SAFETY: the same element of the gradient.
                    unsafe { *dx.add(at) = factor * slope };
                }
            }
            *loss = (weight as f64 * sum) as f32;
        }
    });
    total(call, losses, inv);
}

pub fn range_cross_entropy(call: &HostCall) {
    let (x, ranges, labels) = (call.input::<f32>(0), call.input::<i32>(1), call.input::<i32>(2));
    let (inv, rows, cols) = (call.input::<f32>(3)[0], call.ins[0].rows(), call.ins[0].cols());
    let dx = gradient(call);
    let work = call.work::<f32>();
    let losses = Ptr(work.as_mut_ptr());
    // A task has a column, so that no two write the same element, whatever the ranges are.
    par::ranges(cols, 1, |columns| {
        let mut column = vec![0f32; rows];
        for c in columns {
            if let Some(dx) = dx {
                // SAFETY: column c of the gradient, which is this task's.
                (0..rows).for_each(|t| unsafe { *dx.add(t * cols + c) = 0.0 });
            }
            for (s, range) in ranges.chunks_exact(2).enumerate() {
                let counts = within(range, labels[s * cols + c], rows);
                let loss = counts.map_or(0.0, |(rows, label)| {
                    let column = &mut column[..rows.len()];
                    column.iter_mut().zip(rows.clone()).for_each(|(to, t)| *to = x[t * cols + c]);
                    let loss = softmax_gradient(column, label, inv, dx.is_some());
                    if let Some(dx) = dx {
                        for (t, slope) in rows.zip(column) {
                            // SAFETY: column c of the gradient, which is this task's.
                            unsafe { *dx.add(t * cols + c) = *slope };
                        }
                    }
                    loss
                });
                // SAFETY: one of the losses of column c, which are this task's.
                unsafe { *losses.add(s * cols + c) = loss };
            }
        }
    });
    total(call, work, inv);
}

/// The rows of a range and the label among them, if they count.
fn within(range: &[i32], label: i32, rows: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let (first, end) = (usize::try_from(range[0]).ok()?, usize::try_from(range[1]).ok()?);
    let label = usize::try_from(label).ok()?;
    (end <= rows && first < end && label < end - first).then_some((first..end, label))
}
