//! Reading expected values from safetensors files.

use std::path::Path;

use safetensors::SafeTensors;
use trimtab::data::{Dataset, Example};

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: impl AsRef<Path>) -> Golden {
        Golden(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display())))
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.file().names().iter().map(|n| n.to_string()).collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap().shape().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(self.file().tensor(name).unwrap().data())
    }

    /// As stored.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.file().tensor(name).unwrap().data().to_vec()
    }

    pub fn i64(&self, name: &str) -> Vec<i64> {
        bytemuck::pod_collect_to_vec(self.file().tensor(name).unwrap().data())
    }

    /// The sequences of a golden run.
    pub fn dataset(&self) -> Dataset {
        let (ids, labels, cu) = (self.i64("input_ids"), self.i64("labels"), self.i64("cu_seqlens"));
        let mut data = Dataset::default();
        for w in cu.windows(2) {
            let r = w[0] as usize..w[1] as usize;
            let ints = |values: &[i64]| values.iter().map(|&v| v as i32).collect();
            data.push(&Example::labelled(ints(&ids[r.clone()]), ints(&labels[r]))).unwrap();
        }
        data
    }
}
