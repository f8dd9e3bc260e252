"""The one file of scripts/gpu-check.sh: gpu_report.py WORK OUT.json; exit code 1 if a part failed or was left out."""

import json
import os
import re
import sys

work, out = sys.argv[1:]
report = {"nvrtc": os.environ.get("TRIMTAB_NVRTC", ""), "passed": [], "failed": [], "timed_out": [], "left_out": [], "steps": {}}
for line in open(f"{work}/steps"):
    name, status, milliseconds, command = line.rstrip("\n").split(" ", 3)
    if status == "left-out":
        report["left_out"].append(name)
        report["steps"][name] = {"command": command, "status": None}
        continue
    text = open(f"{work}/{name}.log", errors="replace").read()
    step = {
        "command": command,
        "status": int(status),
        "seconds": int(milliseconds) / 1000,
        "tests": dict(re.findall(r"^test (\S+) \.\.\. (\w+)", text, re.M)),
        "tail": text[-6000:] if int(status) else text[-1500:],
    }
    path = f"{work}/{name}.json"
    if os.path.exists(path) and os.path.getsize(path):
        try:
            step["result"] = json.load(open(path))
        except ValueError as e:
            step["tail"] += f"\n{name}.json: {e}"
    report["steps"][name] = step
    # 124 and 137 are those of `timeout`.
    where = {0: "passed", 124: "timed_out", 137: "timed_out"}.get(int(status), "failed")
    report[where].append(name)
path = f"{work}/interpreter.jsonl"
report["interpreter"] = [json.loads(line) for line in open(path)] if os.path.exists(path) else []
report["beside_torch"] = report["steps"].get("torch", {}).get("result", {}).get("rows", [])
json.dump(report, open(out, "w"), indent=1)
print(f"{out}: {len(report['interpreter'])} outputs compared with the interpreter, {len(report['beside_torch'])} times beside PyTorch's")
for kind in ("failed", "timed_out", "left_out"):
    print(f"  {kind.replace('_', ' ')}: {', '.join(report[kind]) or 'none'}")
sys.exit(bool(report["failed"] or report["timed_out"] or report["left_out"]))
