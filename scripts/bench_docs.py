"""Puts what was measured into the page: bench_docs.py PAGE NAME FILE

What PAGE has between `<!-- NAME -->` and `<!-- /NAME -->` becomes the text of FILE. scripts/bench-all.sh calls it after each part.
"""
import re
import sys
from pathlib import Path

page, name, file = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
text = page.read_text()
begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
if text.count(begin) != 1 or text.count(end) != 1:
    sys.exit(f"{page}: found no place for {name}, expected {begin} and {end}, once")
new = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{file.read_text().strip()}\n{end}", text, flags=re.S)
page.write_text(new)
