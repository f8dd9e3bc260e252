//! WGSL's kernels on activations in f16: launches before a kernel's own widen its operands, and launches after them round its
//! results, to the nearest, on bits: WGSL's own conversions may round either way.

use std::ops::Range;

use super::Wide;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::elementwise::conversions;
use crate::ops::{Arg, Lower, OpDef, WgslDispatch};

impl Wide {
    /// What the kernel binds for `arg`.
    fn bound(&self, arg: Arg) -> Arg {
        let outs = self.outs.len();
        let later = |range: &Range<u64>, by: usize| Arg::Work(range.start + by as u64..range.end + by as u64);
        let (operand, range) = match &arg {
            Arg::Out(o) => (*o, None),
            Arg::OutPart(o, range) => (*o, Some(range)),
            Arg::In(i) => (outs + i, None),
            Arg::InPart(i, range) => (outs + i, Some(range)),
            Arg::Work(range) => return later(range, self.work),
            Arg::Absent => return arg,
        };
        match (&self.parts[operand], range) {
            (Some(part), Some(range)) => later(range, part.start),
            (Some(part), None) => Arg::Work(part.start as u64..part.end as u64),
            (None, _) => arg,
        }
    }
}

/// The launches of `op`.
pub fn wgsl(op: &OpDef, l: &Lower) -> Result<Vec<WgslDispatch>> {
    let Some(wide) = Wide::on(op, l.attr, l.ins, l.caps) else { return (op.wgsl)(l) };
    let outs = l.outs.len();
    // What is widened is no longer where it was, and shares no place.
    let stays = |o: usize, i: usize| wide.parts[o].is_none() && wide.parts[outs + i].is_none();
    let shared = l.shared.iter().enumerate().map(|(o, i)| i.filter(|&i| stays(o, i))).collect::<Vec<_>>();
    let mut all = Vec::new();
    for (i, ty) in l.ins.iter().enumerate().filter(|&(i, _)| wide.parts[outs + i].is_some()) {
        let to = |range| wide.bound(Arg::InPart(i, range));
        all.extend(conversions([ty.dtype, DType::F32], ty.len(), &to, &|range| Arg::InPart(i, range), l.caps));
    }
    let inner = Lower { attr: l.attr, ins: &wide.ins, outs: &wide.outs, shared: &shared, caps: l.caps };
    for mut dispatch in (op.wgsl)(&inner)? {
        dispatch.args = dispatch.args.into_iter().map(|arg| wide.bound(arg)).collect();
        all.push(dispatch);
    }
    for (o, ty) in l.outs.iter().enumerate().filter(|&(o, _)| wide.parts[o].is_some()) {
        let from = |range| wide.bound(Arg::OutPart(o, range));
        all.extend(conversions([DType::F32, ty.dtype], ty.len(), &|range| Arg::OutPart(o, range), &from, l.caps));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backend::Backend;
    use crate::backend::null::Null;
    use crate::bench::operands::in_16_bits;
    use crate::device::{Caps, Target};
    use crate::dtype::{ALIGN, Ty};
    use crate::ops::{self, Sizes, widen};

    /// Over all samples of the op table: what is bound of the scratch memory is within it and begins on a boundary, and no
    /// kernel but the conversions binds an operand in f16, unless its row says that it does.
    #[test]
    fn kernels_bind_what_was_widened() {
        let caps = Caps { target: Target::Wgsl, max_binding: 1 << 27, ..Null::new().caps().clone() };
        let mut seen = BTreeSet::new();
        for op in ops::table() {
            for sample in (op.samples)().iter().filter_map(|sample| in_16_bits(op, sample, DType::F16)) {
                let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
                let outs = op.types(&sample.attr, &ins).unwrap();
                let shared = vec![None; outs.len()];
                let lower = Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &shared, caps: &caps };
                let scratch = widen::scratch(op, &sample.attr, &ins, &caps);
                let all = wgsl(op, &lower).unwrap();
                let narrow = |arg: &Arg| match arg {
                    Arg::In(i) | Arg::InPart(i, _) => (op.acts)(&sample.attr).ins.contains(i),
                    Arg::Out(o) | Arg::OutPart(o, _) => (op.acts)(&sample.attr).outs.contains(o),
                    Arg::Work(_) | Arg::Absent => false,
                };
                for dispatch in &all {
                    for arg in &dispatch.args {
                        if let Arg::Work(range) = arg {
                            assert!(range.end <= scratch, "{} ({}): {range:?} of {scratch}", op.name, sample.name);
                            assert!(range.start.is_multiple_of(ALIGN as u64), "{} {range:?}", op.name);
                        }
                        let converts =
                            dispatch.shader == "elementwise_cast" || (op.wgsl_half)(&sample.attr, &ins, &caps);
                        assert!(converts || !narrow(arg), "{} ({}): {dispatch:?}", op.name, sample.name);
                    }
                }
                // The control: without widening, kernels would.
                if (op.wgsl)(&lower).unwrap().iter().flat_map(|d| &d.args).any(narrow) {
                    seen.insert(op.name);
                }
            }
        }
        assert!(seen.len() > 20, "{seen:?}");
    }

    /// The ops whose activations are widened at the sizes of a model: none of those that a layer of a decoder runs.
    #[test]
    fn what_a_layer_runs_takes_f16() {
        let caps = Caps { target: Target::Wgsl, max_binding: 1 << 30, max_groups: 65535, ..Null::new().caps().clone() };
        let mut widened = BTreeSet::new();
        for op in ops::table() {
            let cases = (op.cases)(&Sizes::default()).into_iter();
            for sample in cases.filter_map(|case| in_16_bits(op, &case.sample, DType::F16)) {
                let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
                widened.extend((!(op.wgsl_half)(&sample.attr, &ins, &caps)).then_some(op.name));
            }
        }
        let rare = [
            "concat_rows",
            "linear_cross_entropy",
            "mul_row",
            "mul_row_dv",
            "slice_cols",
            "slice_cols_dx",
            "slice_rows",
            "sum_rows",
        ];
        assert_eq!(widened.into_iter().collect::<Vec<_>>(), rare);
    }
}
