//! Calls into crates that panic on some files that they should refuse: `tokenizers` on a tokenizer.json with a normalizer
//! that it cannot build, or a pattern that fails in the midst of a text; `parquet` on pages that are not as they say.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `call` gives, or an error with the message of its panic.
///
/// Nothing that the call left half done is seen again: readers of a tokenizer change nothing in it, and one whose making
/// or change failed is dropped, as is the reader of a file.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        Err(text.unwrap_or("a panic of a library").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let error = |call: &dyn Fn() -> u32| guarded(|| Ok(call())).map_err(|e| e.to_string());
        assert_eq!(error(&|| 1), Ok(1));
        assert_eq!(error(&|| panic!("static")), Err("static".into()));
        assert_eq!(error(&|| panic!("made {}", 1)), Err("made 1".into()));
        assert_eq!(error(&|| std::panic::panic_any(1)), Err("a panic of a library".into()));
    }
}
