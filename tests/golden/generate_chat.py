"""Writes chat.json: what transformers makes of the conversations in chat/ with the templates there; and chat_smollm2.json, with
the template of SmolLM2's GGUF file, if that is there.

Made with transformers 5.23.0 and Jinja2 3.1.6: python generate_chat.py
With a folder of other templates and a file as arguments, their texts are written there; scripts/chat-templates.sh does that with
templates that packages carry.
"""

import datetime
import json
import sys
from pathlib import Path

import transformers.utils.chat_template_utils as utils

HERE = Path(__file__).parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# Friday, 2026-07-31 09:56:09.
CLOCK = 1_785_491_769


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=CLOCK)


utils.datetime = Clock


def render(source, chat, prompt, marks):
    messages = [{k: v for k, v in message.items() if v is not None} for message in chat["messages"]]
    variables = {**SPECIAL, **chat.get("variables", {})}
    texts, generated = utils.render_jinja_template(
        [messages], tools=chat.get("tools"), chat_template=source, add_generation_prompt=prompt,
        return_assistant_tokens_mask=marks, **variables,
    )
    return texts[0], generated[0] if marks else None


def of_gguf(path):
    """The chat template that a GGUF file has in its metadata: a key, the type of a string, a length, the text."""
    key = b"tokenizer.chat_template"
    data = path.read_bytes()[:1 << 24]
    at = data.index(len(key).to_bytes(8, "little") + key) + 8 + len(key)
    assert data[at:at + 4] == (8).to_bytes(4, "little")
    length = int.from_bytes(data[at + 4:at + 12], "little")
    return data[at + 12:at + 12 + length].decode()


def main():
    folder, out = (Path(sys.argv[1]), Path(sys.argv[2])) if len(sys.argv) > 2 else (HERE / "chat", HERE / "chat.json")
    chats = json.loads((HERE / "chat/conversations.json").read_text())
    # As transformers opens them: other line ends become line feeds.
    sources = [(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.jinja"))]
    write(out, chats, sources)
    model = HERE.parents[1] / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if out.parent == HERE and model.exists():
        write(HERE / "chat_smollm2.json", chats, [(model.name, of_gguf(model))])


def write(out, chats, sources):
    cases = []
    for name, source in sources:
        for chat in chats:
            for prompt in (False, True):
                case = {"template": name, "chat": chat["name"], "prompt": prompt}
                try:
                    case["text"], _ = render(source, chat, prompt, False)
                    if "{% generation" in source or "{%- generation" in source:
                        case["text"], case["generated"] = render(source, chat, prompt, True)
                except Exception as error:
                    kind = type(error).__name__
                    case["raised" if kind == "TemplateError" else "failed"] = str(error)
                cases.append(case)
    golden = {"clock": CLOCK, "special": SPECIAL, "cases": cases}
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=True) + "\n")
    kinds = [next(kind for kind in ("text", "raised", "failed") if kind in case) for case in cases]
    print(out, {kind: kinds.count(kind) for kind in set(kinds)})


main()
