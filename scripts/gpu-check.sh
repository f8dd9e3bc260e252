#!/usr/bin/env bash
# The truth on a GPU: runs the op matrix, gradients, goldens and training parity on the NVIDIA GPU of this machine,
# compares every kernel with the interpreter, runs compute-sanitizer where it is installed, then the benches, and
# writes one JSON file.   gpu-check.sh [DIR of gpu-build.sh] [OUT.json]
# Needs the driver, python3 with PyTorch (its NVRTC is used), and what gpu-build.sh built. No Rust, no network. A step
# has TRIMTAB_GPU_LIMIT seconds; kernels that are in TRIMTAB_CACHE already are not compiled again.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${1:-target/gpu}
out=${2:-docs/gpu/$(date -u +%Y-%m-%d).json}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_MANIFEST_DIR=$PWD TRIMTAB_REQUIRE_CUDA=1 TRIMTAB_CACHE=${TRIMTAB_CACHE:-$work/cache}
if [ -z "${TRIMTAB_NVRTC:-}" ]; then
    TRIMTAB_NVRTC=$(python3 - <<'P'
import glob, os, sysconfig
roots, major = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}, ""
try:
    import torch
    roots.add(os.path.dirname(os.path.dirname(torch.__file__)))
    major = (torch.version.cuda or "").split(".")[0]
except ImportError:
    pass
found = [f for r in roots for p in ("nvidia/*/lib/libnvrtc.so.*", "torch/lib/libnvrtc*.so*") for f in glob.glob(f"{r}/{p}")]
found = [f for f in found if not any(part in os.path.basename(f) for part in ("builtins", ".alt."))]
# Of several, PyTorch's own, which the driver is known to run.
found.sort(key=lambda f: (f".so.{major}" not in f, f))
print(found[0] if found else "")
P
)
    export TRIMTAB_NVRTC
fi
step() { # NAME, COMMAND...: runs it, keeps its output, status and seconds
    local name=$1 began status
    shift
    began=$(date +%s%N)
    echo "== $name: $*" >&2
    "$@" >"$work/$name.log" 2>&1
    status=$?
    tail -n 3 "$work/$name.log" >&2
    echo "$name $status $((($(date +%s%N) - began) / 1000000)) $*" >>"$work/steps"
}
limit=${TRIMTAB_GPU_LIMIT:-300}
step card nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv
step devices "$bin/trimtab" devices
step op_matrix timeout "$limit" "$bin/op_matrix" on_cuda --test-threads 1 --show-output
TRIMTAB_GPU_REPORT=$work/interpreter.jsonl step interpreter timeout "$limit" "$bin/gpu" --test-threads 1
step gradients timeout "$limit" "$bin/gradients"
step models timeout "$limit" "$bin/models"
step training timeout "$limit" "$bin/training" --skip interpreted
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        step "$tool" timeout "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/op_matrix" on_cuda --exact --test-threads 1
    done
fi
bench() { # NAME, ARGUMENTS...: a result of `trimtab bench` in JSON
    local name=$1
    shift
    step "bench_$name" timeout "$limit" sh -c '"$0" bench "$@" --device cuda --json >"'"$work/bench_$name.json"'"' "$bin/trimtab" "$@"
}
bench kernels kernels --shapes llama-8b --time 0.2
bench links links --time 0.2 --folder "$work"
for quantize in none nf4; do
    bench "step_$quantize" step --model assets/base --quantize "$quantize" --dtype bf16 --batch-size 4 --max-seq-len 256
done
mkdir -p "$(dirname "$out")"
python3 - "$work" "$out" <<'P'
import json, os, re, sys
work, out = sys.argv[1:]
report = {"steps": {}, "nvrtc": os.environ.get("TRIMTAB_NVRTC", "")}
for line in open(f"{work}/steps"):
    name, status, milliseconds, command = line.rstrip("\n").split(" ", 3)
    text = open(f"{work}/{name}.log", errors="replace").read()
    tests = dict(re.findall(r"^test (\S+) \.\.\. (\w+)", text, re.M))
    report["steps"][name] = {"command": command, "status": int(status), "seconds": int(milliseconds) / 1000,
                             "tests": tests,
                             "tail": text[-6000:] if int(status) else text[-1500:]}
    result = f"{work}/{name}.json"
    if name.startswith("bench_") and os.path.getsize(result):
        report["steps"][name]["result"] = json.load(open(result))
path = f"{work}/interpreter.jsonl"
report["interpreter"] = [json.loads(line) for line in open(path)] if os.path.exists(path) else []
json.dump(report, open(out, "w"), indent=1)
failed = [n for n, s in report["steps"].items() if s["status"]]
print(f"{out}: {len(report['interpreter'])} outputs compared with the interpreter; failed steps: {failed or 'none'}")
sys.exit(bool(failed))
P
