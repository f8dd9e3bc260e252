"""What tests/encoders.rs expects of tokenizers of encoders: tiny ones, trained here, and what transformers makes of texts
with them.

    python tests/golden/generate_tokenizers.py OUT_DIR      # OUT_DIR = tests rewrites the committed files

Needs transformers and sentencepiece; the committed files were made with transformers 5.24.0, tokenizers 0.23.3,
sentencepiece 0.2.3. Training breaks ties as it comes, so tokenizers that are there already are kept: remove them to train
new ones. It writes

  OUT_DIR/golden/tokenizers/bert/{vocab.txt,tokenizer.json}      WordPiece
  OUT_DIR/golden/tokenizers/roberta/{vocab.json,merges.txt}      byte-level BPE
  OUT_DIR/golden/tokenizers/t5/tokenizer.json                    Unigram, with normalization rules of a few letters
  OUT_DIR/golden/tokenization.json

The last is a list of settings, each with the files of one of these folders, a tokenizer_config.json (null: none), and cases:
texts, pairs, windows and words, with ids, type ids, offsets (in bytes), number of text and of word for each token (-1: none).
"""
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import sentencepiece
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer, T5Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A café in Paris serves naïve tourists crème brûlée; the café is near the river.",
    "Where does the river rise? The river rises in the hills, where the fox sleeps.",
    "Who wrote the letter? The lazy tourist wrote a letter to the city of Paris.",
    "In 1999 the city had 12 bridges, 3 towers and 1 river.",
    "日本語 の 本 を 読む",
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  Héllo,  WORLD!\tNaïve CAFÉ\u2014日本語text\u00a0x \n",
    "one \u0000two\ufffd ﬁn ＡＢ１ e\u0301 🦀crab\u200dß",
    "a [MASK] or <mask> in [SEP]the</s> <|endoftext|> <extra_id_0>x",
    "",
    "x" * 120 + " the",
]
PAIRS = [
    ("Where does the river rise?", "The river rises in the hills near Paris, where 日本語 is read and foxes sleep.", [None, 40, 21, 12, 4]),
    ("The quick brown fox jumps over the lazy dog, naïvely.", "A café.", [None, 23, 12, 5]),
    ("the fox sleeps", "the dog sleeps", [10, 9, 8, 7]),
    ("", "the dog", [None, 5]),
    ("🦀", "🦀 é\u00a0é", [None, 9, 8]),
]
WINDOWS = [
    ("Where does the river rise?", "The river rises in the hills near Paris, where the café  serves 日本語 and the lazy fox sleeps on.", [(200, 0), (32, 0), (32, 7), (26, 3)]),
    ("Who?", "The lazy tourist wrote a letter to the city of Paris.", [(17, 1), (16, 4)]),
]
WORDS = [
    ["The", "quick", "fox", "jumps", "over", "Paris", ",", "naïvely", "日本語", "."],
    ["the", "", "the.", "</s>", "[MASK]", "the dog", "don't", "🦀", "\u0000", "1999"],
    ["tourists"],
    [],
]

MASK = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def bert(folder):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=330, min_frequency=1, special_tokens=special, show_progress=False)
    texts = [normalizers.NFKD().normalize_str(t.lower()) for t in CORPUS]
    tokenizer.train_from_iterator(CORPUS + [t.lower() for t in CORPUS] + texts, trainer)
    vocab = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in sorted(vocab, key=vocab.get)))
    # As transformers saves it.
    BertTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def roberta(folder):
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    tokenizer.train_from_iterator(CORPUS, vocab_size=262 + 120, min_frequency=2, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))


def t5(folder):
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        # The rules of nmt_nfkc fill 240 KB; these are some of them.
        rules = {"\u00a0": " ", "\t": " ", "\n": " ", "ﬁ": "fi", "Ａ": "A", "Ｂ": "B", "１": "1", "\u200d": "", "e\u0301": "é"}
        line = lambda s: " ".join(f"{ord(c):X}" for c in s)
        (work / "rules.tsv").write_text("".join(f"{line(a)}\t{line(b)}\n" for a, b in rules.items()))
        (work / "text").write_text("\n".join(CORPUS * 3))
        sentencepiece.SentencePieceTrainer.train(
            input=str(work / "text"), model_prefix=str(work / "spiece"), vocab_size=85, model_type="unigram",
            normalization_rule_tsv=str(work / "rules.tsv"), pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )
        (work / "spiece.model").rename(work / "model")
        (work / "only").mkdir()
        (work / "model").rename(work / "only" / "spiece.model")
        tokenizer = T5Tokenizer.from_pretrained(work / "only", extra_ids=3)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def encoded(encoding, texts):
    """`texts`: the text of (sequence, word) that offsets are of."""

    def in_bytes(i):
        start, end = encoding.offsets[i]
        text = texts(encoding.sequence_ids[i], encoding.word_ids[i]) if encoding.sequence_ids[i] is not None else ""
        return [len(text[:start].encode()), len(text[:end].encode())]

    none = lambda values: [-1 if v is None else v for v in values]
    return {
        "ids": encoding.ids,
        "type_ids": encoding.type_ids,
        "offsets": [b for i in range(len(encoding.ids)) for b in in_bytes(i)],
        "sequence": none(encoding.sequence_ids),
        "words": none(encoding.word_ids),
    }


def cases(tokenizer, spaced, every):
    """`spaced`: the same tokenizer, with a space before every word. `every`: all lengths, or the whole texts only."""
    found = []

    def run(case, tokenizer, texts, *args, **kw):
        try:
            batch = tokenizer(*args, return_overflowing_tokens="stride" in kw, **kw)
            out = [encoded(e, texts) for e in batch.encodings]
        except BaseException as e:  # the library's panics are BaseExceptions
            case["refused"], out = str(e)[:60], None
        found.append(case | {"out": out})

    # Words of more than 100 letters are for WordPiece.
    for text in TEXTS if isinstance(tokenizer, BertTokenizer) else TEXTS[:-1]:
        run({"text": text}, tokenizer, lambda s, w: text, text)
    run({"text": TEXTS[0], "max_len": 7}, tokenizer, lambda s, w: TEXTS[0], TEXTS[0], max_length=7, truncation=True)
    for a, b, lengths in PAIRS:
        for n in lengths if every else lengths[:1]:
            cut = {"max_length": n, "truncation": "longest_first"} if n else {}
            case = {"text": a, "pair": b} | ({"max_len": n} if n else {})
            run(case, tokenizer, lambda s, w: (a, b)[s], a, b, **cut)
    for a, b, sizes in WINDOWS if every else []:
        for n, stride in sizes:
            case = {"text": a, "pair": b, "max_len": n, "stride": stride}
            run(case, tokenizer, lambda s, w: (a, b)[s], a, b, max_length=n, stride=stride, truncation="only_second")
    for words in WORDS:
        for n in [None, 6] if every else [None]:
            cut = {"max_length": n, "truncation": True} if n else {}
            case = {"split": words} | ({"max_len": n} if n else {})
            run(case, spaced, lambda s, w: words[w], words, is_split_into_words=True, **cut)
    return found


def main(out):
    root = Path(out) / "golden" / "tokenizers"
    for make in [bert, roberta, t5]:
        if not (root / make.__name__).exists():
            (root / make.__name__).mkdir(parents=True)
            make(root / make.__name__)

    byte_level = ["vocab.json", "merges.txt"]
    settings = [
        # folder, files, tokenizer_config.json, transformers' class, arguments that stand for older defaults
        ("bert", ["tokenizer.json"], None, BertTokenizer, {}),
        ("bert", ["tokenizer.json"], {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "tokenize_chinese_chars": False}, BertTokenizer, {}),
        ("bert", ["vocab.txt"], None, BertTokenizer, {}),
        ("bert", ["vocab.txt"], {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, BertTokenizer, {}),
        ("bert", ["vocab.txt"], {"strip_accents": False}, BertTokenizer, {}),
        ("bert", ["vocab.txt"], {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}, BertTokenizer, {}),
        ("roberta", byte_level, None, RobertaTokenizer, {"mask_token": AddedToken("<mask>", lstrip=True)}),
        ("roberta", byte_level, {"tokenizer_class": "RobertaTokenizerFast", "mask_token": MASK, "add_prefix_space": True}, RobertaTokenizer, {}),
        ("roberta", byte_level, {"tokenizer_class": "RobertaTokenizer", "mask_token": MASK | {"lstrip": False}, "trim_offsets": False}, RobertaTokenizer, {}),
        ("roberta", byte_level, {"tokenizer_class": "GPT2Tokenizer"}, GPT2Tokenizer, {}),
        ("roberta", byte_level, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>", "add_prefix_space": True}, GPT2Tokenizer, {}),
        ("t5", ["tokenizer.json"], None, None, {}),
    ]
    rows = []
    for folder, files, config, cls, kw in settings:
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            for name in files:
                (work / name).write_bytes((root / folder / name).read_bytes())
            if config:
                (work / "tokenizer_config.json").write_text(json.dumps(config))
            if cls is None:
                from transformers import PreTrainedTokenizerFast

                tokenizer = spaced = PreTrainedTokenizerFast(tokenizer_file=str(work / "tokenizer.json"))
            else:
                tokenizer = spaced = cls.from_pretrained(work, **kw)
                if folder == "roberta":
                    spaced = cls.from_pretrained(work, **(kw | {"add_prefix_space": True}))
            found = cases(tokenizer, spaced, config is None or config == {"tokenizer_class": "GPT2Tokenizer"})
        head = {"folder": folder, "files": files, "config": config}
        lines = ",\n  ".join(json.dumps(c, separators=(",", ":")) for c in found)
        rows.append(json.dumps(head)[:-1] + ', "cases": [\n  ' + lines + "\n]}")
    text = "[\n" + ",\n".join(rows) + "\n]\n"
    json.loads(text)
    (Path(out) / "golden" / "tokenization.json").write_text(text)
    print(len(text), "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
