//! Launches of the attention kernels.

use crate::error::{Error, Result};
use crate::ops::{Dispatch, Lower};

pub fn forward(_: &Lower) -> Result<Vec<Dispatch>> {
    Err(Error::unsupported("attention on wgpu", "use the CPU"))
}

pub fn backward(_: &Lower) -> Result<Vec<Dispatch>> {
    Err(Error::unsupported("attention on wgpu", "use the CPU"))
}
