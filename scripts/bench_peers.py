"""Times training steps of Trimtab and of PyTorch + transformers + PEFT (+ bitsandbytes); see bench-peers.sh.

Both get the same token ids (float32, r = 16, every linear layer, AdamW, no dropout; --work qlora: the linear layers in
NF4 with double quantization; full: every weight; text: 512 tokens of a prompt read, 64 written, greedily). The engines take turns,
one process each per round, so a slow spell of the machine hits both. The first steps of every process are
warm-up. Peak memory is the largest resident set of the process, model file pages included.
"""
import argparse
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--model", required=True, help="Hugging Face folder")
ap.add_argument("--text", help="text file; default: Python's own help texts, which every Python brings")
ap.add_argument("--trimtab", default="target/release/trimtab")
ap.add_argument("--engines", default="torch,trimtab")
ap.add_argument("--work", choices=["lora", "qlora", "full", "text"], default="lora")
ap.add_argument("--trimtab-args", default="", help="more flags for trimtab, such as --memory=700MiB")
ap.add_argument("--batch", type=int, default=4)
ap.add_argument("--seq", type=int, default=256)
ap.add_argument("--warmup", type=int, default=2)
ap.add_argument("--steps", type=int, default=6, help="timed steps of each round")
ap.add_argument("--rounds", type=int, default=2)
ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
ap.add_argument("--torch-worker", help=argparse.SUPPRESS)  # internal: the data file of the torch process
args = ap.parse_args()


def torch_worker():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    quantized = {}
    if args.work == "qlora":
        from transformers import BitsAndBytesConfig
        quantized = {"quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32), "device_map": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, **quantized)
    if args.work == "text":
        return torch_text(torch, model.eval())
    model.config.use_cache = False
    if args.work == "full":
        model.train()
    else:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear",
                                                 task_type="CAUSAL_LM")).train()
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    rows = [json.loads(line)["input_ids"] for line in open(args.torch_worker)]
    for i in range(0, len(rows), args.batch):
        ids = torch.tensor(rows[i:i + args.batch])
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        value = loss.item()
        print(json.dumps({"loss": value, "seconds": time.perf_counter() - start}), flush=True)


def torch_text(torch, model):
    ids = torch.tensor([json.loads(open(args.torch_worker).readline())["input_ids"]])
    with torch.no_grad():
        for _ in range(args.warmup + args.steps):
            start = time.perf_counter()
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            read = time.perf_counter() - start
            start = time.perf_counter()
            for _ in range(WRITTEN):
                token = out.logits[:, -1:].argmax(-1)
                out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            wrote = time.perf_counter() - start
            print(json.dumps({"read": ids.shape[1] / read, "wrote": WRITTEN / wrote}), flush=True)


WRITTEN = 64


def write_data(path):
    """One sequence of exactly --seq tokens a line, enough for one process."""
    from tokenizers import Tokenizer
    text = Path(args.text).read_text(errors="replace") if args.text else "\n".join(pydoc_data.topics.topics.values())
    rows = (args.warmup + args.steps) * args.batch
    # Eight characters for each token are plenty; tokenizing all of a large file would take a while.
    ids = Tokenizer.from_file(f"{args.model}/tokenizer.json").encode(text[:rows * args.seq * 8], add_special_tokens=False).ids
    if len(ids) < rows * args.seq:
        sys.exit(f"the text has {len(ids)} tokens, {rows * args.seq} are needed")
    with open(path, "w") as f:
        for i in range(rows):
            row = ids[i * args.seq:(i + 1) * args.seq]
            f.write(json.dumps({"input_ids": row, "labels": row}) + "\n")


LORA = ["--method", "lora", "--rank", "16", "--alpha", "32", "--targets", "all-linear"]
METHOD = {"lora": LORA, "qlora": LORA + ["--quantize", "nf4", "--double-quant"], "full": ["--method", "full"]}


def trimtab_text(data, env):
    """One process a text; what it says of its speed on standard error."""
    import re
    from tokenizers import Tokenizer
    ids = json.loads(open(data).readline())["input_ids"]
    prompt = Tokenizer.from_file(f"{args.model}/tokenizer.json").decode(ids, skip_special_tokens=False)
    command = [args.trimtab, "generate", "--model", args.model, "--prompt", prompt, "--max-tokens", str(WRITTEN + 1),
               "--temperature", "0", "--device", "cpu", *args.trimtab_args.split()]
    steps, peak = [], 0
    for _ in range(args.warmup + args.steps):
        with tempfile.TemporaryFile("w+") as err:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            err.seek(0)
            said = err.read()
        found = re.search(r"read (\d+) tokens at ([\d.]+) a second, wrote (\d+) at ([\d.]+)", said)
        if not found:
            sys.exit(f"trimtab failed:\n{said[-2000:]}")
        steps.append({"read": float(found[2]), "wrote": float(found[4])})
        peak = max(peak, usage.ru_maxrss / 1024)
    return steps, peak


def run(engine, data, work):
    """Starts one engine; returns its steps as {"loss", "seconds"} and its peak memory in MiB."""
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), RAYON_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1")
    if args.work == "text" and engine == "trimtab":
        return trimtab_text(data, env)
    if engine == "torch":
        command = [sys.executable, __file__, *sys.argv[1:], "--torch-worker", data]
    else:
        command = [args.trimtab, "train", "--model", args.model, "--data", data, *METHOD[args.work], "--batch-size", str(args.batch),
                   "--micro-tokens", str(args.batch * args.seq), "--max-seq-len", str(args.seq),
                   "--steps", str(args.warmup + args.steps), "--lr", "2e-4", "--schedule", "constant", "--warmup", "0", "--dtype", "f32", "--device", "cpu",
                   "--no-shuffle", "--out", f"{work}/out", *args.trimtab_args.split()]
    with open(f"{work}/stdout", "w+") as out, open(f"{work}/stderr", "w+") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            err.seek(0)
            sys.exit(f"{engine} failed ({child.returncode}):\n{err.read()[-2000:]}")
        out.seek(0)
        lines = out.readlines()
    if engine == "trimtab":
        events = [json.loads(line) for line in open(f"{work}/out/metrics.jsonl")]
        steps = [{"loss": e["loss"], "seconds": e["tokens"] / e["tokens_per_second"]} for e in events if e["event"] == "step"]
    else:
        steps = [json.loads(line) for line in lines if line.startswith("{")]
    if len(steps) != args.warmup + args.steps:
        sys.exit(f"{engine}: {len(steps)} steps reported, {args.warmup + args.steps} expected")
    return steps, usage.ru_maxrss / 1024


def texts(engines):
    read, wrote, peak = {e: [] for e in engines}, {e: [] for e in engines}, {e: 0 for e in engines}
    args.seq, args.batch = 512, 1
    for i in range(args.rounds):
        for engine in engines if i % 2 == 0 else engines[::-1]:
            with tempfile.TemporaryDirectory() as work:
                write_data(f"{work}/data.jsonl")
                steps, memory = run(engine, f"{work}/data.jsonl", work)
            read[engine] += [s["read"] for s in steps[args.warmup:]]
            wrote[engine] += [s["wrote"] for s in steps[args.warmup:]]
            peak[engine] = max(peak[engine], memory)
    print("| engine | prompt tok/s median | best | written tok/s median | best | peak RSS MiB |\n|---|---|---|---|---|---|")
    for e in engines:
        print(f"| {e} | {statistics.median(read[e]):.0f} | {max(read[e]):.0f} | {statistics.median(wrote[e]):.1f} "
              f"| {max(wrote[e]):.1f} | {peak[e]:.0f} |")


def main():
    engines = args.engines.split(",")
    if args.work == "text":
        return texts(engines)
    seconds, peak, losses = {e: [] for e in engines}, {e: 0 for e in engines}, {}
    for i in range(args.rounds):
        for engine in engines if i % 2 == 0 else engines[::-1]:
            with tempfile.TemporaryDirectory() as work:
                write_data(f"{work}/data.jsonl")
                steps, memory = run(engine, f"{work}/data.jsonl", work)
            seconds[engine] += [s["seconds"] for s in steps[args.warmup:]]
            peak[engine] = max(peak[engine], memory)
            losses[engine] = steps[0]["loss"], steps[-1]["loss"]
            print(f"round {i + 1} {engine}: " + " ".join(f"{s['seconds']:.2f}" for s in steps), file=sys.stderr)

    from importlib.metadata import version
    print(f"{args.batch} x {args.seq} tokens a step, {args.threads} threads, {args.rounds} x {args.steps} timed steps, "
          + ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft")) + "\n")
    print("| engine | s/step median | best | tok/s median | best | peak RSS MiB | first loss | last loss |\n|---|---|---|---|---|---|---|---|")
    tokens, median = args.batch * args.seq, {}
    for e in engines:
        median[e], best = statistics.median(seconds[e]), min(seconds[e])
        print(f"| {e} | {median[e]:.3f} | {best:.3f} | {tokens / median[e]:.1f} | {tokens / best:.1f} "
              f"| {peak[e]:.0f} | {losses[e][0]:.4f} | {losses[e][1]:.4f} |")
    if len(engines) == 2:
        a, b = engines
        print(f"| {a} / {b} | {median[a] / median[b]:.2f}x | {min(seconds[a]) / min(seconds[b]):.2f}x | | | {peak[a] / peak[b]:.2f}x | | |")


if args.torch_worker:
    torch_worker()
else:
    main()
