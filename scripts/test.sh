#!/usr/bin/env bash
# All that a change must pass: formatting, lints, every feature alone, every test. With TRIMTAB_REQUIRE_WGPU=1 a missing
# GPU is a failure; a software rasterizer counts as one, and is installed where this script may install packages. With
# TRIMTAB_REQUIRE_NVRTC=1 a missing CUDA compiler is one; it is taken from its PyPI wheel. No CUDA card is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

has_vulkan() {
    compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null ||
        [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ]
}

if ! has_vulkan; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Debian 12's own Mesa is four times slower than the one in its backports, which the same mirror has.
        apt-get update -q >/dev/null || true
        mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 == "bookworm" && !seen++ { print $1 }')
        from=()
        if [ -n "$mirror" ]; then
            echo "deb $mirror bookworm-backports main" >/etc/apt/sources.list.d/bookworm-backports.list
            apt-get update -q >/dev/null || true
            from=(-t bookworm-backports)
        fi
        apt-get install -qy "${from[@]}" mesa-vulkan-drivers libvulkan1 >/dev/null ||
            apt-get install -qy mesa-vulkan-drivers libvulkan1 >/dev/null || true
    fi
    has_vulkan || echo "no Vulkan driver: tests on wgpu will be skipped"
fi

# The version whose reports docs/kernels.md shows.
nvrtc=13.5.37
if [ -z "${TRIMTAB_NVRTC:-}" ]; then
    venv=target/nvrtc-$nvrtc
    if ! compgen -G "$venv/lib/python*/site-packages/nvidia/*/lib/libnvrtc.so.13" >/dev/null; then
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q --retries 10 "nvidia-cuda-nvrtc==$nvrtc"; } >&2 || true
    fi
    TRIMTAB_NVRTC=$(compgen -G "$PWD/$venv/lib/python*/site-packages/nvidia/*/lib/libnvrtc.so.13" | head -n 1 || true)
    export TRIMTAB_NVRTC
    [ -n "$TRIMTAB_NVRTC" ] || echo "no NVRTC: tests of CUDA kernels will be skipped"
fi
export TRIMTAB_CACHE=${TRIMTAB_CACHE:-$PWD/target/kernels}
# What the compiler would keep for the next build takes gigabytes over some fifty test programs, and this is one build.
export CARGO_INCREMENTAL=0

cargo fmt --check
cargo clippy --workspace --all-targets -- -D warnings
# The library without optional features, with each alone, and for browsers. The last is built, not checked: what
# overflows in 32 bits shows only then.
for features in "" cli cuda hub mmap parquet wgpu; do
    cargo clippy --no-default-features --features "$features" -- -D warnings
done
if [[ $(rustup target list --installed 2>/dev/null) == *wasm32-unknown-unknown* ]]; then
    CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0 \
        cargo build --lib --no-default-features --target wasm32-unknown-unknown
else
    echo "no standard library for wasm32-unknown-unknown: the build for browsers is skipped"
fi
cargo test --workspace
# Adapters to PEFT and back, where there is a Python that has it.
scripts/interop.sh --ready
# The CPU kernels again, as processors with less than this one run them.
lesser=portable
[ "$(uname -m)" = x86_64 ] && lesser="avx512bf16 avx512 avx2 portable"
for isa in $lesser; do
    TRIMTAB_CPU=$isa cargo test --test op_matrix on_the_cpu
done
