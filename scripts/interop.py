"""Adapters and models between Trimtab and PEFT, both ways: the loss of the same rows under either, for every method that
has PEFT's files and every family. scripts/interop.sh starts it.

usage: interop.py TRIMTAB FOLDER [CASE ...]

A case "ours" trains with Trimtab, saves, and opens what was saved with PEFT (whole models with transformers); a case
"theirs" draws an adapter with PEFT and opens it with Trimtab. Trimtab's loss is that of its `--eval-data`. PEFT's is
computed in float64, so that it is the true value but for Trimtab's rounding.

Tolerance: PEFT computes the loss in float32 too, and its distance from float64 is how far rounding reaches in this model.
Trimtab's sums have other orders, so up to 16 times that is allowed, and at least 64 units in the last place of the loss,
since the one distance may be small by luck. The control is the same adapter with every tensor 2 % larger: its loss must
be out of tolerance, or the case shows nothing.
"""
import json
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import (IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, TrainableTokensConfig,
                  get_peft_model)
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
LABELS = 3

# A model of each family: folder, layers that LoRA adapts, IA3's (and those of them that are feed-forward), a token table.
FAMILIES = {
    "llama": ("golden/base", ["q_proj", "v_proj", "down_proj"], (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
              "embed_tokens"),
    "gpt2": ("families2/gpt2-full/model", ["c_attn", "mlp.c_proj"], (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]), "wte"),
    "bert": ("families2/bert-classify-lora/model", ["query", "value", "output.dense"],
             (["key", "value", "output.dense"], ["output.dense"]), "word_embeddings"),
    "t5": ("families2/t5-full/model", ["q", "v", "wo"], (["k", "v", "wo"], ["wo"]), "shared"),
}
# Models of their own: no file has the heads of all tasks, and a config has the labels of one.
OF_TASK = {("bert", "masked-lm"): "families2/bert-mlm-lora/model",
           ("bert", "question-answering"): "families2/bert-qa-lora/model"}
# What `modules_to_save` names. PEFT copies T5's `shared`, but transformers' model reads another module of the same weight, so
# that the copy has no effect there.
SAVED = {"llama": "embed_tokens", "gpt2": "wte", "bert": "word_embeddings", "t5": "lm_head"}
# Trimtab's name of a task: PEFT's, transformers' class.
TASKS = {
    "causal-lm": ("CAUSAL_LM", "AutoModelForCausalLM"),
    "seq2seq": ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM"),
    "sequence-classification": ("SEQ_CLS", "AutoModelForSequenceClassification"),
    "token-classification": ("TOKEN_CLS", "AutoModelForTokenClassification"),
    "question-answering": ("QUESTION_ANS", "AutoModelForQuestionAnswering"),
    "masked-lm": (None, "AutoModelForMaskedLM"),
}
USUAL = {"llama": "causal-lm", "gpt2": "causal-lm", "bert": "sequence-classification", "t5": "seq2seq"}
MORE = [("llama", "sequence-classification"), ("gpt2", "token-classification"), ("bert", "token-classification"),
        ("bert", "question-answering"), ("bert", "masked-lm"), ("t5", "question-answering")]


def lora(family, task, **more):
    return LoraConfig(r=4, lora_alpha=8, target_modules=FAMILIES[family][1], task_type=task,
                      fan_in_fan_out=family == "gpt2", **more)


def ia3(family, task):
    modules, forward = FAMILIES[family][2]
    return IA3Config(target_modules=modules, feedforward_modules=forward, task_type=task, fan_in_fan_out=family == "gpt2")


# A method: Trimtab's flags (None: it makes no such adapter), PEFT's config (None: PEFT makes no such adapter).
METHODS = {
    "lora": (["--rank", "4"], lora),
    "lora, bias, rslora": (["--rank", "4", "--bias", "all", "--rslora"],
                           lambda f, t: lora(f, t, bias="all", use_rslora=True)),
    "dora": (["--rank", "4", "--dora"], lambda f, t: lora(f, t, use_dora=True)),
    "lora, tokens": (["--rank", "4", "--trainable-tokens", "5,9"],
                     lambda f, t: lora(f, t, trainable_token_indices=[5, 9])),
    "qlora": (["--rank", "4"], None),
    "ia3": (["--method", "ia3", "--lr", "0.05"], ia3),
    "prompt": (["--method", "prompt", "--virtual-tokens", "4", "--lr", "0.05"],
               lambda f, t: PromptTuningConfig(task_type=t, num_virtual_tokens=4)),
    "prefix": (["--method", "prefix", "--virtual-tokens", "4"],
               lambda f, t: PrefixTuningConfig(task_type=t, num_virtual_tokens=4)),
    "prefix, projected": (["--method", "prefix", "--virtual-tokens", "4", "--prefix-projection"], None),
    "trainable-tokens": (["--method", "trainable-tokens", "--trainable-tokens", "5,9,11,20", "--lr", "0.2"],
                         lambda f, t: TrainableTokensConfig(task_type=t, token_indices=[5, 9, 11, 20],
                                                            target_modules=[FAMILIES[f][3]])),
    "modules_to_save": (None, lambda f, t: lora(f, t, modules_to_save=[SAVED[f]])),
    "bitfit": (["--method", "bitfit"], None),
    "full": (["--method", "full"], None),
}
# What a family has no part for. Llama's and T5's layers have no biases; QLoRA's base is one that `trimtab synth` writes.
NOT = {("llama", "bitfit"), ("t5", "bitfit"), ("gpt2", "qlora"), ("bert", "qlora"), ("t5", "qlora")}


def draw(task, vocab, count=6):
    """Rows as Trimtab reads them, without padding."""
    g = torch.Generator().manual_seed(7)
    ints = lambda low, high, n: torch.randint(low, high, (n,), generator=g).tolist()
    rows = []
    for i in range(count):
        ids = ints(5, vocab, 8 + i) + [5, 9, 11, 20]
        n = len(ids)
        rows.append({"input_ids": ids, **{
            "causal-lm": lambda: {"labels": [-100] * 2 + ids[2:]},
            "seq2seq": lambda: {"labels": ints(5, vocab, 4 + i) + [9]},
            "sequence-classification": lambda: {"label": i % LABELS},
            "token-classification": lambda: {"labels": [-100] + ints(0, LABELS, n - 1)},
            "question-answering": lambda: {"start_position": 1 + i % 3, "end_position": 4 + i % 3},
            "masked-lm": lambda: {"labels": [x if j % 3 == 0 else -100 for j, x in enumerate(ids)]},
        }[task]()})
    return rows


def theirs(model, rows, task):
    """The mean loss of rows, each computed alone."""
    model.eval()
    total, units = 0.0, 0
    for row in rows:
        batch = {"input_ids": torch.tensor([row["input_ids"]])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if task == "sequence-classification":
            batch["labels"], n = torch.tensor([row["label"]]), 1
        elif task == "question-answering":
            batch["start_positions"] = torch.tensor([row["start_position"]])
            batch["end_positions"], n = torch.tensor([row["end_position"]]), 1
        else:
            batch["labels"] = torch.tensor([row["labels"]])
            n = sum(label != -100 for label in row["labels"][task == "causal-lm":])
        with torch.no_grad():
            total += n * model(**batch).loss.item()
        units += n
    return total / units


def either(make, rows, task):
    """The loss in float64, and how far float32 is from it."""
    exact = theirs(make().double(), rows, task)
    return exact, abs(theirs(make().float(), rows, task) - exact)


def decoded(folder, into):
    """A folder of a model in bitsandbytes' NF4, as one in float32."""
    state, out = load_file(folder / "model.safetensors"), {}
    for name, value in state.items():
        if f"{name}.absmax" in state:
            about = json.loads(bytes(state[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
            codes = value.flatten()
            codes = torch.stack([codes >> 4, codes & 15], 1).flatten().long()
            blocks = state[f"{name}.quant_map"][codes].view(-1, about["blocksize"])
            out[name] = (blocks * state[f"{name}.absmax"][:, None]).view(about["shape"])
        elif not any(f"{name.rsplit(end, 1)[0]}.absmax" in state for end in (".absmax", ".quant_map", ".quant_state.")):
            out[name] = value.float()
    into.mkdir(parents=True)
    save_file(out, into / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (into / "config.json").write_text(json.dumps(config))
    return into


class Failed(Exception):
    pass


def trimtab(*args):
    done = subprocess.run([TRIMTAB, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")


def train(work, model, task, rows, *flags):
    """Trains, and returns Trimtab's loss after it."""
    data = work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trimtab("train", "--model", model, "--task", task, "--data", data, "--eval-data", data, "--out", work / "out",
            "--device", "cpu", "--max-seq-len", 32, "--batch-size", 6, "--schedule", "constant", *flags)
    events = [json.loads(line) for line in (work / "out" / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "eval"][-1]


def enlarged(folder):
    """The control: a copy of a folder whose tensors are 2 % larger."""
    copy = folder.with_name(folder.name + "-enlarged")
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            save_file({k: v * 1.02 for k, v in load_file(file).items()}, copy / file.name, metadata={"format": "pt"})
        elif file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def base_of(work, family, task, method):
    """The folders of a base model for Trimtab and for transformers."""
    model = FIXTURES / OF_TASK.get((family, task), FAMILIES[family][0])
    if method != "qlora":
        return model, model
    trimtab("synth", "--like", model / "config.json", "--out", work / "nf4", "--quantize", "nf4", "--dtype", "f32")
    return work / "nf4", decoded(work / "nf4", work / "decoded")


def opened(model, cls, task):
    labels = {"num_labels": LABELS} if task.endswith("-classification") else {}
    torch.manual_seed(1)
    return getattr(transformers, cls).from_pretrained(model, dtype=torch.float32, **labels)


def case(work, side, family, task, method):
    """Trimtab's loss, PEFT's, the tolerance, and the control's."""
    flags, config = METHODS[method]
    peft_task, cls = TASKS[task]
    model, plain = base_of(work, family, task, method)
    vocab = json.loads((plain / "config.json").read_text())["vocab_size"]
    rows = draw(task, vocab)
    if side == "ours":
        ours = train(work, model, task, rows, "--steps", 5, "--lr", "0.02", *flags)
        folder = work / "out"
    else:
        torch.manual_seed(3)
        made = get_peft_model(opened(plain, cls, task), config(family, peft_task))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        folder = work / "made"
        made.save_pretrained(folder)
        if task.endswith("-classification"):
            # PEFT's files do not say how many labels of which kind there are; the model's config does.
            made.base_model.config.save_pretrained(folder)
        ours = train(work, model, task, rows, "--steps", 1, "--lr", "0", "--adapter", folder)

    def load(folder):
        if method == "full":
            return opened(folder, cls, task)
        if method == "bitfit":
            # PEFT has no such method: the tensors have the base model's names.
            made = opened(plain, cls, task)
            tensors = load_file(folder / "adapter_model.safetensors")
            left = made.load_state_dict({k.removeprefix("base_model.model."): v for k, v in tensors.items()}, strict=False)
            if left.unexpected_keys:
                raise Failed(f"no place for {left.unexpected_keys}")
            return made
        return PeftModel.from_pretrained(opened(plain, cls, task), folder)

    exact, rounding = either(lambda: load(folder), rows, task)
    control = theirs(load(enlarged(folder)).double(), rows, task)
    tolerance = max(16 * rounding, 64 * 2.0 ** -24 * abs(exact))
    return ours, exact, tolerance, control


def cases():
    for side in ("ours", "theirs"):
        for method, (flags, config) in METHODS.items():
            if (flags if side == "ours" else config) is None:
                continue
            for family, task in [*USUAL.items(), *(MORE if method == "lora" else [])]:
                if (family, method) not in NOT:
                    yield side, family, task, method


def main(work, wanted):
    failed = count = 0
    print(f"{'case':<66} {'trimtab':>10} {'PEFT':>10} {'difference':>11} {'tolerance':>10} {'control':>10}")
    for number, one in enumerate(cases()):
        name = ": ".join([one[0], ", ".join(one[1:])])
        if wanted and not any(w in name for w in wanted):
            continue
        count += 1
        folder = work / str(number)
        folder.mkdir(parents=True)
        try:
            ours, exact, tolerance, control = case(folder, *one)
        except Exception as e:
            print(f"{name:<66} {type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e).strip() else ''}")
            failed += 1
            continue
        right, seen = abs(ours - exact) <= tolerance, abs(control - ours) > tolerance
        failed += not (right and seen)
        print(f"{name:<66} {ours:10.6f} {exact:10.6f} {abs(ours - exact):11.1e} {tolerance:10.1e} "
              f"{abs(control - ours):10.1e}{'' if right else '  DIFFERS'}{'' if seen else '  CONTROL NOT SEEN'}", flush=True)
    print(f"{count} cases, {failed} failed")
    return failed or not count


TRIMTAB = sys.argv[1]
sys.exit(bool(main(Path(sys.argv[2]), sys.argv[3:])))
