use crate::ops::OpDef;

pub static OPS: &[&OpDef] = &[];
