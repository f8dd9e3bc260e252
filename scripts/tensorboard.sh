#!/usr/bin/env bash
# Event files that TensorBoard itself reads: a run that is stopped and goes on, its numbers beside those of metrics.jsonl.
#
# usage: scripts/tensorboard.sh
#
# The Python is $TRIMTAB_PYTHON, if it has tensorboard, else an environment in target/ that is made once.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/tensorboard
python=${TRIMTAB_PYTHON:-python3}
if ! "$python" -c 'import tensorboard' >/dev/null 2>&1; then
    python=$venv/bin/python
    if [ ! -f "$venv/complete" ]; then
        python3 -m venv "$venv"
        # Its packages ask for pkg_resources, which later versions lack.
        "$venv/bin/pip" install -q tensorboard==2.21.0 'setuptools<81'
        touch "$venv/complete"
    fi
fi
cargo build -q --bin trimtab
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for i in $(seq 10 33); do
    echo "{\"input_ids\": [5, $((i % 9)), 7, $i]}"
done >"$work/data.jsonl"
run() {
    target/debug/trimtab train "$@" --device cpu 2>"$work/log" || {
        cat "$work/log" >&2
        exit 1
    }
}
run --model tests/fixtures/golden/base --data "$work/data.jsonl" --out "$work/run" --split 0.2 --eval-every 2 --steps 6 \
    --max-seq-len 16 --rank 2 --batch-size 4 --schedule constant --save-every 2 --keep 9 --log-tensorboard
# Steps 3 to 6 come again.
rm -r "$work"/run/checkpoints/*4 "$work"/run/checkpoints/*6
run --resume "$work/run" --steps 8
"$python" scripts/tensorboard.py "$work/run"
