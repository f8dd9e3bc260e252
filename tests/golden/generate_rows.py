"""What tests/tasks.rs expects of rows of text: the features that transformers' examples make of them (run_qa.py's
prepare_train_features, run_ner.py's tokenize_and_align_labels, run_glue.py's and run_summarization.py's preprocess_function),
with the tokenizers of golden/tokenizers.

    python tests/golden/generate_rows.py OUT_DIR      # OUT_DIR = tests rewrites golden/rows.json

Made with transformers 5.23.0.
"""
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import BertTokenizerFast, PreTrainedTokenizerFast

HERE = Path(__file__).parent
CONTEXT = "The river rises in the hills near Paris, where the café serves 日本語 and the lazy fox sleeps on. In 1999 the city had 12 bridges."


def answer(text, context=CONTEXT):
    return {"text": [text], "answer_start": [context.index(text)]}


SQUAD = [
    {"question": "Where does the river rise?", "context": CONTEXT, "answers": answer("in the hills")},
    {"question": "Who sleeps?", "context": CONTEXT, "answers": answer("the lazy fox")},
    {"question": "What is served?", "context": CONTEXT, "answers": answer("日本語")},
    # Within words.
    {"question": "How many?", "context": CONTEXT, "answers": answer("2 bri")},
    {"question": "Who wrote it?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
]
LENGTHS = [(200, 16), (32, 8), (24, 5)]
NER = [
    {"tokens": ["Paris", "has", "naïve", "tourists", "."], "ner_tags": [1, 0, 0, 2, 0]},
    {"tokens": ["brûlée", "日本語", "12", "bridges"], "ner_tags": [2, 1, 0, 1]},
]
GLUE = [
    {"text": "The river rises.", "label": 1},
    {"text": "The quick brown fox jumps over the lazy dog.", "text_pair": "The dog sleeps.", "label": 0},
]


SEQ2SEQ = [
    {"source": "Where does the river rise?", "target": "The river rises in the hills."},
    {"source": "The lazy fox sleeps near the river.", "target": "The fox."},
]


def squad(tokenizer, row, max_len, stride):
    encoded = tokenizer(row["question"], row["context"], truncation="only_second", max_length=max_len, stride=stride,
                        return_overflowing_tokens=True, return_offsets_mapping=True)
    windows = []
    for i, offsets in enumerate(encoded["offset_mapping"]):
        ids, sequence = encoded["input_ids"][i], encoded.sequence_ids(i)
        cls, answers = ids.index(tokenizer.cls_token_id), row["answers"]
        start = end = cls
        if answers["answer_start"]:
            first, last = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            a = 0
            while sequence[a] != 1:
                a += 1
            b = len(ids) - 1
            while sequence[b] != 1:
                b -= 1
            if offsets[a][0] <= first and offsets[b][1] >= last:
                while a < len(offsets) and offsets[a][0] <= first and sequence[a] == 1:
                    a += 1
                start = a - 1
                while offsets[b][1] >= last and sequence[b] == 1:
                    b -= 1
                end = b + 1
        windows.append({"input_ids": ids, "token_type_ids": encoded["token_type_ids"][i], "span": [start, end]})
    return windows


def ner(tokenizer, row, max_len):
    encoded = tokenizer(row["tokens"], truncation=True, is_split_into_words=True, max_length=max_len)
    labels, before = [], None
    for word in encoded.word_ids():
        labels.append(-100 if word is None or word == before else row["ner_tags"][word])
        before = word
    return {"input_ids": encoded["input_ids"], "labels": labels}


def main(out):
    tokenizer = BertTokenizerFast.from_pretrained(HERE / "tokenizers" / "bert")
    result = {
        "squad": [{"row": row, "max_len": n, "stride": s, "windows": squad(tokenizer, row, n, s)} for n, s in LENGTHS for row in SQUAD],
        "ner": [{"row": row, "max_len": n, "example": ner(tokenizer, row, n)} for n in (64, 10) for row in NER],
        "glue": [{"row": row, "max_len": n, "example": dict(tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=n))}
                 for n in (64, 12) for row in GLUE],
    }
    t5 = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizers" / "t5" / "tokenizer.json"))
    cut = lambda text, n: t5(text, truncation=True, max_length=n)["input_ids"]
    result["seq2seq"] = [{"row": row, "max_len": n, "max_target_len": m, "input_ids": cut(row["source"], n), "labels": cut(row["target"], m)}
                         for n, m in ((64, 64), (8, 6)) for row in SEQ2SEQ]
    text = json.dumps(result, ensure_ascii=False, indent=None, separators=(", ", ": "))
    (Path(out) / "golden" / "rows.json").write_text(text.replace('{"row"', '\n{"row"') + "\n")


main(sys.argv[1])
