//! Shaders that run without bounds checks keep within their buffers by themselves: what the samples of the op table launch is
//! walked, by [`super::count`], with the sizes that would be bound.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use trimtab::backend::null::Null;
use trimtab::backend::wgpu::is_checked;
use trimtab::backend::{Backend, Caps, Target};
use trimtab::bench::operands::in_16_bits;
use trimtab::dtype::{DType, Ty};
use trimtab::ops::{self, Arg, Lower, OpDef, Sample, WgslDispatch, widen};

use super::count::{Launch, Shader};
use super::preprocess::preprocess;

/// A device that has everything, and so few processors that large tiles are taken wherever they fit; and one that binds little.
fn devices() -> [Caps; 2] {
    let null = Null::new().caps().clone();
    let able = Caps { target: Target::Wgsl, f16: true, workgroup_memory: 32 << 10, max_invocations: 256, ..null };
    let large = Caps { multiprocessors: Some(1), max_binding: 1 << 30, max_groups: 65535, ..able.clone() };
    [large, Caps { f16: false, max_binding: 64 << 10, max_groups: 65535, ..able }]
}

/// A dispatch, and the bytes of each of its operands.
type Bound = (WgslDispatch, Vec<u64>);

/// What a sample launches, and the bytes of each operand of it.
fn launches(op: &OpDef, sample: &Sample, caps: &Caps) -> Vec<Bound> {
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let Ok(outs) = op.types(&sample.attr, &ins) else { return Vec::new() };
    let shared = vec![None; outs.len()];
    let all = widen::wgsl(op, &Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &shared, caps });
    let bytes = |arg: &Arg| match arg {
        Arg::In(i) => ins[*i].bytes() as u64,
        Arg::Out(o) => outs[*o].bytes() as u64,
        Arg::InPart(_, range) | Arg::OutPart(_, range) | Arg::Work(range) => range.end - range.start,
        Arg::Absent => 0,
    };
    let with_bytes = |d: WgslDispatch| {
        let bytes = d.args.iter().map(|a| bytes(a).next_multiple_of(4)).collect();
        (d, bytes)
    };
    all.unwrap_or_default().into_iter().map(with_bytes).collect()
}

/// Walks the workgroups at the corners of a grid, where operands end.
fn walk(shader: &Shader, dispatch: &WgslDispatch, buffers: &[u64]) {
    let names = shader.parameters();
    assert!(names.len() <= dispatch.params.len(), "{}: {names:?} {:?}", dispatch.shader, dispatch.params);
    let params: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(dispatch.params.iter().copied()).collect();
    let overrides: Vec<(&str, u32)> = dispatch.constants.iter().map(|&(name, value)| (name, value as u32)).collect();
    let ends = |axis: usize| BTreeSet::from([0, dispatch.grid[axis] - 1]);
    for x in ends(0) {
        for y in ends(1) {
            for z in ends(2) {
                shader.count(&Launch {
                    entry: dispatch.entry,
                    overrides: &overrides,
                    params: &params,
                    workgroup: [x, y, z],
                    grid: dispatch.grid,
                    buffers: Some(buffers),
                });
            }
        }
    }
}

/// Walks all that is not checked where it runs; how many variants that are.
pub fn walk_unchecked(root: &Path) -> usize {
    let mut variants: BTreeMap<(&str, Vec<&str>), Vec<Bound>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for caps in devices() {
        for op in ops::table() {
            let wide = (op.samples)();
            let narrow: Vec<Sample> = wide.iter().filter_map(|s| in_16_bits(op, s, DType::F16)).collect();
            for sample in wide.iter().chain(&narrow) {
                for (d, buffers) in launches(op, sample, &caps) {
                    // Long sums repeat what short ones do.
                    if is_checked(d.shader) || d.flops > 700_000 {
                        continue;
                    }
                    if seen.insert(format!("{:?}", (d.shader, &d.defines, &d.constants, &d.params, d.grid, &buffers))) {
                        variants.entry((d.shader, d.defines.clone())).or_default().push((d, buffers));
                    }
                }
            }
        }
    }
    variants.par_iter().for_each(|((shader, defines), all)| {
        let defines: Vec<String> = defines.iter().map(|d| d.to_string()).collect();
        let text = preprocess(root, &format!("{shader}.wgsl"), &defines, &mut Vec::new()).unwrap().text;
        let shader = Shader::new(&text);
        all.par_iter().for_each(|(dispatch, buffers)| walk(&shader, dispatch, buffers));
    });
    variants.len()
}
