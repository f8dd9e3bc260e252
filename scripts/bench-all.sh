#!/usr/bin/env bash
# Every measurement of docs/benchmarks.md that needs no GPU, one after another.
#   scripts/bench-all.sh VENV MODEL RUNS [PART...]
#   scripts/bench-all.sh .venv models/smollm2-hf runs/bench            all
#   scripts/bench-all.sh .venv models/smollm2-hf runs/bench text start
# RUNS is a folder: each turn is logged there as it ends, so the same command goes on after an interruption; tables.md
# has the tables, newest last. Parts: lora lengths qlora full text start avx2 profile curves.
# More flags for bench_peers.py: PEERS="--llama DIR --gguf FILE". Build first, and leave the machine alone meanwhile.
set -euo pipefail

venv=$1 model=$2 runs=$3
shift 3
here=$(dirname "$0")
trimtab=target/release/trimtab
read -ra more <<<"${PEERS:-}"
mkdir -p "$runs"

peers() {
    echo "== $*" >&2
    { "$here/bench-peers.sh" "$venv" "$model" --log "$runs/peers.jsonl" ${more[@]+"${more[@]}"} "$@" && echo; } |
        tee -a "$runs/tables.md"
}
curve() {
    echo "== curve $*" >&2
    python3 "$here/bench_curves.py" "$@" --model "$model" --log "$runs/curves.jsonl"
}

part() {
    case $1 in
    lora) peers --work lora --warmup 1 --steps 4 --rounds 3 ;;
    lengths)
        peers --work lora --batch 1 --seq 512 --warmup 1 --steps 4 --rounds 3
        peers --work lora --batch 1 --seq 2048 --warmup 1 --steps 2 --rounds 2
        ;;
    qlora)
        peers --work qlora --warmup 1 --steps 3 --rounds 2
        peers --work qlora --warmup 1 --steps 3 --rounds 2 --engines trimtab --trimtab-args=--memory=700MiB
        ;;
    full) peers --work full --warmup 1 --steps 3 --rounds 2 ;;
    text)
        peers --work text --warmup 1 --steps 3 --rounds 2 \
            --engines torch,trimtab,trimtab-nf4,trimtab-gguf,llama,llama-q4
        ;;
    start) peers --work start --rounds 4 ;;
    avx2)
        peers --isa avx2 --work lora --warmup 1 --steps 4 --rounds 2
        peers --isa avx2 --work text --warmup 1 --steps 3 --rounds 2 --engines torch,trimtab,trimtab-nf4
        ;;
    profile)
        "$trimtab" train --model "$model" --data assets/shakespeare.txt --steps 4 --batch-size 4 --max-seq-len 256 \
            --micro-tokens 1024 --device cpu --profile --save-every 0 --overwrite --out "$runs/profile" 2>&1 |
            sed -n '/^time by op/,/^  step/p' | tee -a "$runs/tables.md"
        ;;
    curves)
        curve size --method lora
        curve size --method qlora
        curve length --method lora
        curve length --method qlora
        curve draw --out docs
        ;;
    *) echo "no part is called $1" >&2 && exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- lora lengths qlora full text start avx2 profile curves
for name in "$@"; do
    SECONDS=0
    part "$name"
    echo "== $name took $SECONDS s" >&2
done
