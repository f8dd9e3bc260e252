#!/usr/bin/env bash
# The truth on a GPU, within five minutes: on the NVIDIA GPU of this machine the op matrix, training parity, every kernel against
# the interpreter, kernels' and steps' times with PyTorch's beside them, gradients, goldens, links, and compute-sanitizer where
# it is installed. What matters most runs first, each part has a limit of its own, and what the time does not reach is left
# out and said. One JSON file has all of it.   gpu-check.sh [DIR of gpu-build.sh] [OUT.json]
# Needs the driver, python3 with PyTorch, and what gpu-build.sh built, kernels compiled beside it. No Rust, no network.
# TRIMTAB_GPU_LIMIT: seconds for all of it. TRIMTAB_GPU_DEVICE=cpu tries the script itself where no card is.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath -m "${1:-target/gpu}")
out=${2:-docs/gpu/$(date -u +%Y-%m-%d).json}
device=${TRIMTAB_GPU_DEVICE:-cuda}
end=$((SECONDS + ${TRIMTAB_GPU_LIMIT:-280}))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_MANIFEST_DIR=$PWD
[ "$device" = cpu ] || export TRIMTAB_REQUIRE_CUDA=1
if [ -z "${TRIMTAB_CACHE:-}" ]; then
    # A copy: the folder may be read by several machines.
    mkdir -p "$work/cache"
    [ -d "$bin/cache" ] && cp -r "$bin/cache/." "$work/cache/"
    export TRIMTAB_CACHE=$work/cache
fi
if [ -z "${TRIMTAB_NVRTC:-}" ]; then
    TRIMTAB_NVRTC=$(python3 - "$bin" <<'P'
import glob, importlib.util, os, re, subprocess, sys, sysconfig
try:
    said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=10).stdout
except (OSError, subprocess.TimeoutExpired):
    said = ""
driver = re.search(r"CUDA Version:\s*(\d+)", said)
driver = int(driver.group(1)) if driver else None
# The one that filled the cache, unless the driver is of an older CUDA and loads nothing of it.
shipped = sorted(glob.glob(f"{sys.argv[1]}/nvrtc/libnvrtc.so.*"))
if shipped and (driver is None or driver >= int(shipped[0].split(".so.")[1].split(".")[0])):
    print(shipped[0])
    sys.exit()
roots, major = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}, ""
# Importing it takes its time.
torch = importlib.util.find_spec("torch")
if torch and torch.origin:
    folder = os.path.dirname(torch.origin)
    roots.add(os.path.dirname(folder))
    cuda = re.search(r"^cuda.*?'(\d+)\.", open(f"{folder}/version.py").read(), re.M)
    major = cuda.group(1) if cuda else ""
found = [f for r in roots for p in ("nvidia/*/lib/libnvrtc.so.*", "torch/lib/libnvrtc*.so*") for f in glob.glob(f"{r}/{p}")]
found = [f for f in found if not any(part in os.path.basename(f) for part in ("builtins", ".alt."))]
# Of several, PyTorch's own, which the driver is known to run.
found.sort(key=lambda f: (f".so.{major}" not in f, f))
print(found[0] if found else "")
P
)
    export TRIMTAB_NVRTC
fi
touch "$work/steps"
step() { # NAME, LIMIT in seconds, COMMAND...: runs it, keeps its output, status and time
    local name=$1 limit=$2 left=$((end - SECONDS)) began status
    shift 2
    if ((left < 5)); then
        echo "$name left-out 0 $*" >>"$work/steps"
        return
    fi
    ((limit < left)) || limit=$left
    began=$(date +%s%N)
    echo "== $name, at most $limit s: $*" >&2
    timeout -k 2 "$limit" "$@" >"$work/$name.log" 2>&1
    status=$?
    tail -n 3 "$work/$name.log" >&2
    echo "$name $status $((($(date +%s%N) - began) / 1000000)) $*" >>"$work/steps"
}
bench() { # NAME, LIMIT, ARGUMENTS...: a result of `trimtab bench` in JSON
    local name=$1 limit=$2
    shift 2
    step "bench_$name" "$limit" sh -c '"$0" bench "$@" --json >"'"$work/bench_$name.json"'"' "$bin/trimtab" "$@" --device "$device"
}
if [ "$device" = cpu ]; then matrix=on_the_cpu shape=smollm2,tokens=32 seconds=0.02; else matrix=on_cuda shape=llama-8b seconds=0.1; fi
step card 10 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv
step devices 10 "$bin/trimtab" devices
step op_matrix 70 "$bin/op_matrix" "$matrix" --exact --test-threads 1 --show-output
step training 40 "$bin/training" --skip interpreted
bench kernels 60 kernels --filter '^(linear|linear_dx|matmul|attention|attention_bwd|linear_cross_entropy),' \
    --shapes "$shape" --dtype bf16,nf4 --cache hot --time "$seconds"
step torch 30 python3 scripts/gpu_torch.py "$work/bench_kernels.json" "$work/torch.json"
for quantize in none nf4; do
    bench "step_$quantize" 25 step --model assets/base --quantize "$quantize" --batch-size 4 --max-seq-len 256 --time 2
done
[ "$device" = cpu ] || TRIMTAB_GPU_REPORT=$work/interpreter.jsonl step interpreter 60 "$bin/gpu" --test-threads 1
step gradients 25 "$bin/gradients"
step models 25 "$bin/models"
bench links 15 links --time "$seconds" --folder "$work"
bench rest 40 kernels --shapes "$shape" --cache hot --time "$seconds"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -n "$sanitizer" ] && [ "$device" != cpu ]; then
    for tool in memcheck racecheck; do
        step "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/op_matrix" on_cuda --exact --test-threads 1
    done
fi
mkdir -p "$(dirname "$out")"
python3 scripts/gpu_report.py "$work" "$out"
