//! What is fetched from the hub or sent to it, on standard error: a line a file that counts up on a terminal, one without
//! counting elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use trimtab::hub::Progress;
use trimtab::run::progress::human;

use super::talk;

/// When the line was last written.
static WRITTEN: Mutex<Option<Instant>> = Mutex::new(None);

/// Shows how far a file is.
pub fn show(progress: &Progress) {
    if talk::is_quiet() {
        return;
    }
    const PAUSE: Duration = Duration::from_millis(100);
    let Progress { sent, file, done, all } = progress;
    let doing = if *sent { "sending" } else { "fetching" };
    let mut err = std::io::stderr().lock();
    // If nobody reads it there is nobody to tell.
    let _ = match err.is_terminal() {
        false if *done < *all && WRITTEN.lock().is_ok_and(|mut last| last.replace(Instant::now()).is_none()) => {
            writeln!(err, "{doing} {file} ({})", human(*all))
        }
        false => {
            if done == all {
                drop(WRITTEN.lock().map(|mut last| last.take()));
            }
            Ok(())
        }
        true => {
            let due = WRITTEN.lock().is_ok_and(|last| last.is_none_or(|last| last.elapsed() >= PAUSE));
            if due || done == all {
                drop(WRITTEN.lock().map(|mut last| last.replace(Instant::now())));
                let end = if done == all { "\n" } else { "" };
                write!(err, "\r\x1b[K{doing} {file}: {} of {}{end}", human(*done), human(*all))
                    .and_then(|()| err.flush())
            } else {
                Ok(())
            }
        }
    };
}
