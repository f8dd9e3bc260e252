#!/usr/bin/env bash
# The chat templates of many published models, which TRL's package carries, rendered here and by transformers: byte for byte.
#
# usage: scripts/chat-templates.sh
#
# The Python is $TRIMTAB_PYTHON, else an environment in target/ that is made once. It needs transformers==5.23.0,
# trl==1.16.0 and jinja2.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${TRIMTAB_PYTHON:-target/chat-templates/venv/bin/python}
if [ ! -x "$python" ]; then
    python3 -m venv target/chat-templates/venv
    "$python" -m pip install --quiet transformers==5.23.0 jinja2==3.1.6
    "$python" -m pip install --quiet --no-deps trl==1.16.0
fi
folder=$PWD/target/chat-templates/published
mkdir -p "$folder"
package=$("$python" -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("trl").origin).parent)')
cp "$package"/chat_templates/*.jinja "$folder"
"$python" tests/golden/generate_chat.py "$folder" "$folder/golden.json"
TRIMTAB_CHAT_TEMPLATES=$folder cargo test --test chat -- published
