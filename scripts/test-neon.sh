#!/usr/bin/env bash
# The CPU's kernels on NEON, where no such machine is: the library's tests of src/cpu and the op matrix, built for 64-bit ARM and
# run by qemu's user mode (Debian: qemu-user, gcc-aarch64-linux-gnu; rustup target add aarch64-unknown-linux-gnu). Speed it says
# nothing of. RUSTC may name a compiler that has the target.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
arm=(cargo test --target aarch64-unknown-linux-gnu --no-default-features)
"${arm[@]}" --lib cpu::
"${arm[@]}" --test op_matrix cpu
