#![allow(dead_code)]
pub mod devices;
pub mod golden;
