#!/usr/bin/env bash
# All that a change must pass: formatting, lints, every test. With TRIMTAB_REQUIRE_WGPU=1 a missing GPU is a failure;
# a software rasterizer counts as one, and is installed where this script may install packages.
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

cargo fmt --check
cargo clippy --all-targets -- -D warnings
cargo test
