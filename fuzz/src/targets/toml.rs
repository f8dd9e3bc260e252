//! The settings of a run as a TOML file.

use std::path::Path;

use trimtab::config::{Flags, RunConfig};

/// The whole input is the file's text.
pub fn run(input: &[u8], _: &Path) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = |text: &str| RunConfig::resolve_text(text, Path::new("run.toml"), &Flags::default());
    let Ok(config) = read(text) else { return };
    let _ = (config.optimizer(), config.bottleneck(), config.quantized(), config.warmup_steps(100));
    let _ = config.adapter_config();
    // What is saved beside a run repeats it.
    let saved = config.to_toml();
    let again = read(&saved).unwrap_or_else(|e| panic!("{e}: the saved file\n{saved}"));
    assert_eq!(config.to_json(), again.to_json(), "the saved file\n{saved}");
}
