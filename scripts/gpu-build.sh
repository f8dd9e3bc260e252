#!/usr/bin/env bash
# Builds what scripts/gpu-check.sh runs on a machine with an NVIDIA GPU and without Rust: gpu-build.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/gpu}
mkdir -p "$dir"
collect() { # NAME, the path of its binary on standard input as cargo's JSON
    python3 -c '
import json, shutil, sys
name, to = sys.argv[1:]
found = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == name]
shutil.copy(found[-1], f"{to}/{name}")' "$1" "$dir"
}
for test in op_matrix gradients models training gpu; do
    cargo test --release --test "$test" --no-run --message-format=json | collect "$test"
done
cargo build --release --message-format=json | collect trimtab
strip "$dir"/* 2>/dev/null || true
du -sh "$dir" >&2
