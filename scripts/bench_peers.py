"""Times Trimtab beside PyTorch + transformers + PEFT (+ bitsandbytes) and llama.cpp; see bench-peers.sh.

  --work lora   training steps: r = 16, every linear layer, float32, AdamW, no dropout
         qlora  the same with the linear layers in NF4, double quantization
         full   every weight
         short  LoRA on rows of 30 to 300 tokens, --batch a step: PyTorch pads them, as people run it; Trimtab packs them
         classify  LoRA and the head of an encoder for two labels, rows of --seq tokens
         text   512 tokens of a prompt read, 64 written after it, greedily
         start  from the start of the process to the end of the first LoRA step, files cached

All engines get the same token ids and take turns, one process each per round, so a slow spell of the machine hits
all. The first --warmup steps (texts) of every process are not counted. Peak memory is the largest resident set of the
process, model file pages included.

Engines: torch, trimtab; for training also trimtab-bf16 (--dtype bf16); for text also trimtab-nf4 (--quantize nf4
--dtype bf16), llama (llama.cpp on an F32 GGUF, --gguf-f32) and
llama-q4 (on --gguf), trimtab-gguf (our NF4 made of --gguf). For llama: scripts/bench-peers.sh says how it is had.

With --log FILE each turn is kept there as it ends; the same command again does only what is missing.
"""
import argparse
import json
import os
import pydoc_data.topics
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
WRITTEN = 64
SHORTEST, LONGEST = 30, 300
LORA = ["--method", "lora", "--rank", "16", "--alpha", "32", "--targets", "all-linear"]
METHOD = {"lora": LORA, "start": LORA, "short": LORA, "classify": LORA + ["--task", "sequence-classification"], "qlora": LORA + ["--quantize", "nf4", "--double-quant"], "full": ["--method", "full"]}
# What keeps an engine's kernels to an instruction set. llama.cpp's prebuilt knows none.
ISA = {"best": {}, **{name: {"ATEN_CPU_CAPABILITY": name, "MKL_ENABLE_INSTRUCTIONS": name.upper(),
                             "ONEDNN_MAX_CPU_ISA": onednn, "TRIMTAB_CPU": name}
                      for name, onednn in (("avx2", "AVX2"), ("avx512", "AVX512_CORE"))}}
# What a work is measured by: key, heading, what of it is best.
MEASURES = {"text": [("read", "tok/s read", max), ("wrote", "tok/s written", max)],
            "start": [("seconds", "s to the end of the first step", min)]}
TRAINING = [("seconds", "s/step", min)]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--model", required=True, help="Hugging Face folder")
ap.add_argument("--text", help="text file; default: Python's own help texts, which every Python brings")
ap.add_argument("--trimtab", default="target/release/trimtab")
ap.add_argument("--engines", default="torch,trimtab")
ap.add_argument("--work", choices=["lora", "qlora", "full", "short", "classify", "text", "start"], default="lora")
ap.add_argument("--isa", choices=ISA, default="best", help="instruction set that torch and trimtab are kept to")
ap.add_argument("--trimtab-args", default="", help="more flags for trimtab, such as --memory=700MiB")
ap.add_argument("--llama", default="models/llama", help="folder with node_modules/node-llama-cpp")
ap.add_argument("--gguf", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
ap.add_argument("--gguf-f32", default="models/SmolLM2-135M-Instruct.F32.gguf", help="made by scripts/gguf-to-f32.py")
ap.add_argument("--batch", type=int, default=4)
ap.add_argument("--seq", type=int, default=256)
ap.add_argument("--warmup", type=int, default=2)
ap.add_argument("--steps", type=int, default=6, help="timed steps of each round")
ap.add_argument("--rounds", type=int, default=2)
ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
ap.add_argument("--log", help="JSON lines of the turns that are done")
args = ap.parse_args()
if args.work == "text":
    args.seq, args.batch = 512, 1
if args.work == "short":
    args.seq = LONGEST
if args.work == "start":
    args.warmup, args.steps = 0, 1


def tokenizer():
    from tokenizers import Tokenizer
    return Tokenizer.from_file(f"{args.model}/tokenizer.json")


def write_data(path):
    """One sequence of exactly --seq tokens a line (short: of 30 to 300), enough for one process. A prompt is one that survives
    being text."""
    if args.work in ("short", "classify"):
        return write_drawn(path)
    text = Path(args.text).read_text(errors="replace") if args.text else "\n".join(pydoc_data.topics.topics.values())
    rows = 16 if args.work == "text" else (args.warmup + args.steps) * args.batch
    # Eight characters for each token are plenty; tokenizing all of a large file would take a while.
    tok = tokenizer()
    ids = tok.encode(text[:rows * args.seq * 8], add_special_tokens=False).ids
    if len(ids) < rows * args.seq:
        sys.exit(f"the text has {len(ids)} tokens, {rows * args.seq} are needed")
    chosen = [ids[i * args.seq:(i + 1) * args.seq] for i in range(rows)]
    if args.work == "text":
        same = lambda row: tok.encode(tok.decode(row, skip_special_tokens=False), add_special_tokens=False).ids == row
        chosen = [row for row in chosen if same(row)][:1] or sys.exit("no stretch of the text keeps its tokens as text")
    with open(path, "w") as f:
        for row in chosen:
            f.write(json.dumps({"input_ids": row, "labels": row}) + "\n")


def write_drawn(path):
    """Random tokens; short: of lengths that are drawn too, the same for all engines."""
    vocab = json.loads(Path(args.model, "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    with open(path, "w") as f:
        for i in range((args.warmup + args.steps) * args.batch):
            n = draw.randint(SHORTEST, LONGEST) if args.work == "short" else args.seq
            ids = [draw.randrange(vocab) for _ in range(n)]
            label = {"labels": ids} if args.work == "short" else {"label": i % 2}
            f.write(json.dumps({"input_ids": ids, **label}) + "\n")


def process(command, env):
    """Runs it; its lines with the seconds since its start, what it says on standard error, and its peak MiB."""
    with tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env=env, text=True)
        lines = [(time.perf_counter() - start, line) for line in child.stdout]
        _, status, usage = os.wait4(child.pid, 0)
        lines.append((time.perf_counter() - start, ""))
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read()
    if child.returncode:
        sys.exit(f"{command[0]} failed ({child.returncode}):\n{said[-2000:]}")
    return lines, said, usage.ru_maxrss / 1024


def torch(data, env):
    job = {"model": args.model, "data": data, "work": args.work, "batch": args.batch, "threads": args.threads,
           "warmup": args.warmup, "steps": args.steps, "written": WRITTEN,
           "check": args.isa != "best" and args.work != "start"}
    lines, _, peak = process([sys.executable, str(HERE / "bench_torch.py"), json.dumps(job)], env)
    found = [(at, json.loads(line)) for at, line in lines if line.startswith("{")]
    note = "".join(f["note"] for _, f in found if "note" in f)
    steps = [dict(f, seconds=at) if args.work == "start" else f for at, f in found if "note" not in f]
    return steps, peak, note


def trimtab(data, env, dtype="f32"):
    with tempfile.TemporaryDirectory() as out:
        lines, _, peak = process([
            args.trimtab, "train", "--model", args.model, "--data", data, *METHOD[args.work],
            "--batch-size", str(args.batch), "--max-seq-len", str(args.seq),
            # Rows of many lengths fill micro-batches that Trimtab chooses.
            *([] if args.work == "short" else ["--micro-tokens", str(args.batch * args.seq)]),
            "--steps", str(args.warmup + args.steps), "--lr", "2e-4", "--schedule", "constant", "--warmup", "0",
            "--dtype", dtype, "--device", "cpu", "--no-shuffle", "--save-every", "0", "--report-examples", "0", "--out", f"{out}/run", *args.trimtab_args.split()], env)
        events = [json.loads(line) for line in open(f"{out}/run/metrics.jsonl")]
    steps = [{"loss": e["loss"], "seconds": e["tokens"] / e["tokens_per_second"]} for e in events if e["event"] == "step"]
    if args.work == "start":
        steps[0]["seconds"] = lines[-1][0]  # of the whole process, which writes an adapter too
    return steps, peak, next(e["device"] for e in events if e["event"] == "run")


def trimtab_text(data, env, model, more):
    """One process a text; what it says of its speed on standard error."""
    ids = json.loads(open(data).readline())["input_ids"]
    command = [args.trimtab, "generate", "--model", model, "--prompt", tokenizer().decode(ids, skip_special_tokens=False),
               "--max-tokens", str(WRITTEN + 1), "--temperature", "0", "--device", "cpu", *more, *args.trimtab_args.split()]
    steps, peak = [], 0
    for _ in range(args.warmup + args.steps):
        _, said, memory = process(command, env)
        found = re.search(r"read (\d+) tokens at ([\d.]+) a second, wrote (\d+) at ([\d.]+)", said)
        if not found or int(found[1]) != len(ids):
            sys.exit(f"trimtab should have read {len(ids)} tokens and said how fast:\n{said[-2000:]}")
        steps.append({"read": float(found[2]), "wrote": float(found[4])})
        peak = max(peak, memory)
    return steps, peak, ""


def llama(data, env, gguf):
    command = ["node", str(HERE / "bench_llama.mjs"), args.llama, gguf, data]
    lines, _, peak = process(command + [str(n) for n in (args.threads, args.warmup + args.steps, WRITTEN)], env)
    found = [json.loads(line) for _, line in lines if line.startswith("{")]
    return found[1:], peak, found[0]["cpu"]


# The linear layers in NF4, what is not quantized (embedding, head, norms) in bf16.
NF4 = ["--quantize", "nf4", "--dtype", "bf16"]
TEXT = {
    "torch": torch,
    "trimtab": lambda data, env: trimtab_text(data, env, args.model, []),
    "trimtab-nf4": lambda data, env: trimtab_text(data, env, args.model, NF4),
    "trimtab-gguf": lambda data, env: trimtab_text(data, env, args.gguf, NF4),
    "llama": lambda data, env: llama(data, env, args.gguf_f32),
    "llama-q4": lambda data, env: llama(data, env, args.gguf),
}
STEPS = {
    "torch": torch,
    "trimtab": trimtab,
    "trimtab-bf16": lambda data, env: trimtab(data, env, "bf16"),
}
ENGINES = TEXT if args.work == "text" else STEPS


def turn(engine):
    """One process (for a text of Trimtab's: some) of an engine: its steps, peak memory in MiB, and a note."""
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), RAYON_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1",
               **ISA[args.isa])
    with tempfile.TemporaryDirectory() as work:
        write_data(f"{work}/data.jsonl")
        steps, peak, note = ENGINES[engine](f"{work}/data.jsonl", env)
    if len(steps) != args.warmup + args.steps:
        sys.exit(f"{engine}: {len(steps)} steps reported, {args.warmup + args.steps} expected")
    return {"steps": steps, "peak": peak, "note": note}


def main():
    engines = args.engines.split(",")
    unknown = [e for e in engines if e not in ENGINES]
    if unknown:
        sys.exit(f"--work {args.work} has no engine {', '.join(unknown)}; it has {', '.join(ENGINES)}")
    names = ("work", "isa", "model", "batch", "seq", "warmup", "steps", "threads", "trimtab_args")
    setup = {name: getattr(args, name) for name in names}
    log = Path(args.log) if args.log else None
    done = [json.loads(line) for line in open(log)] if log and log.exists() else []
    turns = {e: [] for e in engines}
    measures = MEASURES.get(args.work, TRAINING)
    for i in range(args.rounds):
        for engine in engines if i % 2 == 0 else engines[::-1]:
            key = {**setup, "engine": engine, "round": i}
            result = next((d["result"] for d in done if d["key"] == key), None)
            if result is None:
                result = turn(engine)
                if log:
                    with open(log, "a") as f:
                        f.write(json.dumps({"key": key, "result": result}) + "\n")
            turns[engine].append(result)
            shown = ("/".join(f"{step[m]:.2f}" for m, _, _ in measures) for step in result["steps"])
            print(f"round {i + 1} {engine}: {' '.join(shown)}", file=sys.stderr)
    table(engines, turns, measures)


def table(engines, turns, measures):
    from importlib.metadata import version
    print(f"{args.work}, {args.batch} x {args.seq} tokens, {args.threads} threads, {args.isa} instruction set, "
          f"{args.rounds} x {args.steps} timed, " + ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft")))
    for note in sorted({f"{e}: {t['note']}" for e in engines for t in turns[e] if t["note"]}):
        print(note)
    heads = [h for _, heading, _ in measures for h in (f"{heading} median", "best")] + ["peak RSS MiB"]
    losses = args.work not in MEASURES
    if losses:
        heads += ["first loss", "last loss"]
    print("\n| engine | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    numbers = {}
    for e in engines:
        row = numbers[e] = []
        for key, _, best in measures:
            timed = [step[key] for t in turns[e] for step in t["steps"][args.warmup:]]
            row += [statistics.median(timed), best(timed)]
        row.append(max(t["peak"] for t in turns[e]))
        cells = [f"{x:.3f}" if x < 10 else f"{x:.1f}" for x in row[:-1]] + [f"{row[-1]:.0f}"]
        if losses:
            last = turns[e][-1]["steps"]
            cells += [f"{last[0]['loss']:.4f}", f"{last[-1]['loss']:.4f}"]
        print(f"| {e} | " + " | ".join(cells) + " |")
    # How many times better than the first engine: faster, smaller.
    first = numbers[engines[0]]
    for e in engines[1:]:
        lower = [best is min for _, _, best in measures for _ in range(2)] + [True]
        ratios = [a / b if l else b / a for a, b, l in zip(first, numbers[e], lower)]
        print(f"| {e} against {engines[0]} | " + " | ".join(f"{r:.2f}x" for r in ratios) + " |" + " |" * (len(heads) - len(ratios)))


main()
