"""What `trimtab push` asks of a hub, beside what huggingface_hub asks for the same files: the same, to the bytes that are sent.

usage: push_protocol.py TRIMTAB WORK
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What the hub's own library does with a folder.
THEIRS = """
import pathlib, sys
from huggingface_hub import CommitOperationAdd, HfApi
folder, api = pathlib.Path(sys.argv[1]), HfApi()
api.create_repo("me/a", private=True, exist_ok=True)
names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
api.create_commit("me/a", operations=[CommitOperationAdd(n, str(folder / n)) for n in names], commit_message="S")
"""

seen = []
piece = None


class Hub(BaseHTTPRequestHandler):
    """Says yes to everything, and remembers what was asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def asked(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type")
        if self.command == "PUT":
            sent = hashlib.sha256(body).hexdigest()
            assert self.headers.get("Authorization") is None, "large storage gets no token"
        elif kind == "application/x-ndjson":
            sent = [json.loads(line) for line in body.decode().splitlines()]
            sent[0]["value"]["summary"] = "S"
        else:
            sent = json.loads(body)
        seen.append((self.command, self.path, kind, sent))
        here = f"http://{self.headers['Host']}"
        if "/preupload/" in self.path:
            mode = lambda file: "lfs" if file["size"] > 5000 else "regular"
            files = [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in sent["files"]]
            return self.reply({"files": files})
        if self.path.endswith("/objects/batch"):
            objects = []
            for one in sent["objects"]:
                upload = {"href": f"{here}/put/{one['oid']}"}
                if piece:
                    parts = {f"{n:05}": f"{here}/part/{n}" for n in range(1, 1 + -(-one["size"] // piece))}
                    upload = {"href": f"{here}/complete", "header": {"chunk_size": str(piece), **parts}}
                objects.append({**one, "actions": {"upload": upload, "verify": {"href": f"{here}/verify"}}})
            return self.reply({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            return self.reply({"success": True, "commitUrl": f"{here}/me/a/commit/1", "commitOid": "1" * 40})
        return self.reply({"url": f"{here}/me/a"}, **({"ETag": '"tag"'} if "/part/" in self.path else {}))

    do_POST = do_PUT = asked


def requests(command, env):
    seen.clear()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # The library has the card checked first, and leaves out what is the default.
    kept = [request for request in seen if not request[1].endswith("/validate-yaml")]
    kept[0][3].pop("type", None)
    return kept


def main():
    global piece
    trimtab, work = sys.argv[1], Path(sys.argv[2]) / "push"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_x", "HF_HOME": str(work / "hf")}
    env.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    folder = work / "adapter"
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": "org/tiny", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 50)
    push = [trimtab, "push", str(folder), "me/a", "--private"]
    told = subprocess.run([*push, "--dry-run"], env=env, check=True, capture_output=True, text=True).stdout
    (folder / "README.md").write_text(told[told.index("---\n") :])
    for piece in (None, 3000):
        ours = requests(push, env)
        theirs = requests([sys.executable, "-c", THEIRS, str(folder)], env)
        assert len(ours) == len(theirs), (ours, theirs)
        for one, other in zip(ours, theirs):
            assert one == other, f"trimtab: {one}\nhuggingface_hub: {other}"
        print(f"push: {len(ours)} requests as huggingface_hub's" + (f", parts of {piece} bytes" if piece else ""))


main()
