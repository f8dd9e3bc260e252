//! The program, run as a user runs it.

use std::process::Command;

/// Exit code, standard output, standard error.
pub fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Standard output of a call that succeeds.
pub fn ok(args: &[&str]) -> String {
    let (code, said, err) = run(args);
    assert_eq!(code, 0, "{args:?}: {said}{err}");
    said
}
