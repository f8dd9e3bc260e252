#!/usr/bin/env bash
# Trimtab beside PyTorch + transformers + PEFT and llama.cpp: the same tokens for all, a markdown table at the end.
#   scripts/bench-peers.sh VENV MODEL [OPTIONS OF bench_peers.py]
#   scripts/bench-peers.sh .venv models/smollm2-hf --steps 8 --rounds 3
#   scripts/bench-peers.sh .venv models/smollm2-hf --work text --engines torch,trimtab,llama
# VENV is made if it is not there. MODEL is a Hugging Face folder (scripts/gguf-to-hf.py makes one). llama.cpp is
# node-llama-cpp's prebuilt, put into models/llama (--llama) when an engine asks for it; it needs Node 20.
# Build first: cargo build --release
set -euo pipefail

venv=$1 model=$2
shift 2
here=$(dirname "$0")
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
packages=(torch transformers peft) imports="torch, transformers, peft"
case "$*" in *qlora*) packages+=(bitsandbytes) imports+=", bitsandbytes" ;; esac
case "$*" in *llama*) packages+=(gguf) imports+=", gguf" ;; esac
"$venv/bin/python" -c "import $imports" 2>/dev/null || "$venv/bin/pip" install --quiet "${packages[@]}"

after() { # the value behind the option $1, or $2
    local option=$1 value=$2
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in "$option") value=${2:-} ;; "$option="*) value=${1#*=} ;; esac
        shift
    done
    echo "$value"
}
engines=$(after --engines "" "$@")
case $engines in *llama*)
    llama=$(after --llama models/llama "$@")
    version=3.22.1
    if ! [ -d "$llama/node_modules/node-llama-cpp" ]; then
        mkdir -p "$llama"
        # Its optional packages are libraries of every system and GPU; the one for this CPU is enough.
        case $(uname -m) in aarch64) cpu=arm64 ;; *) cpu=x64 ;; esac
        npm install --prefix "$llama" --silent --no-audit --no-fund --ignore-scripts --omit=optional \
            "node-llama-cpp@$version" "@node-llama-cpp/linux-$cpu@$version"
    fi ;;
esac
case ",$engines," in *,llama,*)
    gguf=$(after --gguf models/SmolLM2-135M-Instruct.Q4_1.gguf "$@")
    f32=$(after --gguf-f32 models/SmolLM2-135M-Instruct.F32.gguf "$@")
    [ -e "$f32" ] || "$venv/bin/python" "$here/gguf-to-f32.py" "$gguf" "$f32" ;;
esac
exec "$venv/bin/python" "$here/bench_peers.py" --model "$model" "$@"
