//! Chats: conversations become the text that a model was trained to read by the model's own template, which is written in
//! Jinja and rendered as transformers renders it.

mod chats;
mod clock;
mod find;
mod methods;
mod python;
pub mod rows;
mod source;
pub mod spans;
mod template;
mod unwritten;

pub use chats::Chats;
pub(super) use find::SPECIAL;
pub use find::{FILE as TEMPLATE_FILE, Templates};
pub use template::{Chat, Refused, Rendered, Template};
