//! Chats: conversations become the text that a model was trained to read by the model's own template, which is written in
//! Jinja and rendered as transformers renders it.

mod clock;
mod find;
mod methods;
mod python;
mod source;
mod template;

pub(super) use find::SPECIAL;
pub use find::Templates;
pub use template::{Chat, Refused, Rendered, Template};
