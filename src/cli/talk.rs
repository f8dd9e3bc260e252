//! What commands say besides their results: on standard error, and nothing of it with `--quiet`.

use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use trimtab::run::metrics::Event;
use trimtab::run::progress::Progress;

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on nothing is said.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether nothing is to be said.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line on standard error, written as `println!` writes one.
macro_rules! say {
    ($($what:tt)*) => {
        if !$crate::cli::talk::is_quiet() {
            eprintln!($($what)*);
        }
    };
}
pub(super) use say;

/// What a user should know of what was done.
pub fn notes(notes: &[String]) {
    notes.iter().for_each(|note| say!("note: {note}"));
}

/// What happens in a run.
pub fn show(progress: &mut Progress, event: &Event) {
    if !is_quiet() {
        progress.show(event);
    }
}

/// `bar`, if it is to be seen.
pub fn shown(bar: ProgressBar) -> ProgressBar {
    if is_quiet() { ProgressBar::hidden() } else { bar }
}
