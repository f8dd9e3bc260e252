"""Data files that pyarrow, pandas and datasets write, and the rows that they hold as pyarrow and pandas read them.

    python tests/golden/generate_formats.py OUT_DIR      # OUT_DIR = tests rewrites golden/formats/

Made with pyarrow 26.0.1, pandas 3.1.1 and datasets 5.2.0.
"""
import datetime
import decimal
import json
import sys
from pathlib import Path

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [
    {
        "text": f"line {i}, \"quoted\"\nwith café 日本語" if i % 3 else None,
        "messages": [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": None if i == 4 else f"Answer {i}."},
        ][: i % 3],
        "input_ids": list(range(i % 5)) if i != 2 else None,
        "nested": [[1.5], [], [2.0, -0.25]] if i % 2 else [],
        "label": i % 4,
        "yes": i % 2 == 0,
        "same": "constant",
        "price": decimal.Decimal(i) / 4,
        "byte": i,
        "date": datetime.date(2024, 1, 1 + i),
        "tools": [("name", f"tool {i}")],
        "answers": {"text": [f"a{i}"], "answer_start": [i]},
    }
    for i in range(12)
]
SCHEMA = pa.schema([
    ("text", pa.string()),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
    ("input_ids", pa.list_(pa.int64())),
    ("nested", pa.list_(pa.list_(pa.float32()))),
    ("label", pa.int64()),
    ("yes", pa.bool_()),
    ("same", pa.dictionary(pa.int32(), pa.string())),
    ("price", pa.decimal128(9, 2)),
    ("byte", pa.uint8()),
    ("date", pa.date32()),
    ("tools", pa.map_(pa.string(), pa.string())),
    ("answers", pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])),
])
FILES = {
    "plain": {"compression": "none", "use_dictionary": False},
    "snappy": {"compression": "snappy", "row_group_size": 5},
    "zstd": {"compression": "zstd", "data_page_version": "2.0"},
    "gzip": {"compression": "gzip"},
    "lz4": {"compression": "lz4", "data_page_size": 16},
    "brotli": {"compression": "brotli"},
    "delta": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "label": "DELTA_BINARY_PACKED"}},
    "split": {"use_dictionary": False, "column_encoding": {"nested.list.element.list.element": "BYTE_STREAM_SPLIT"}},
}


def plain(value):
    """A value as trimtab has it: decimals as numbers, dates as ISO text, maps as objects."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def main(out):
    folder = Path(out) / "golden" / "formats"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    for name, options in FILES.items():
        pq.write_table(table, folder / f"{name}.parquet", store_schema=False, **options)
        read = pq.read_table(folder / f"{name}.parquet").to_pylist()
        assert [plain(row) for row in read] == [plain(row) for row in ROWS], name
    rows = [plain(row) for row in ROWS]
    for row in rows:
        row["same"] = "constant"

    chats = [{"messages": row["messages"], "label": row["label"]} for row in rows]
    datasets.Dataset.from_list(chats).to_parquet(str(folder / "datasets.parquet"))

    frame = pandas.DataFrame({
        "text": ["plain", "a, \"b\"\nc", "007", " spaces ", "NA", "käse", "true"],
        "label": [0, 1, 2, 0, 1, 2, 1],
        "score": [0.5, -1.0, 1e-7, 2.0, 3.0, 4.0, 5.0],
        "flag": [True, False, True, False, True, False, True],
        "input_ids": [json.dumps([i, i + 1]) for i in range(7)],
        "note": ["x", None, "y", None, "z", None, "w"],
    })
    frame.to_csv(folder / "pandas.csv", index=False)
    frame.to_csv(folder / "pandas.tsv", index=False, sep="\t", lineterminator="\r\n", quoting=1)
    frame.to_csv(folder / "pandas.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
    cells = pandas.read_csv(folder / "pandas.csv", dtype=str, keep_default_na=False).to_dict("records")
    want = {"parquet": rows, "datasets": chats, "cells": cells}
    (folder / "rows.json").write_text(json.dumps(want, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
