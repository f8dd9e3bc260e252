"""PyTorch's times of what `trimtab bench kernels` timed: gpu_torch.py KERNELS.json OUT.json

Of each row of a product, attention or loss with activations in 16 bits, the same operands in bf16: medians of at least ten runs,
by events on a GPU, hot as ours. A frozen weight in four bits has PyTorch's product in bf16 beside it, which is what there is."""

import json
import re
import statistics
import sys
import time

OPS = ("linear", "linear_dx", "linear_cross_entropy", "attention", "attention_bwd")

report = json.load(open(sys.argv[1]))
timed = [row for row in report["rows"] if row.get("median") and row.get("op") in OPS]
if not timed:
    sys.exit("nothing that PyTorch has too was timed")
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("no PyTorch here")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(run):
    """The median of runs for a tenth of a second, at least ten on a GPU."""
    for _ in range(3):
        run()
    times, began, least = [], time.monotonic(), 10 if DEVICE == "cuda" else 3
    while len(times) < least or (time.monotonic() - began < 0.1 and len(times) < 200):
        if DEVICE == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        else:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def normal(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def peer(op, shapes, row):
    """What PyTorch runs for a row of ours, or nothing."""
    if op in ("linear", "linear_dx"):
        x, w = normal(*shapes[0]), normal(*shapes[1])
        return (lambda: F.linear(x, w)) if op == "linear" else (lambda: x @ w)
    if op == "linear_cross_entropy":
        x, w = normal(*shapes[0]).requires_grad_(), normal(*shapes[1])
        labels = torch.randint(0, shapes[1][0], (shapes[0][0],), device=DEVICE)
        return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, w).float(), labels), x)
    if op in ("attention", "attention_bwd"):
        found = re.search(r"(\d+) heads over (\d+) of (\d+)", row["sizes"])
        if not found or shapes[0][0] != shapes[1][0]:
            return None
        heads, kv, head = map(int, found.groups())
        q = normal(1, heads, shapes[0][0], head).requires_grad_()
        k, v = (normal(1, kv, shapes[0][0], head).requires_grad_() for _ in range(2))
        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)
        if op == "attention":
            return run
        out, grad = run(), normal(1, heads, shapes[0][0], head)
        return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
    return None


def main():
    rows, done = [], {}
    for ours in timed:
        operands = [(t, [int(n) for n in s.split(",")]) for t, s in re.findall(r"(\w+)\[([\d,]+)\]", ours["operands"])]
        if DEVICE == "cuda" and operands[0][0] not in ("bf16", "f16"):
            continue
        shapes = [shape for _, shape in operands]
        try:
            run = peer(ours["op"], shapes, {"sizes": str(report["facts"].get("sizes", ""))})
            key = (ours["op"], str(shapes[:2]))
            if run and key not in done:
                done[key] = seconds(run)
        except RuntimeError as e:
            print(f"{ours['name']}: {e}", file=sys.stderr)
            continue
        if run:
            theirs = done[key]
            rows.append({"name": ours["name"], "ours": ours["median"], "torch": theirs, "torch/ours": theirs / ours["median"]})
    json.dump({"torch": torch.__version__, "device": DEVICE, "rows": rows}, open(sys.argv[2], "w"), indent=1)
    print(f"{len(rows)} rows beside PyTorch {torch.__version__} on {DEVICE}")


main()
