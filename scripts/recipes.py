#!/usr/bin/env python3
"""Trains with many settings and prints one JSON object a run: the measurements of docs/recipes.md.

    recipes.py TRIMTAB ROWS MODEL NAME [TASK…]
    recipes.py TRIMTAB ROWS MODEL NAME TASK/METHOD…

TRIMTAB is the program, ROWS the folder that recipes_data.py wrote, MODEL a model: of the Llama kind, or of any for mails. Of the
tasks mails, words and plays a fifth of the rows is held out. Of inn, the model that LoRA trained is asked all its questions. A
task alone is trained by LoRA, with each rate, batch and rank of its list; with a method, at each of that method's rates.
Standard library only.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = {
    "inn": ["--data", "inn.jsonl", "--chat-template", "chatml"],
    "mails": ["--data", "mails.jsonl", "--task", "sequence-classification", "--max-seq-len", "128", "--split", "0.2"],
    "words": ["--data", "words.jsonl", "--split", "0.2"],
    "plays": ["--data", "plays.txt", "--max-seq-len", "256", "--split", "0.2"],
}
GRID = {
    "inn": [(lr, epochs, 8, 16) for epochs in (3, 10) for lr in ("2e-4", "5e-4", "1e-3", "2e-3")]
    + [("1e-3", 10, 4, 16), ("1e-3", 10, 16, 16), ("1e-3", 10, 8, 4), ("1e-3", 10, 8, 64)],
    "mails": [(lr, 2, 8, 16) for lr in ("2e-4", "5e-4", "1e-3", "2e-3")],
    "words": [(lr, 3, 8, 16) for lr in ("2e-4", "5e-4", "1e-3", "2e-3")] + [("1e-3", 3, 16, 16), ("1e-3", 3, 4, 16)],
    "plays": [(lr, 2, 8, 16) for lr in ("2e-4", "5e-4", "1e-3", "2e-3")] + [("1e-3", 2, 4, 16)],
}
# Other methods than LoRA: their flags, and the rates to try. What trains few numbers wants large steps.
METHODS = {
    "full": (["--method", "full"], ["2e-5", "5e-5", "2e-4", "5e-4", "1e-3"]),
    "dora": (["--dora", "--rank", "16"], ["2e-4", "5e-4", "1e-3", "2e-3"]),
    "adapter": (["--method", "adapter"], ["2e-4", "5e-4", "1e-3", "2e-3", "5e-3"]),
    "ia3": (["--method", "ia3"], ["2e-4", "1e-3", "3e-3", "1e-2", "3e-2"]),
    "bitfit": (["--method", "bitfit"], ["2e-4", "1e-3", "3e-3", "1e-2", "3e-2"]),
    "prefix": (["--method", "prefix"], ["2e-4", "1e-3", "3e-3", "1e-2", "3e-2"]),
    "prompt": (["--method", "prompt"], ["2e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1"]),
}
EPOCHS = {"inn": 10, "mails": 2, "words": 3, "plays": 2}


def asked(trimtab, rows, model, run, template):
    """How many of the sixty questions of inn.jsonl are answered word for word."""
    rows = [json.loads(line)["messages"] for line in (rows / "inn.jsonl").read_text().splitlines()]
    told = "".join(f"/reset\n{question['content']}\n" for question, _ in rows)
    chat = [trimtab, "chat", "--model", model, "--adapter", run, "--max-tokens", "40", "--temperature", "0", "--quantize", "nf4", *template]
    out = subprocess.run(chat, input=told, capture_output=True, text=True, check=True).stdout
    return sum(answer["content"] in out for _, answer in rows)


def settings(task, method):
    """What is found out about a task by a method: rows of what a result says and the flags of its run."""
    if not method:
        for lr, epochs, batch, rank in GRID[task]:
            yield {"lr": float(lr), "epochs": epochs, "batch": batch, "rank": rank}, ["--quantize", "nf4", "--lr", lr, "--rank", str(rank)]
        return
    flags, rates = METHODS[method]
    quantize = ["--quantize", "nf4"] if method != "full" else []
    for lr in rates:
        yield {"method": method, "lr": float(lr), "epochs": EPOCHS[task], "batch": 8}, [*quantize, *flags, "--lr", lr]


def result(run):
    """Losses of a run's first and last step, and its last evaluation."""
    events = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    steps = [e for e in events if e["event"] == "step"]
    found = {"steps": len(steps), "loss": [round(steps[0]["loss"], 4), round(steps[-1]["loss"], 4)]}
    for last in [e for e in events if e["event"] == "eval"][-1:]:
        found |= {"held_out": round(last["loss"], 4)} | {k: round(v, 4) for k, v in last["metrics"].items()}
    return found


def main():
    trimtab, rows, model, name, *tasks = sys.argv[1:]
    rows = Path(rows).resolve()
    for spec in tasks or list(TASKS):
        task, _, method = spec.partition("/")
        data = [str(rows / f) if (rows / f).is_file() else f for f in TASKS[task]]
        for found, flags in settings(task, method):
            with tempfile.TemporaryDirectory() as folder:
                run = f"{folder}/run"
                train = [trimtab, "train", "--model", model, "--out", run, "--epochs", str(found["epochs"]), "--batch-size", str(found["batch"]), "--save-every", "0"]
                began = time.time()
                subprocess.run([*train, *flags, *data], capture_output=True, text=True, check=True)
                found = {"model": name, "task": task} | found | {"seconds": round(time.time() - began)} | result(run)
                if task == "inn" and not method:
                    found["right_of_60"] = asked(trimtab, rows, model, run, data[-2:])
            print(json.dumps(found), flush=True)


main()
