#!/usr/bin/env bash
# Fuzzes a target of fuzz/ (safetensors, gguf, config, adapter, rows, state, toml) for so many seconds, 600 if not said.
# Needs a nightly compiler and cargo-fuzz. New inputs go to target/fuzz/; fuzz/corpus/ is what tests/corpus.rs replays, and
# what was found and fixed joins it by hand. Without a sanitizer: the parsers are safe Rust, and it runs several times as
# fast; sums that overflow are found, because debug assertions are on.
#
# usage: scripts/fuzz.sh TARGET [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?usage: scripts/fuzz.sh TARGET [SECONDS]}
mkdir -p "target/fuzz/$target"
cd fuzz
cargo +nightly fuzz run --sanitizer none "$target" "../target/fuzz/$target" "corpus/$target" -- \
    "-dict=dictionaries/$target.dict" -max_len=4096 -timeout=10 -rss_limit_mb=3000 "-max_total_time=${2:-600}"
