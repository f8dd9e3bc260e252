#!/usr/bin/env bash
# Everything in docs/benchmarks.md that needs no GPU, and the page itself.
#   scripts/bench-all.sh VENV MODEL RUNS [PART...]
#   scripts/bench-all.sh .venv models/smollm2-hf runs/bench            all
#   scripts/bench-all.sh .venv models/smollm2-hf runs/bench text start
# RUNS is a folder: each turn is logged there as it ends, so the same command goes on after an interruption. A part's result is
# RUNS/PART.md, and takes the place of what docs/benchmarks.md has between the marks of its name, with the machine, the
# commands and the commit. Parts: lora lengths qlora bf16 full short classify text start avx2 kernels step generate links
# growth curves (of these two, curves takes about 20 minutes). More flags for bench_peers.py: PEERS="--llama DIR --gguf FILE". Build first, and leave the machine alone meanwhile.
set -euo pipefail

venv=$1 model=$2 runs=$3
shift 3
here=$(dirname "$0")
trimtab=target/release/trimtab
read -ra more <<<"${PEERS:-}"
mkdir -p "$runs"

# What is measured now: its lines go into $page.
page=
command_line() { # ARGUMENTS: a command as a reader would type it
    printf '    %s\n' "$*" >>"$page.commands"
}
peers() {
    command_line "scripts/bench-peers.sh VENV MODEL $*"
    { "$here/bench-peers.sh" "$venv" "$model" --log "$runs/peers.jsonl" ${more[@]+"${more[@]}"} "$@" && echo; } | tee -a "$page.body"
}
encoder() { # a model of MiniLM-L6's shape
    [ -e "$runs/encoder" ] || "$venv/bin/python" "$here/bench_encoder.py" "$runs/encoder"
}
curve() {
    command_line "python3 scripts/bench_curves.py $* --log RUNS/curves.jsonl"
    python3 "$here/bench_curves.py" "$@" --model "$model" --log "$runs/curves.jsonl"
}
bench() {
    command_line "trimtab bench $*"
    { "$trimtab" bench "$@" --md && echo; } | tee -a "$page.body"
}

part() {
    case $1 in
    lora) peers --work lora --warmup 1 --steps 4 --rounds 2 ;;
    lengths)
        peers --work lora --batch 1 --seq 512 --warmup 1 --steps 4 --rounds 2
        peers --work lora --batch 1 --seq 2048 --warmup 1 --steps 2 --rounds 1
        ;;
    qlora)
        peers --work qlora --warmup 1 --steps 3 --rounds 2
        peers --work qlora --warmup 1 --steps 3 --rounds 2 --engines trimtab --trimtab-args=--memory=700MiB
        ;;
    bf16) peers --work lora --warmup 1 --steps 4 --rounds 2 --engines torch,trimtab,trimtab-bf16 ;;
    full) peers --work full --warmup 1 --steps 3 --rounds 2 ;;
    short) peers --work short --batch 16 --warmup 1 --steps 3 --rounds 2 ;;
    classify)
        encoder
        model=$runs/encoder peers --work classify --batch 32 --seq 128 --warmup 1 --steps 4 --rounds 2
        ;;
    text)
        peers --work text --warmup 1 --steps 3 --rounds 2 \
            --engines torch,trimtab,trimtab-nf4,trimtab-gguf,llama,llama-q4
        ;;
    start) peers --work start --rounds 6 ;;
    avx2)
        peers --isa avx2 --work lora --warmup 1 --steps 3 --rounds 2
        peers --isa avx2 --work lora --batch 1 --seq 2048 --warmup 1 --steps 2 --rounds 1
        peers --isa avx2 --work qlora --warmup 1 --steps 2 --rounds 2
        peers --isa avx2 --work full --warmup 1 --steps 2 --rounds 2
        encoder
        model=$runs/encoder peers --isa avx2 --work classify --batch 32 --seq 128 --warmup 1 --steps 4 --rounds 2
        peers --isa avx2 --work short --batch 16 --warmup 1 --steps 2 --rounds 1
        peers --isa avx2 --work text --warmup 1 --steps 2 --rounds 2 --engines torch,trimtab,trimtab-nf4
        peers --isa avx2 --work start --rounds 3
        ;;
    kernels) bench kernels --cache cold --filter '^(linear|attention|matmul|linear_cross_entropy|rms_norm|gated_act|add|adamw)' ;;
    step)
        bench step --model "$model" --batch-size 4 --max-seq-len 256
        bench step --model "$model" --batch-size 4 --max-seq-len 256 --dtype bf16
        ;;
    generate) bench generate --model "$model" ;;
    links) bench links --folder "$runs" ;;
    curves)
        for method in lora qlora; do
            curve size --method $method
            curve length --method $method
        done
        curve draw --out docs
        ;;
    growth)
        curve rank --method lora
        curve threads --method lora
        curve draw --out docs
        ;;
    *) echo "no part is called $1" >&2 && exit 2 ;;
    esac
}

machine() {
    local name cores memory flags
    name=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    cores=$(nproc)
    memory=$(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
    flags=$(grep -o -w -m 1 -E 'avx2|avx512f|avx512_bf16|amx_tile' /proc/cpuinfo | sort -u | tr '\n' ' ')
    echo "$name, $cores threads ($flags), $memory GiB; commit $(git rev-parse --short HEAD), $(date -u +%F)."
}

[ $# -gt 0 ] || set -- lora lengths qlora bf16 full short classify text start avx2 kernels step generate links growth curves
for name in "$@"; do
    SECONDS=0
    page=$runs/$name
    rm -f "$page.body" "$page.commands"
    touch "$page.body"
    part "$name"
    { machine && echo && cat "$page.commands" && echo && cat "$page.body"; } >"$page.md"
    rm -f "$page.body" "$page.commands"
    python3 "$here/bench_docs.py" docs/benchmarks.md "$name" "$page.md"
    echo "== $name took $SECONDS s" >&2
done
