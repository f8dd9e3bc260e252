"""Which tokens' embeddings PEFT's prompt tuning starts from: `prompt_tuning_init="TEXT"` with tokenizers of golden/tokenizers
and assets/base, the embedding of a token being its number.

    python tests/golden/generate_prompt.py OUT_DIR      # OUT_DIR = tests/golden rewrites prompt.json
    python tests/golden/generate_prompt.py --load FOLDER...   # PEFT loads folders that this engine saved

Made with peft 0.21.2, transformers 5.23.0.
"""
import json, os, shutil, sys, tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel, PromptEmbedding, PromptTuningConfig
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TEXT = "The lazy fox sleeps."


def rows(source, tokens, parts):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(source / "tokenizer.json", Path(folder) / "tokenizer.json")
        own = source / "tokenizer_config.json"
        text = own.read_text() if own.exists() else '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        (Path(folder) / "tokenizer_config.json").write_text(text)
        words = torch.nn.Embedding(100_000, 1)
        words.weight.data = torch.arange(100_000.0)[:, None]
        config = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=tokens, num_transformer_submodules=parts, token_dim=1,
            prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT, tokenizer_name_or_path=folder)
        return [int(x) for x in PromptEmbedding(config, words).embedding.weight[:, 0]]


if sys.argv[1] == "--load":
    for folder in sys.argv[2:]:
        base = AutoModelForCausalLM.from_pretrained(HERE.parent.parent / "assets" / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder)
        config = model.peft_config["default"]
        print(folder, config.prompt_tuning_init, config.prompt_tuning_init_text, model.get_prompt(1).abs().mean().item())
else:
    cases = []
    for folder in ("tests/golden/tokenizers/bert", "tests/golden/tokenizers/t5", "assets/base"):
        for tokens, parts in ((3, 1), (11, 2)):
            ids = rows(HERE.parent.parent / folder, tokens, parts)
            cases.append({"tokenizer": folder, "text": TEXT, "tokens": tokens, "parts": parts, "ids": ids})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(sys.argv[1]) / "prompt.json").write_text(f"[\n{lines}\n]\n")
