//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod data;
pub mod devices;
pub mod golden;
pub mod graphs;
pub mod interpret;
pub mod ptx;
pub mod run;
pub mod tolerance;
