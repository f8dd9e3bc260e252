//! Storage formats of a weight: how bytes become f32 and, for the formats we write, back.

pub mod dynamic;
pub mod ggml;
pub mod ggml_encode;
pub mod nf4;
