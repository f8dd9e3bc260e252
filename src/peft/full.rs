//! Full training: every weight of the base model.

use super::Method;
use crate::nn::Role;

pub struct Full;

impl Method for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn trains(&self, _: &str, _: Role) -> bool {
        true
    }
}
