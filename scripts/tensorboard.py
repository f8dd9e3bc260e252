"""Reads a run's event files with TensorBoard, and compares them with its metrics.jsonl. usage: tensorboard.py RUN"""

import json
import struct
import sys
from collections import defaultdict
from pathlib import Path

# Beside this file, which has the package's name.
sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from tensorboard.backend.event_processing import plugin_event_accumulator  # noqa: E402


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


run = Path(sys.argv[1])
expected = defaultdict(list)
for line in (run / "metrics.jsonl").read_text().splitlines():
    event = json.loads(line)
    if event["event"] == "step":
        for name in ["loss", "grad_norm", "tokens", "trained_tokens", "tokens_per_second", "skipped"]:
            expected[f"train/{name}"].append((event["step"], f32(event[name])))
        expected["train/learning_rate"].append((event["step"], f32(event["lr"])))
    elif event["event"] == "eval":
        for name, value in {"loss": event["loss"], **event["metrics"]}.items():
            expected[f"eval/{name}"].append((event["step"], f32(value)))

# What `tensorboard` serves is read by the second one, which turns numbers into tensors.
old = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
old.Reload()
new = plugin_event_accumulator.EventAccumulator(str(run), size_guidance=None, tensor_size_guidance={"scalars": 1000})
new.Reload()
for tag, points in expected.items():
    assert [(event.step, event.value) for event in old.Scalars(tag)] == points, tag
    tensors = [(event.step, event.tensor_proto.float_val[0]) for event in new.Tensors(tag)]
    assert tensors == points, (tag, tensors, points)
    assert new.SummaryMetadata(tag).plugin_data.plugin_name == "scalars", tag
assert sorted(old.Tags()["scalars"]) == sorted(expected), old.Tags()
assert new.SummaryMetadata("settings").plugin_data.plugin_name == "text"
text = new.Tensors("settings")[-1].tensor_proto.string_val[0].decode()
assert "    rank = 2\n" in text, text
print(f"TensorBoard reads {len(expected)} tags and the settings as metrics.jsonl has them")
