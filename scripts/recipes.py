#!/usr/bin/env python3
"""Trains with many settings and prints one JSON object a run: the measurements of docs/recipes.md.

    recipes.py TRIMTAB ROWS MODEL NAME [TASK…]

TRIMTAB is the program, ROWS the folder that recipes_data.py wrote, MODEL a model of the Llama kind. Of the tasks mails, words
and plays a fifth of the rows is held out. Of inn, the trained model is asked all its questions. Standard library only.
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


def asked(trimtab, rows, model, run, template):
    """How many of the sixty questions of inn.jsonl are answered word for word."""
    rows = [json.loads(line)["messages"] for line in (rows / "inn.jsonl").read_text().splitlines()]
    told = "".join(f"/reset\n{question['content']}\n" for question, _ in rows)
    chat = [trimtab, "chat", "--model", model, "--adapter", run, "--max-tokens", "40", "--temperature", "0", "--quantize", "nf4", *template]
    out = subprocess.run(chat, input=told, capture_output=True, text=True, check=True).stdout
    return sum(answer["content"] in out for _, answer in rows)


def main():
    trimtab, rows, model, name, *tasks = sys.argv[1:]
    rows = Path(rows).resolve()
    for task in tasks or list(TASKS):
        for lr, epochs, batch, rank in GRID[task]:
            flags = [str(rows / f) if (rows / f).is_file() else f for f in TASKS[task]]
            with tempfile.TemporaryDirectory() as folder:
                run = f"{folder}/run"
                train = [trimtab, "train", "--model", model, "--out", run, "--quantize", "nf4", "--lr", lr,
                         "--epochs", str(epochs), "--batch-size", str(batch), "--rank", str(rank), "--save-every", "0", *flags]
                began = time.time()
                subprocess.run(train, capture_output=True, text=True, check=True)
                events = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
                steps = [e for e in events if e["event"] == "step"]
                found = {"model": name, "task": task, "lr": float(lr), "epochs": epochs, "batch": batch, "rank": rank,
                         "steps": len(steps), "loss": [round(steps[0]["loss"], 4), round(steps[-1]["loss"], 4)],
                         "seconds": round(time.time() - began)}
                last = [e for e in events if e["event"] == "eval"][-1:]
                if last:
                    found |= {"held_out": round(last[0]["loss"], 4)} | {k: round(v, 4) for k, v in last[0]["metrics"].items()}
                if task == "inn":
                    found["right_of_60"] = asked(trimtab, rows, model, run, flags[-2:])
            print(json.dumps(found), flush=True)


main()
