#!/usr/bin/env bash
# What llama.cpp makes of exported models and adapters, beside what Trimtab makes of the same files: a markdown table of the loss
# of a text and of greedy tokens, for each type. An error where a loss is further from ours than rounding, or a file does not load.
#
# usage: scripts/llama-cpp.sh [MODEL ...]          folders or GGUF files; else assets/base, SmolLM2 where it was fetched, and small
#                                                  models of random weights of the other families
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
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# random FAMILY CLASS MORE: a model of assets/base's tokens with heads of 64 features, where config.json has MORE in it.
random() {
    cat >"$work/$1.json" <<EOF
{"model_type": "$1", "architectures": ["$2"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512,
 "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 0, $3}
EOF
    "$TRIMTAB" synth --like "$work/$1.json" --dtype f32 --out "$work/$1" >&2
    cp assets/base/tokenizer*.json "$work/$1/"
    models+=("$work/$1")
}
models=("$@")
if [ ${#models[@]} = 0 ]; then
    models=(assets/base)
    smollm2=models/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -e "$smollm2" ] && models+=("$smollm2")
    random qwen2 Qwen2ForCausalLM '"hidden_act": "silu", "tie_word_embeddings": false'
    random qwen3 Qwen3ForCausalLM '"hidden_act": "silu", "tie_word_embeddings": true, "head_dim": 64, "attention_bias": false'
    random gemma GemmaForCausalLM '"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true, "head_dim": 64, "attention_bias": false'
fi
node scripts/llama_cpp.mjs "$llama" "$TRIMTAB" "$work" "${models[@]}"
