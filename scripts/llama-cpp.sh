#!/usr/bin/env bash
# What llama.cpp makes of exported models and adapters, beside what Trimtab makes of the same files: a markdown table of the loss
# of a text and of greedy tokens, for each type. An error where a loss is further from ours than rounding, or a file does not load.
#
# usage: scripts/llama-cpp.sh [MODEL ...]          folders or GGUF files; else assets/base, and SmolLM2 where it was fetched
#
# llama.cpp is node-llama-cpp's prebuilt, put into models/llama once (LLAMA names another folder); it needs Node 20. TRIMTAB names
# the program, else it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
llama=${LLAMA:-models/llama}
version=3.22.1
if ! [ -d "$llama/node_modules/node-llama-cpp" ]; then
    mkdir -p "$llama"
    # Its optional packages are libraries of every system and GPU; the one for this CPU is enough.
    case $(uname -m) in aarch64) cpu=arm64 ;; *) cpu=x64 ;; esac
    npm install --prefix "$llama" --silent --no-audit --no-fund --ignore-scripts --omit=optional \
        "node-llama-cpp@$version" "@node-llama-cpp/linux-$cpu@$version"
fi
if [ -z "${TRIMTAB:-}" ]; then
    cargo build -q --bin trimtab
    TRIMTAB=target/debug/trimtab
fi
models=("$@")
if [ ${#models[@]} = 0 ]; then
    models=(assets/base)
    smollm2=models/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -e "$smollm2" ] && models+=("$smollm2")
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
node scripts/llama_cpp.mjs "$llama" "$TRIMTAB" "$work" "${models[@]}"
