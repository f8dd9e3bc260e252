//! What a row became, and what is odd about it that its examples do not show.

use super::Example;

/// What a row became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// None if nothing in it would be trained; several if it is longer than an example may be and is cut in windows.
    pub examples: Vec<Example>,
    /// Whether it was cut to the longest length.
    pub cut: bool,
    /// What a user should know of the row besides.
    pub notes: Vec<Note>,
}

/// What a user should know of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Question answering: no window of the context has the answer whole.
    AnswerCut,
    /// A chat has this, and the template does not write it.
    Unwritten(&'static str),
    /// A turn that is trained has nothing but a role.
    EmptyTurn,
    /// A chat of these roles has no turn of the assistant, so that nothing of it is trained.
    NoAssistant(String),
}

impl Note {
    /// The subject of a sentence about one row and about several, what is said of it, and what that means.
    pub(super) fn sentence(&self) -> ([&'static str; 2], String, &'static str) {
        match self {
            Note::AnswerCut => (
                ["answer is", "answers are"],
                "whole in no window of the context".into(),
                "no answer is learnt there; raise --max-seq-len, or --doc-stride",
            ),
            Note::Unwritten(what) => (
                ["chat has", "chats have"],
                format!("{what} that the chat template does not write"),
                "nothing of that is learnt; --chat-template FILE takes another",
            ),
            Note::EmptyTurn => {
                (["chat has", "chats have"], "an empty turn of the assistant".into(), "only its end is learnt there")
            }
            Note::NoAssistant(roles) => (
                ["chat has", "chats have"],
                format!("no turn of the role assistant, but of {roles}"),
                "nothing of that is learnt; name the role assistant, or --train-on all",
            ),
        }
    }
}
