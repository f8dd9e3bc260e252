"""Writes trl.json: masks, losses and gradient norms of ten steps of TRL's SFTTrainer on conversations, assistant_only_loss.

Made with trl 1.16.0, transformers 5.23.0 and torch 2.15.0: python generate_trl.py
The model is assets/base in float32, the rows are trl.jsonl, the template chat/chatml.jinja, which marks what is generated. The
same is done in float64, so that the test knows how far float32 carries.
"""

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "assets/base"
STEPS, BATCH, LR = 10, 2, 1e-4


class InOrder(SFTTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def run(rows, dtype):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    tokenizer.chat_template = (HERE / "chat/chatml.jinja").read_text()
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype, attn_implementation="eager")
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, assistant_only_loss=True, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR,
            lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no", bf16=False, fp16=False,
            gradient_checkpointing=False, max_length=256, packing=False, max_grad_norm=1.0, weight_decay=0.0, use_cpu=True,
            shuffle_dataset=False, optim="adamw_torch", loss_type="nll", seed=0,
        )
        trainer = InOrder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        data = [dict(row) for row in trainer.train_dataset]
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return data, log, trainer


def main():
    rows = [json.loads(line) for line in (HERE / "trl.jsonl").read_text().splitlines()]
    seen = {}
    for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        data, log, trainer = run(rows, dtype)
        seen[name] = {"loss": [entry["loss"] for entry in log], "grad_norm": [entry["grad_norm"] for entry in log]}
        assert len(log) == STEPS, log
    print(data[0].keys())
    labels = [row["labels"] if "labels" in row else
              [i if m else -100 for i, m in zip(row["input_ids"], row["assistant_masks"])] for row in data]
    golden = {"rows": [{"input_ids": row["input_ids"], "labels": l} for row, l in zip(data, labels)],
              "batch": BATCH, "lr": LR, **seen}
    (HERE / "trl.json").write_text(json.dumps(golden) + "\n")
    print(seen)


main()
