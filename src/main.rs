//! The `trimtab` command: parse, run, report.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    hush_wayland();
    cli::main()
}

/// Mesa's Vulkan layer that sorts devices asks the Wayland compositor for its own. Where there can be none, as no
/// XDG_RUNTIME_DIR says where to look for it, libwayland complains of that on standard error. A path that is no socket keeps it
/// quiet. Nothing is drawn here.
fn hush_wayland() {
    let is_absolute =
        |name: &str| std::env::var_os(name).is_some_and(|value| value.as_encoded_bytes().starts_with(b"/"));
    if cfg!(target_os = "linux") && !is_absolute("XDG_RUNTIME_DIR") && !is_absolute("WAYLAND_DISPLAY") {
        // SAFETY: this is the first that the program does, so that no other thread reads the environment meanwhile.
        unsafe { std::env::set_var("WAYLAND_DISPLAY", "/dev/null") };
    }
}
