"""What a LoRA step costs on the CPU: against the length of its sequence, the size of the model, the rank, the threads.

    python3 scripts/bench_curves.py length --method lora  --model models/smollm2-hf --log runs/curves.jsonl
    python3 scripts/bench_curves.py size   --method qlora --log runs/curves.jsonl
    python3 scripts/bench_curves.py rank   --method lora  --model models/smollm2-hf --log runs/curves.jsonl
    python3 scripts/bench_curves.py draw   --log runs/curves.jsonl --out docs

`length`: one sequence of 256 to 8192 tokens a step. `size`: one sequence of 512 tokens, models of 15 M to 1.1 B
parameters that `trimtab synth` makes in a temporary folder. `rank`: 4 to 256, one sequence of 512 tokens. `threads`: 1 to as many as there are. Each point is appended to the log as it ends, and one that is
there already is not run again (--again runs it once more; the median of all runs is drawn). `draw` writes
a picture each, benchmarks-length.svg and so on. Needs only Python and a release build of trimtab.

Beside seconds a token stands what they should be: the FLOPs of a token over a rate. Those of products with weights
are the same at any length; those of attention grow with it. One rate for each is fitted over all points of a method
(else: one rate for all; threads: that rate times their number over the most). Beside the peak of the process stands the account that was printed before the run.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_svg

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
RANKS = [4, 16, 64, 256]
SIZE_TOKENS = 512
RANK = 16
CORES = len(os.sched_getaffinity(0))


def shape(hidden, inner, layers, heads, kv, vocab, tied=True):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "initializer_range": 0.02, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "tie_word_embeddings": tied,
            "max_position_embeddings": 2048, "rope_theta": 10000.0}


# Shapes of public models: llama2.c's stories, SmolLM2, TinyLlama.
SHAPES = {
    "15M": shape(288, 768, 6, 6, 6, 32000),
    "42M": shape(512, 1376, 8, 8, 8, 32000),
    "135M": shape(576, 1536, 30, 9, 3, 49152),
    "360M": shape(960, 2560, 32, 15, 5, 49152),
    "1.1B": shape(2048, 5632, 22, 32, 4, 32000, tied=False),
}

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("what", choices=["length", "size", "rank", "threads", "draw"])
ap.add_argument("--log", required=True, help="JSON lines")
ap.add_argument("--method", choices=["lora", "qlora"], default="lora")
ap.add_argument("--model", default="models/smollm2-hf", help="length, rank, threads: the model")
ap.add_argument("--trimtab", default="target/release/trimtab")
ap.add_argument("--only", help="some of the points, divided by commas")
ap.add_argument("--again", action="store_true", help="run what is in the log once more")
ap.add_argument("--out", default="docs", help="draw: folder of the pictures")
args = ap.parse_args()


def linears(c):
    """(out, in) of a layer's products with weights."""
    d, f = c["hidden_size"], c["intermediate_size"]
    head = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = head * c["num_attention_heads"], head * c["num_key_value_heads"]
    return [(q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)]


def parameters(c):
    d, layers = c["hidden_size"], c["num_hidden_layers"]
    tables = c["vocab_size"] * d * (1 if c["tie_word_embeddings"] else 2)
    return layers * (sum(o * i for o, i in linears(c)) + 2 * d) + d + tables


def flops(c, tokens, rank):
    """FLOPs of a token of a LoRA step: of products with weights, and of attention within a sequence of `tokens`.

    A frozen weight takes part in two products (its output, the gradient of its input), a factor in three; the loss
    computes logits and the gradient of its input. A token sees (tokens + 1) / 2 keys on average; attention is two
    products of queries by keys forward, and its kernel computes seven backward (five, and two once more for dk and dv).
    """
    layers = c["num_hidden_layers"]
    frozen = 4 * (layers * sum(o * i for o, i in linears(c)) + c["vocab_size"] * c["hidden_size"])
    factors = 6 * rank * layers * sum(o + i for o, i in linears(c))
    q = linears(c)[0][0]
    return frozen + factors, (2 + 7) * 2 * layers * q * (tokens + 1) / 2


def measure(model, tokens, warmup, steps, rank, threads):
    """Seconds of the timed steps, peak MiB of the process, MiB of the account."""
    vocab = json.loads(Path(model, "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as work:
        with open(f"{work}/data.jsonl", "w") as f:
            for _ in range(warmup + steps):
                ids = [draw.randrange(vocab) for _ in range(tokens)]
                f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
        quantize = ["--quantize", "nf4", "--double-quant"] if args.method == "qlora" else []
        command = [args.trimtab, "train", "--model", str(model), "--data", f"{work}/data.jsonl", "--out", f"{work}/run",
                   "--rank", str(rank), *quantize, "--dtype", "f32", "--device", "cpu", "--batch-size", "1",
                   "--max-seq-len", str(tokens), "--steps", str(warmup + steps), "--no-shuffle", "--save-every", "0", "--overwrite"]
        with open(f"{work}/stderr", "w+") as err:
            env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            err.seek(0)
            if child.returncode:
                sys.exit(f"trimtab failed:\n{err.read()[-2000:]}")
        events = [json.loads(line) for line in open(f"{work}/run/metrics.jsonl")]
    seconds = [e["tokens"] / e["tokens_per_second"] for e in events if e["event"] == "step"]
    account = next(e["account_bytes"] for e in events if e["event"] == "end")
    return seconds[warmup:], usage.ru_maxrss / 1024, account / 2**20


def read_log():
    path = Path(args.log)
    return [json.loads(line) for line in open(path)] if path.exists() else []


def point(name, config, tokens, model, warmup, steps, rank=RANK, threads=CORES):
    key = {"curve": args.what, "method": args.method, "name": name, "tokens": tokens}
    if not args.again and any(all(d[k] == v for k, v in key.items()) for d in read_log()):
        return
    seconds, peak, account = measure(model, tokens, warmup, steps, rank, threads)
    linear, attention = flops(config, tokens, rank)
    line = {**key, "parameters": parameters(config), "seconds": seconds, "peak_mib": peak, "account_mib": account,
            "flops_linear": linear, "flops_attention": attention, "threads": threads, "rank": rank}
    Path(args.log).parent.mkdir(parents=True, exist_ok=True)
    with open(args.log, "a") as f:
        f.write(json.dumps(line) + "\n")
    middle = statistics.median(seconds)
    print(f"{args.method} {name}, {tokens} tokens: {middle:.2f} s a step, {1e3 * middle / tokens:.2f} ms a token, "
          f"{(linear + attention) * tokens / middle / 1e9:.0f} GFLOP/s, {peak:.0f} MiB (account {account:.0f})", flush=True)


def wanted(names):
    only = args.only.split(",") if args.only else [str(n) for n in names]
    return [n for n in names if str(n) in only]


def length():
    config = json.loads(Path(args.model, "config.json").read_text())
    for tokens in wanted(LENGTHS):
        # A long step is no shorter for having been run before.
        point("model", config, tokens, args.model, warmup=int(tokens < 4096), steps=2 if tokens < 8192 else 1)


def size():
    for name in wanted(SHAPES):
        with tempfile.TemporaryDirectory() as work:
            Path(work, "shape.json").write_text(json.dumps(SHAPES[name]))
            synth = [args.trimtab, "synth", "--like", f"{work}/shape.json", "--out", f"{work}/model", "--dtype", "f32"]
            subprocess.run(synth, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            point(name, SHAPES[name], SIZE_TOKENS, f"{work}/model", warmup=1, steps=2)


def rank():
    config = json.loads(Path(args.model, "config.json").read_text())
    for r in wanted(RANKS):
        point(f"rank {r}", config, SIZE_TOKENS, args.model, warmup=1, steps=3, rank=r)


def threads():
    config = json.loads(Path(args.model, "config.json").read_text())
    for n in wanted(range(1, CORES + 1)):
        point(f"{n} threads", config, SIZE_TOKENS, args.model, warmup=1, steps=3, threads=n)


def fit(points, split):
    """Seconds a token by theory: x·linear + y·attention with x, y >= 0 that leave the least squares of relative errors."""
    a = [(p["flops_linear"] / p["s"], p["flops_attention"] / p["s"]) for p in points]
    both = [sum(row) for row in a]
    if split:
        ll, la, aa = (sum(r[i] * r[j] for r in a) for i, j in ((0, 0), (0, 1), (1, 1)))
        l, t = sum(r[0] for r in a), sum(r[1] for r in a)
        det = ll * aa - la * la
        if det > 1e-9 * ll * aa:
            x, y = (l * aa - t * la) / det, (t * ll - l * la) / det
            if x > 0 and y > 0:
                return x, y
    one = sum(both) / sum(b * b for b in both)
    return one, one


def draw():
    lines = read_log()
    for curve, x, title, label in (("length", "tokens", "One sequence a step, SmolLM2-135M", "tokens of the sequence"),
                                   ("size", "parameters", f"One sequence of {SIZE_TOKENS} tokens a step", "parameters of the model"),
                                   ("rank", "rank", f"One sequence of {SIZE_TOKENS} tokens a step, SmolLM2-135M", "rank"),
                                   ("threads", "threads", f"One sequence of {SIZE_TOKENS} tokens a step, SmolLM2-135M", "threads")):
        time, memory, found = [], [], False
        for method in ("lora", "qlora"):
            groups = {}
            for d in lines:
                if d["curve"] == curve and d["method"] == method:
                    groups.setdefault((d["tokens"], d["name"]), []).append(d)
            points = [{**runs[0], "s": statistics.median([s for d in runs for s in d["seconds"]]) / runs[0]["tokens"],
                       "peak": statistics.median(d["peak_mib"] for d in runs)} for runs in groups.values()]
            points.sort(key=lambda p: p[x])
            if not points:
                continue
            found = True
            split = curve == "length" and len(points) > 2
            slow = fit(points, split)
            # Half the threads should take twice the time.
            share = lambda p: CORES / p["threads"] if curve == "threads" else 1
            if curve == "threads":
                slow = (points[-1]["s"] / (points[-1]["flops_linear"] + points[-1]["flops_attention"]),) * 2
            rates = " and ".join(f"{1 / s / 1e9:.0f}" for s in (slow if split else slow[:1]))
            theory = [(p[x], 1e3 * share(p) * (p["flops_linear"] * slow[0] + p["flops_attention"] * slow[1])) for p in points]
            style = "a" if method == "lora" else "b"
            name = {"lora": "LoRA", "qlora": "QLoRA"}[method]
            time.append(bench_svg.Series(f"{name}, measured", style, [(p[x], 1e3 * p["s"]) for p in points], True))
            time.append(bench_svg.Series(f"{name}, FLOPs at {rates} GFLOP/s", style, theory, False))
            memory.append(bench_svg.Series(f"{name}, measured", style, [(p[x], p["peak"]) for p in points], True))
            memory.append(bench_svg.Series(f"{name}, account", style, [(p[x], p["account_mib"]) for p in points], False))
        if found:
            path = Path(args.out, f"benchmarks-{curve}.svg")
            path.write_text(bench_svg.picture(title, label, [("ms a token", time), ("peak memory, MiB", memory)]))
            print(path)


{"length": length, "size": size, "rank": rank, "threads": threads, "draw": draw}[args.what]()
