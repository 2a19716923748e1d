"""A page that is served by a process of its own, and a visitor without a browser."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

# reports every machine that the process speaks to, and every name that it asks about
WATCHED = """
import sys
def watch(event, details):
    if event in ("socket.connect", "socket.sendto"):
        address = details[1] if event == "socket.connect" else details[-1]
        if not isinstance(address, (str, bytes)) and not str(address[0]).startswith(("127.", "::1")):
            print("OUTBOUND", event, address, file=sys.stderr, flush=True)
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if str(details[0]) not in ("127.0.0.1", "localhost", "::1", "None"):
            print("OUTBOUND", event, details[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
"""


class Served:
    """A running page.

    Args:
        script: What the process runs.
        folder: Where it runs, with its temporary files below; its log lies there.
        environment: What its environment has beside ours; None takes a variable away.
    """

    def __init__(self, script, folder, **environment):
        self.temporary = Path(folder) / "tmp"
        self.temporary.mkdir()
        self.log = Path(folder) / "server.log"
        env = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONUNBUFFERED": "1"}
        env.pop("HF_HUB_OFFLINE", None)  # offline by itself, not because it was told to be
        for key, value in environment.items():
            env.pop(key, None) if value is None else env.update({key: value})
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED + script], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self.address = self._address()
        except BaseException:
            self.process.kill()
            raise

    def _address(self):
        for _ in range(1200):
            if found := re.search(r"page: (http://\S+)", self.said):
                return found.group(1)
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        raise AssertionError(f"the page did not start: {self.said}")

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    def sent_files(self):
        """What visitors sent and is still there (Gradio's empty marks and our examples aside)."""
        private = [p for p in self.temporary.rglob("*") if p.is_file() and "examples" not in p.parts]
        return [p for p in private if p.stat().st_size]

    def end(self):
        """End it as a system does, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(30)
        self.process.kill()
        return self.process.wait()


def upload(address, *paths):
    """Send files; their places on the server."""
    parts = [("files", (Path(path).name, Path(path).read_bytes())) for path in paths]
    answer = httpx.post(f"{address}/gradio_api/upload", files=parts, timeout=60)
    answer.raise_for_status()
    return answer.json()


def ask(address, places, session="visitor", **said):
    """Have files answered that lie at these places; the last message of the server."""
    config = httpx.get(f"{address}/config", timeout=60).json()
    number = next(d["id"] for d in config["dependencies"] if any(event == "upload" for _, event in d["targets"]))
    files = [{"path": place, "meta": {"_type": "gradio.FileData"}, **said} for place in places]
    body = {"data": [files], "fn_index": number, "session_hash": session}
    httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=60).raise_for_status()
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[6:]) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")
