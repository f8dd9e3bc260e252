#!/usr/bin/env bash
# Trimtab beside PyTorch + transformers + PEFT: LoRA steps on the same tokens, a markdown table at the end.
#   scripts/bench-peers.sh VENV MODEL [OPTIONS OF bench_peers.py]
#   scripts/bench-peers.sh .venv models/smollm2-hf --steps 8 --rounds 3
# VENV is made if it is not there. MODEL is a Hugging Face folder (scripts/gguf-to-hf.py makes one).
# Build first: cargo build --release
set -euo pipefail

venv=$1 model=$2
shift 2
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, transformers, peft' 2>/dev/null \
    || "$venv/bin/pip" install --quiet torch transformers peft
exec "$venv/bin/python" "$(dirname "$0")/bench_peers.py" --model "$model" "$@"
