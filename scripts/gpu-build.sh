#!/usr/bin/env bash
# Builds what scripts/gpu-check.sh runs on a machine with an NVIDIA GPU and without Rust: gpu-build.sh [DIR]
# TRIMTAB_NVRTC's library goes along with a cache of the kernels that it compiled for TRIMTAB_FILL (90,89), so that nothing is
# compiled there; without one both are left out.
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
for test in op_matrix gradients models training gpu cuda; do
    cargo test --release --test "$test" --no-run --message-format=json | collect "$test"
done
cargo build --release --message-format=json | collect trimtab
strip "$dir"/{op_matrix,gradients,models,training,gpu,cuda,trimtab} 2>/dev/null || true
if [ -n "${TRIMTAB_NVRTC:-}" ]; then
    mkdir -p "$dir/nvrtc" "$dir/cache"
    cp -L "$TRIMTAB_NVRTC" "$(dirname "$TRIMTAB_NVRTC")"/libnvrtc-builtins.so* "$dir/nvrtc/"
    cores=$(nproc)
    pids=()
    for ((i = 0; i < cores; i++)); do
        CARGO_MANIFEST_DIR=$PWD TRIMTAB_CACHE=$dir/cache TRIMTAB_FILL=${TRIMTAB_FILL:-90,89} TRIMTAB_TEST_SHARE=$i/$cores \
            "$dir/cuda" the_cache_is_filled_for_cards_that_are_elsewhere --exact >"$dir/cache/fill.$i.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || { cat "$dir"/cache/fill.*.log >&2; exit 1; }
    done
    rm -f "$dir"/cache/fill.*.log
else
    echo "TRIMTAB_NVRTC names no library: the card's machine will compile every kernel with its own" >&2
fi
rm -f "$dir/cuda"
du -sh "$dir" >&2
