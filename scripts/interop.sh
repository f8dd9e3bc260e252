#!/usr/bin/env bash
# Adapters between Trimtab and PEFT, both ways, over methods, families and tasks: scripts/interop.py. And what `trimtab push`
# asks of a hub, beside huggingface_hub: scripts/push_protocol.py.
#
# usage: scripts/interop.sh [--ready] [CASE ...]
#
# The Python is $TRIMTAB_PYTHON, else the `python3` there is if it has the packages below, else an environment in target/,
# which is made once (some GB, unless PyTorch's own index of CPU builds can be reached; $TRIMTAB_INTEROP_SECONDS limits it,
# 1800 if not set). With --ready none is made. Without one all is skipped, which is no failure; a CASE is a part of a case's
# name ("bert", "theirs", "dora").
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(transformers==5.23.0 peft==0.21.2 safetensors==0.8.0)
torch=torch==2.15.0

skip() {
    echo "skipped: $1: adapters are not compared with PEFT" >&2
    exit 0
}
has_all() { "$1" -c 'import torch, transformers, peft, safetensors' >/dev/null 2>&1; }

ready=
if [ "${1:-}" = --ready ]; then
    ready=1
    shift
fi
venv=target/interop
python=${TRIMTAB_PYTHON:-}
if [ -n "$python" ]; then
    has_all "$python" || skip "$python lacks one of torch, transformers, peft and safetensors"
elif [ -f "$venv/complete" ]; then
    python=$venv/bin/python
elif has_all python3; then
    python=python3
elif [ -n "$ready" ]; then
    skip "no Python with torch, transformers and peft (TRIMTAB_PYTHON names one)"
else
    make() {
        python3 -m venv "$venv" &&
            { "$venv/bin/pip" install -q "$torch" --index-url https://download.pytorch.org/whl/cpu --retries 1 ||
                "$venv/bin/pip" install -q "$torch"; } &&
            "$venv/bin/pip" install -q "${packages[@]}" && has_all "$venv/bin/python" && touch "$venv/complete"
    }
    export -f make has_all
    export venv torch
    if ! timeout "${TRIMTAB_INTEROP_SECONDS:-1800}" bash -c "$(declare -p packages); make" >&2; then
        skip "no environment could be made"
    fi
    python=$venv/bin/python
fi

cargo build -q --bin trimtab
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
OMP_NUM_THREADS=1 "$python" scripts/interop.py target/debug/trimtab "$work" "$@" 2>"$work/log" || {
    status=$?
    tail -n 20 "$work/log" >&2
    exit $status
}
[ $# -gt 0 ] || "$python" scripts/push_protocol.py target/debug/trimtab "$work"
