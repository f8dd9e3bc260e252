"""What tests/texts.rs expects: the ids and the texts that `tokenizers` gives for a few hundred lines with every tokenizer
among the fixtures.

    python tests/golden/generate_texts.py tests      # rewrites the committed files

Needs tokenizers; the committed files were made with tokenizers 0.23.3. It writes

  golden/texts.json     {"lines": [text], "tokenizers": [{"path", "sums": [[ids, text, text without special tokens]]}]}

Each sum is FNV-1a with 64 bits: of the ids as 32-bit numbers, least byte first, and of the texts' bytes. Lines that have a
token of the tokenizer written out, as `{special}`, have all of its added tokens there, by falling id, a space between.
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

TOKENIZERS = [
    "../assets/base/tokenizer.json",
    "golden/tokenizers/bert/tokenizer.json",
    "golden/tokenizers/t5/tokenizer.json",
    "fixtures/field/spm_tokenizer/tokenizer.json",
    "fixtures/field/added_tokens_in_tokenizer_config/tokenizer.json",
    "fixtures/field/generate_token_out_of_range/tokenizer.json",
]
FIXED = [
    "", " ", "  ", "\n", "\t", "\r\n", "a", " a", "a ", " a ", "fn main() { println!(\"{}\", x[0] as f32 / 2.0e-3); }",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i]; // half\n}\n", "    return self.x if self.x is not None else 0\n",
    "SELECT * FROM t WHERE a <> 'it''s' AND b >= 10;", "<html><body class=\"a\">&amp;</body></html>", "{\"a\": [1, 2, {}]}",
    "don't we'll they've I'm you'd it's CAN'T", "1234567890 3.14159 1,000,000 0x1F 1e-9", "Hello, World! How are you?",
    "🦀", "🦀🦀🦀", "a🦀b", "👩‍👩‍👧‍👦 family", "🇫🇷🇩🇪", "👍🏽 ok", "❤️", "今天天气很好，我们去公园吧。", "日本語 の 本 を 読む", "한국어 문장입니다",
    "مرحبا بالعالم، كيف حالك؟", "السَّلامُ عَلَيْكُمْ", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Привет, мир!", "Ελληνικά", "naïve café",
    "nai\u0308ve cafe\u0301", "e\u0301\u0302\u0303", "\u0301a", "Z\u0351\u036b\u0343a\u0363\u0348l\u034dg\u0321o", "ﬁ ﬂ Ａ１", "ß ẞ İ ı",
    "\u0000", "a\u0000b", "\u0001\u0002\u001b[31m", "\u007f\u0085\u009f", "\u200b\u200c\u200d\u2060\ufeff", "\u2028\u2029", "\u00a0\u3000\u2003x",
    "\ufffd", "a\ufffdb \ufffd\ufffd", "\u2581the \u2581", "Ġthe Ċ", "##ing ##", "<0x41><0x0A>", "\U0010ffff\U000f0000", "\ue000",
    "{special}", " {special} ", "go{special}on", "<s>", "</s>the", "<s> the", "the<|user|>the <|im_start|>on", "[CLS] the [MASK]", "<unk>",
]
RUNS = [c * n for c in (" ", "\n", "\t", "a", "é", "🦀", "日", "ab ", "\r\n") for n in (2, 3, 4, 5, 8, 16, 17, 33, 64, 200)]


def lines():
    """The fixed ones, runs, and mixtures of both drawn at random."""
    draw = random.Random(10)
    parts = [line for line in FIXED if line.strip()] + RUNS
    mixed = [draw.choice(["", " "]).join(draw.choices(parts, k=draw.randint(2, 6)))[:200] for _ in range(200)]
    return FIXED + RUNS + mixed


def fnv(data):
    """FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def sums(tokenizer, line):
    """The sums of a line."""
    added = sorted(tokenizer.get_added_tokens_decoder().items(), reverse=True)
    text = line.replace("{special}", " ".join(token.content for _, token in added))
    ids = tokenizer.encode(text, add_special_tokens=True).ids
    texts = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
    return [fnv(b"".join(i.to_bytes(4, "little") for i in ids))] + [fnv(text.encode()) for text in texts]


def main():
    tests = Path(sys.argv[1])
    result = {"lines": lines(), "tokenizers": []}
    for path in TOKENIZERS:
        tokenizer = Tokenizer.from_file(str(tests / path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        result["tokenizers"].append({"path": path, "sums": [sums(tokenizer, line) for line in result["lines"]]})
    (tests / "golden" / "texts.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


main()
