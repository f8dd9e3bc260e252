//! The fields of a micro-batch on their way to the device, each checked against the program that reads it: a packer that
//! is not this crate's may have made it.

use crate::data::pack::MicroBatch;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::{Graph, Val};
use crate::nn::Inputs;
use crate::nn::inputs::Column;

/// What a program reads of a micro-batch, for each size that it takes: its largest first.
#[derive(Clone)]
pub(crate) struct Feed(Vec<Vec<Entry>>);

/// A field.
#[derive(Clone)]
struct Entry {
    val: Val,
    name: String,
    ty: Ty,
    /// One past the largest number that means something to an op that reads it.
    end: Option<usize>,
}

impl Feed {
    /// The fields `inputs` of a graph whose nodes are all there.
    pub fn new(g: &Graph, inputs: &Inputs) -> Feed {
        let mut entries: Vec<Entry> = Vec::with_capacity(inputs.leaves.len());
        for input in &inputs.leaves {
            let (val, name) = (input.val, input.field.name.clone());
            entries.push(Entry { val, name, ty: g.ty(input.val).clone(), end: None });
        }
        for node in &g.nodes {
            let tys: Vec<Ty> = node.ins.iter().map(|&v| g.ty(v).clone()).collect();
            let Some((operand, end)) = (node.op.indexes)(&tys) else { continue };
            let root = g.root(node.ins[operand]).0;
            for entry in entries.iter_mut().filter(|e| e.val == root) {
                entry.end = Some(entry.end.map_or(end, |other| other.min(end)));
            }
        }
        Feed(vec![entries])
    }

    /// Takes micro-batches of the sizes of `smaller` too, which is of the same program with other shapes.
    pub fn add(&mut self, smaller: Feed) {
        self.0.extend(smaller.0);
    }

    /// The size of `batch`, if it is one of this program: 0 is the largest. Negative numbers stand for nothing everywhere.
    pub fn check(&self, batch: &MicroBatch) -> Result<usize> {
        let fits = |entry: &Entry| batch.get(&entry.name).is_ok_and(|column| column.len() == entry.ty.len());
        let size = self.0.iter().position(|entries| entries.iter().all(fits)).unwrap_or(0);
        for Entry { name, ty, end, .. } in &self.0[size] {
            let wrong = |found: String, expected: String| Err(Error::config("micro-batch", found, expected));
            let column = batch.get(name)?;
            let kind = matches!(column, Column::Floats(_)) == (ty.dtype == DType::F32);
            if !kind || column.len() != ty.len() {
                let kind = if matches!(column, Column::Floats(_)) { "floats" } else { "whole numbers" };
                return wrong(
                    format!("{} {kind} of {name}", column.len()),
                    format!("{ty}, as the session's layout packs it"),
                );
            }
            if let Some(x) = column.floats().iter().find(|x| !x.is_finite()) {
                return wrong(format!("{x} in {name}"), "finite numbers".into());
            }
            let large = |x: &&i32| end.is_some_and(|end| usize::try_from(**x).is_ok_and(|x| x >= end));
            if let Some(x) = column.ints().iter().find(large) {
                return wrong(format!("{x} in {name}"), format!("numbers below {}", end.unwrap_or_default()));
            }
        }
        Ok(size)
    }

    /// Writes the fields of a batch that was checked, of any size.
    pub fn write(&self, exec: &mut Exec, batch: &MicroBatch) -> Result<()> {
        self.0[0].iter().try_for_each(|entry| exec.upload(entry.val, batch.get(&entry.name)?.bytes()))
    }
}
