//! The progress bar on a terminal; without the feature `cli` there is none, and plain lines say the same.

pub use imp::Bar;

#[cfg(feature = "cli")]
mod imp {
    use std::io::{IsTerminal, Write};

    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

    pub struct Bar(ProgressBar);

    impl Bar {
        /// On standard error, if it is a terminal.
        pub fn on_stderr() -> Option<Bar> {
            std::io::stderr().is_terminal().then(|| Bar(Bar::fresh()))
        }

        fn fresh() -> ProgressBar {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        }

        /// Writes above the bar.
        pub fn say(&self, text: &str) {
            self.0.suspend(|| writeln!(std::io::stderr(), "{text}").ok());
        }

        pub fn loading(&mut self, done: u64, total: u64) {
            let bar = &self.0;
            if bar.length() != Some(total) {
                bar.set_style(style("loading {bar:30} {bytes} of {total_bytes}"));
                bar.set_length(total);
            }
            bar.set_position(done);
            if done >= total {
                // The steps begin a bar of their own, with a clock that starts then.
                bar.finish_and_clear();
                self.0 = Bar::fresh();
            }
        }

        pub fn step(&mut self, step: u64, steps: u64, numbers: String) {
            let bar = &self.0;
            if bar.length() != Some(steps) {
                bar.set_style(style("step {pos}/{len} {bar:30} {msg}  {elapsed}, {eta} left"));
                bar.set_length(steps);
            }
            bar.set_message(numbers);
            bar.set_position(step);
            if step == steps {
                bar.abandon();
            }
        }

        /// Takes the bar away.
        pub fn finish(&self) {
            self.0.finish_and_clear();
        }
    }

    fn style(template: &str) -> ProgressStyle {
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
    }
}

#[cfg(not(feature = "cli"))]
mod imp {
    /// There is no value of it.
    pub enum Bar {}

    impl Bar {
        pub fn on_stderr() -> Option<Bar> {
            None
        }
        pub fn say(&self, _: &str) {
            match *self {}
        }
        pub fn loading(&mut self, _: u64, _: u64) {
            match *self {}
        }
        pub fn step(&mut self, _: u64, _: u64, _: String) {
            match *self {}
        }
        pub fn finish(&self) {
            match *self {}
        }
    }
}
