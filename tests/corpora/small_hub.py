"""A Hub of a few data sets on 127.0.0.1: what `datasets` asks of the real one to read Parquet, and its refusals."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(folders: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve folders as data set repositories by their ids; yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            place = unquote(urlparse(self.path).path).removeprefix("/api").removeprefix("/datasets/")
            repo = "/".join(place.split("/")[:2])
            rest = place.removeprefix(repo).strip("/").split("/")
            if repo in gated:
                return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            if repo not in folders:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            files = {p.relative_to(folders[repo]).as_posix(): p for p in folders[repo].rglob("*") if p.is_file()}
            if rest[0] == "resolve":
                path = files.get("/".join(rest[2:]))
                if path is None:
                    return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
                content = path.read_bytes()
                etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
                return self.answer(200, content, X_Repo_Commit=SHA, ETag=f'"{etag}"')
            if rest[0] == "tree":
                below = folders[repo].joinpath(*rest[2:])
                if not below.is_dir():
                    return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
                whole = "recursive=true" in urlparse(self.path).query.lower()
                listed = [
                    {"type": "directory" if path.is_dir() else "file", "oid": SHA, "size": path.stat().st_size}
                    | {"path": path.relative_to(folders[repo]).as_posix()}
                    for path in sorted(below.rglob("*") if whole else below.iterdir())
                ]
                return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
            facts = {"id": repo, "sha": SHA, "private": False, "gated": False, "disabled": False, "tags": []}
            facts |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in sorted(files)]}
            return self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")

        do_HEAD = do_GET  # noqa: N815 (the name is http.server's)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            place = unquote(urlparse(self.path).path).removeprefix("/api/datasets/")
            repo = "/".join(place.split("/")[:2])
            self.answer(200 if repo in folders else 404, b"[]", Content_Type="application/json")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
