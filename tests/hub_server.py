"""A local Hub server on 127.0.0.1 (standard library only): the requests of huggingface_hub and datasets, and errors.

Use it from another process, because huggingface_hub reads its endpoint when it is imported:

    with HubServer() as hub:                                   # its user is "tester" with the token TOKEN
        environment = hub.environment(tmp_path)                # HF_ENDPOINT, HF_HOME, HF_TOKEN and the like
        hub.fail("/commit/", times=2)                          # the next two commits are answered with 503
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        hub.files("tester/model")["config.json"]               # files of the repository: {path: bytes}
        hub.asked("PUT")                                       # the matching requests, e.g. to find repeated uploads

Models and data sets (`kind="dataset"`) can be created, committed to (regular files and LFS objects), read by revision,
branch and tag (also in byte ranges), listed, made public or private, and deleted. A private or missing repository gives
401 without a token and 404 with another user's token; a wrong token gives 401; a gated repository gives 403.

Faults, each for the next `times` requests whose "METHOD /path" matches a regular expression:
    fail(pattern, times, status)   answer with an error status
    hang(pattern, times, seconds)  wait for so many seconds before answering
    cut(pattern, times, after)     close the connection after so many bytes of the request body (PUT, POST) or answer
    lose(pattern, times)           carry the request out, then close the connection without an answer
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlparse

TOKEN = "hf_testers"
OTHER_TOKEN = "hf_somebodys"
KINDS = ("model", "dataset")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_BELOW = frozenset(
    ("revision", "tree", "resolve", "preupload", "commit", "settings", "tag", "branch", "refs", "paths-info", "commits")
)
_LFS_SUFFIXES = (".safetensors", ".bin", ".onnx", ".data", ".parquet", ".npy", ".zip", ".wav", ".flac", ".png", ".pt")
_LFS_FROM = 10_000_000
_LICENSES = frozenset(
    ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "other", "unknown")
)
_BRANCH_START = "initial commit"


@dataclass
class Commit:
    """The files of a repository at one commit, and which of them are LFS objects."""

    oid: str
    message: str
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: frozenset[str] = frozenset()


@dataclass
class Repo:
    """A model or data set repository."""

    name: str
    kind: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or (short) hash."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        if oid is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            oid = next((o for o in self.commits if o.startswith(revision)), None)
        return None if oid is None else self.commits[oid]

    def commit(self, branch: str, message: str, files: dict[str, bytes], lfs: frozenset[str]) -> Commit:
        """Add a commit to a branch."""
        said = f"{self.name} {branch} {message} {len(self.commits)} {sorted(map(_blob_oid, files.values()))}"
        made = Commit(hashlib.sha1(said.encode(), usedforsecurity=False).hexdigest(), message, files, lfs)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        return made


@dataclass(frozen=True)
class Asked:
    """A request: "METHOD /path", size of its body, and status of the answer (0: no answer)."""

    line: str
    size: int
    status: int


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    left: int
    kind: str
    amount: float


class HubServer:
    """The server; see the module's docstring.

    Attributes:
        endpoint: Address of the server.
        users: User names by token.
        repos: Repositories by (kind, id).
        log: All requests in order.
    """

    def __init__(self) -> None:
        self.users = {TOKEN: "tester", OTHER_TOKEN: "somebody"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[Asked] = []
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._faults: list[_Fault] = []
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """Environment variables of a process that uses this Hub, with its caches and its login below `home`."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        mine |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"}
        mine |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        mine |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return mine | ({"HF_TOKEN": token} if token else {}) | more

    def add(
        self,
        repo: str,
        files: Path | Mapping[str, bytes] | None = None,
        *,
        kind: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repo:
        """Create a repository with the files of a folder or the given files."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        made = Repo(repo, kind, private, gated)
        held = dict(files or {})
        lfs = frozenset(path for path, content in held.items() if _is_lfs(path, len(content)))
        made.objects.update((hashlib.sha256(held[path]).hexdigest(), held[path]) for path in lfs)
        made.commit("main", _BRANCH_START, held, lfs)
        with self.lock:
            self.repos[kind, repo] = made
        return made

    def files(self, repo: str, revision: str = "main", *, kind: str = "model") -> dict[str, bytes]:
        """Files of a repository: {path: bytes}."""
        commit = self.repos[kind, repo].at(revision)
        assert commit is not None, f"{repo} has no revision {revision}"
        return dict(commit.files)

    def asked(self, pattern: str = "") -> list[Asked]:
        """The requests whose "METHOD /path" matches the pattern."""
        with self.lock:
            return [asked for asked in self.log if re.search(pattern, asked.line)]

    def fail(self, pattern: str, times: int = 1, status: int = 503) -> None:
        """Answer the next matching requests with an error status."""
        self._faults.append(_Fault(re.compile(pattern), times, "fail", status))

    def hang(self, pattern: str, times: int = 1, seconds: float = 60.0) -> None:
        """Delay the answer to the next matching requests."""
        self._faults.append(_Fault(re.compile(pattern), times, "hang", seconds))

    def cut(self, pattern: str, times: int = 1, after: int = 1000) -> None:
        """Close the connection in the middle of an upload or a download."""
        self._faults.append(_Fault(re.compile(pattern), times, "cut", after))

    def lose(self, pattern: str, times: int = 1) -> None:
        """Carry the request out, and close the connection without an answer."""
        self._faults.append(_Fault(re.compile(pattern), times, "lose", 0))

    def mend(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    def fault(self, line: str) -> _Fault | None:
        """The next fault for a request; its count goes down by one."""
        with self.lock:
            due = next((f for f in self._faults if f.left > 0 and f.pattern.search(line)), None)
            if due is not None:
                due.left -= 1
            return due


class _RefusedError(Exception):
    """Answer the request with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing; `HubServer.log` has the requests."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_any(self) -> None:
        line = f"{self.command} {self.path}"
        fault = self.hub.fault(line)
        kind = fault.kind if fault else ""
        self.cut_after: int | None = None
        uploads = self.command in ("PUT", "POST")
        if kind == "hang":
            assert fault is not None
            self.hub.stopped.wait(fault.amount)
            return self.close(line, 0)
        if kind == "cut" and uploads:
            assert fault is not None
            return self.close(line, len(self.body(int(fault.amount))))
        content = self.body()
        if kind == "fail":
            assert fault is not None
            return self.answer(line, len(content), int(fault.amount), b'{"error": "out of order"}')
        if kind == "cut":
            assert fault is not None
            self.cut_after = int(fault.amount)
        headers: dict[str, str] = {}
        try:
            with self.hub.lock:
                status, body, headers = self.dispatch(content)
        except _RefusedError as refused:
            status, body = refused.status, json.dumps({"error": refused.message, **refused.body}).encode()
            headers = {"Content-Type": "application/json", "X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
        if kind == "lose":
            return self.close(line, len(content))
        self.answer(line, len(content), status, body, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815 (the names are http.server's)

    def body(self, most: int | None = None) -> bytes:
        """The body of the request, or at most its first `most` bytes."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length if most is None else min(length, most))
        parts: list[bytes] = []
        while (size := int(self.rfile.readline().split(b";")[0] or b"0", 16)) > 0:
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if most is not None and sum(map(len, parts)) >= most:
                return b"".join(parts)
        self.rfile.readline()
        return b"".join(parts)

    def close(self, line: str, size: int) -> None:
        """Close the connection without an answer."""
        with self.hub.lock:
            self.hub.log.append(Asked(line, size, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def answer(
        self, line: str, size: int, status: int, content: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        with self.hub.lock:
            self.hub.log.append(Asked(line, size, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None:
            self.wfile.write(content[: self.cut_after])
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return
        self.wfile.write(content)

    def user(self) -> str | None:
        """Name of the user who sends the request."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def dispatch(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """The answer to a request: status, body, headers."""
        place = urlparse(self.path)
        parts = [unquote(part) for part in place.path.strip("/").split("/")]
        query = {k: v[0] for k, v in parse_qs(place.query).items()}
        if parts[0] == "objects":  # LFS objects; whoever knows the address may upload
            return self.receive_object(parts[1:], content)
        if parts[0] != "api":
            return self.outside(parts, content)
        whole: dict[tuple[str, ...], Callable[[bytes], Any]] = {
            ("POST", "repos", "create"): self.create,
            ("DELETE", "repos", "delete"): self.delete,
            ("GET", "whoami-v2"): self.whoami,
            ("POST", "validate-yaml"): self.validate,
        }
        if (self.command, *parts[1:]) in whole:
            return _said(whole[(self.command, *parts[1:])](content))
        if parts[1] not in ("models", "datasets") or len(parts) < 3:
            raise _RefusedError(404, f"Sorry, nothing at {place.path}")
        repo, rest = self.repo(parts[1][:-1], parts[2:])
        return _said(self.within(repo, rest, query, content))

    def repo(self, kind: str, parts: list[str]) -> tuple[Repo, list[str]]:
        """The repository of an address, and the rest of the address."""
        long = len(parts) > 1 and (parts[1] not in _BELOW or (len(parts) > 2 and parts[2] in _BELOW))
        name, rest = "/".join(parts[: 1 + long]), parts[1 + long :]
        user = self.user()
        found = self.hub.repos.get((kind, name))
        if found is None or (found.private and user != _owner(name)):
            raise _RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if found.gated and rest and user != _owner(name):
            raise _RefusedError(401 if user is None else 403, f"Access to {name} is restricted", "GatedRepo")
        writes = self.command in ("PUT", "DELETE") or (self.command == "POST" and rest[:1] != ["paths-info"])
        if writes and user != _owner(name):
            raise _RefusedError(401 if user is None else 403, "You don't have the rights to write here")
        return found, rest

    def whoami(self, _: bytes) -> Any:
        user = self.user()
        if user is None:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        role = {"accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token", **role}}

    def validate(self, content: bytes) -> Any:
        """Check the metadata of a card, as a small part of what the real Hub checks."""
        text = json.loads(content)["content"]
        head = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
        if head is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        named = re.search(r"^license:\s*(\S+)", head[1], re.MULTILINE)
        if named and named[1].strip("\"'") not in _LICENSES:
            errors = [{"message": f'"license" must be one of {sorted(_LICENSES)}'}]
            raise _RefusedError(400, "Invalid metadata", errors=errors, warnings=[])
        return {"errors": [], "warnings": []}

    def create(self, content: bytes) -> Any:
        user, wanted = self.user(), json.loads(content)
        if user is None:
            raise _RefusedError(401, "Invalid username or password.")
        name, kind = f"{wanted.get('organization') or user}/{wanted['name']}", wanted.get("type") or "model"
        if not _NAME.fullmatch(wanted["name"]):
            raise _RefusedError(400, f"Invalid repo name: {wanted['name']}")
        if _owner(name) != user:
            raise _RefusedError(403, f"You don't have the rights to create a {kind} under the namespace {_owner(name)}")
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            raise _RefusedError(409, f"You already created this {kind} repo", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, kind=kind, private=private)
        return {"url": url, "name": name, "id": name, "private": private}

    def delete(self, content: bytes) -> Any:
        wanted = json.loads(content)
        name, kind = f"{wanted.get('organization') or self.user()}/{wanted['name']}", wanted.get("type") or "model"
        self.repo(kind, name.split("/"))
        del self.hub.repos[kind, name]
        return {}

    def within(self, repo: Repo, rest: list[str], query: dict[str, str], content: bytes) -> Any:
        """Answer a request about one repository."""
        what = rest[0] if rest else "revision"
        if what == "settings":
            wanted = json.loads(content)
            repo.private = wanted.get("visibility", "private" if repo.private else "public") == "private"
            return {"private": repo.private}
        if what == "refs":
            branches, tags = ([(n, f"refs/{k}/{n}", o) for n, o in held.items()] for k, held in _refs(repo))
            named = [[{"name": n, "ref": r, "targetCommit": o} for n, r, o in held] for held in (branches, tags)]
            return {"branches": named[0], "converts": [], "tags": named[1], "pullRequests": []}
        if what in ("branch", "tag"):
            return self.refer(repo, what, rest[1], content)
        revision = rest[1] if len(rest) > 1 else "main"
        if what == "commit":
            return self.commit(repo, revision, content)
        state = repo.at(revision)
        if state is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if what == "preupload":
            return {"files": [_mode(state, file) for file in json.loads(content)["files"]]}
        if what == "tree":
            return _tree(state, "/".join(rest[2:]), query.get("recursive", "").lower() in ("1", "true"))
        if what == "paths-info":
            paths = _paths(self.headers.get("Content-Type", ""), content)
            return [entry for entry in _tree(state, "", True, empty=True) if entry["path"] in paths]
        if what == "commits":
            return [{"id": o, "title": c.message, "authors": [], "date": _DATE} for o, c in repo.commits.items()]
        if what != "revision":
            raise _RefusedError(404, f"Sorry, nothing at {self.path}")
        facts = {"_id": "0", "id": repo.name, "modelId": repo.name, "author": _owner(repo.name), "sha": state.oid}
        facts |= {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}  # type: ignore[dict-item]
        facts |= {"tags": [], "downloads": 0, "likes": 0, "lastModified": _DATE, "createdAt": _DATE}  # type: ignore[dict-item]
        return facts | {"siblings": [{"rfilename": path} for path in sorted(state.files)]}

    def refer(self, repo: Repo, what: str, name: str, content: bytes) -> Any:
        """Create or delete a branch (the address has its name) or a tag (the address has its commit)."""
        held = repo.branches if what == "branch" else repo.tags
        if self.command == "DELETE":
            held.pop(name, None)
            return {}
        wanted = json.loads(content or b"{}")
        new, start = (name, wanted.get("startingPoint", "main")) if what == "branch" else (wanted["tag"], name)
        state = repo.at(start)
        if new in held:
            raise _RefusedError(409, f"Reference already exists: {new}")
        if state is None:
            raise _RefusedError(404, f"Invalid rev id: {start}", "RevisionNotFound")
        held[new] = state.oid
        return {}

    def commit(self, repo: Repo, branch: str, content: bytes) -> Any:
        """Add a commit, sent as newline-delimited JSON."""
        state = repo.at(branch)
        if branch not in repo.branches or state is None:
            raise _RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", state.oid) != state.oid:
            raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files, lfs = dict(state.files), set(state.lfs)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                lfs.discard(value["path"])
            elif key == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise _RefusedError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = repo.objects[value["oid"]]
                lfs.add(value["path"])
            elif key in ("deletedFile", "deletedFolder"):
                gone = [p for p in files if p == value["path"] or p.startswith(value["path"].rstrip("/") + "/")]
                if not gone:
                    raise _RefusedError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
                for path in gone:
                    del files[path]
        made = repo.commit(branch, header["summary"], files, frozenset(lfs & set(files)))
        prefix = "datasets/" if repo.kind == "dataset" else ""
        return {
            "success": True,
            "commitOid": made.oid,
            "commitUrl": f"{self.hub.endpoint}/{prefix}{repo.name}/commit/{made.oid}",
            "hookOutput": "",
        }

    def outside(self, parts: list[str], content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Requests outside /api: files, and the upload addresses of LFS objects."""
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        at = next((i for i, part in enumerate(parts) if part.endswith(".git")), None)
        if at is not None and parts[at + 1 :] == ["info", "lfs", "objects", "batch"]:
            repo, _ = self.repo(kind, [*parts[:at], parts[at].removesuffix(".git")])
            return _said(self.batch(repo, json.loads(content)))
        repo, rest = self.repo(kind, parts)
        if len(rest) < 3 or rest[0] != "resolve":
            raise _RefusedError(404, f"Sorry, nothing at {self.path}")
        state = repo.at(rest[1])
        if state is None:
            raise _RefusedError(404, f"Invalid rev id: {rest[1]}", "RevisionNotFound")
        return self.file(state, "/".join(rest[2:]))

    def file(self, state: Commit, path: str) -> tuple[int, bytes, dict[str, str]]:
        """A file, or the requested byte range of it."""
        if path not in state.files:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        held, lfs = state.files[path], path in state.lfs
        etag = hashlib.sha256(held).hexdigest() if lfs else _blob_oid(held)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": state.oid, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(held))} if lfs else {}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not any(wanted.groups()):
            return 200, held, headers
        first = int(wanted[1]) if wanted[1] else max(0, len(held) - int(wanted[2]))
        last = min(int(wanted[2]), len(held) - 1) if wanted[1] and wanted[2] else len(held) - 1
        if first > last:
            return 416, b"", headers | {"Content-Range": f"bytes */{len(held)}"}
        return 206, held[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(held)}"}

    def batch(self, repo: Repo, wanted: dict[str, Any]) -> Any:
        """Upload addresses of the LFS objects that the repository lacks."""
        where = f"{self.hub.endpoint}/objects/{repo.kind}/{quote(repo.name, safe='')}"
        answers = []
        for each in wanted["objects"]:
            oid, size = each["oid"], each["size"]
            todo = {"upload": {"href": f"{where}/{oid}/put"}, "verify": {"href": f"{where}/{oid}/verify"}}
            answers.append({"oid": oid, "size": size} | ({} if oid in repo.objects else {"actions": todo}))
        return {"transfer": "basic", "objects": answers}

    def receive_object(self, parts: list[str], content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Store an LFS object if its hash matches its name, or check that it exists."""
        kind, name, oid, what = parts
        repo = self.hub.repos[kind, name]
        if what == "put":
            if hashlib.sha256(content).hexdigest() != oid:
                raise _RefusedError(400, "The object's sha256 is another")
            repo.objects[oid] = content
        elif oid not in repo.objects or len(repo.objects[oid]) != json.loads(content)["size"]:
            raise _RefusedError(404, "Object not found")
        return _said({})


_DATE = "2026-01-01T00:00:00.000Z"


def _said(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _owner(name: str) -> str:
    return name.split("/")[0]


def _refs(repo: Repo) -> tuple[tuple[str, dict[str, str]], tuple[str, dict[str, str]]]:
    return ("heads", repo.branches), ("tags", repo.tags)


def _blob_oid(content: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(_LFS_SUFFIXES) or size > _LFS_FROM


def _mode(state: Commit, file: dict[str, Any]) -> dict[str, Any]:
    """Upload mode of a file (regular or LFS), and the existing file of that name."""
    path = file["path"]
    mode = "lfs" if _is_lfs(path, file["size"]) else "regular"
    said = {"path": path, "uploadMode": mode, "shouldIgnore": False}
    if path in state.files:
        held = state.files[path]
        said["oid"] = hashlib.sha256(held).hexdigest() if path in state.lfs else _blob_oid(held)
    return said


def _tree(state: Commit, below: str, recursive: bool, empty: bool = False) -> list[dict[str, Any]]:
    """Files and folders below a folder."""
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, held in sorted(state.files.items()):
        if not path.startswith(prefix):
            continue
        inner = path[len(prefix) :].split("/")
        for depth in range(1, len(inner)) if recursive else range(1, min(2, len(inner))):
            folder = prefix + "/".join(inner[:depth])
            oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
            entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if len(inner) > 1 and not recursive:
            continue
        entries[path] = {"type": "file", "oid": _blob_oid(held), "size": len(held), "path": path}
        if path in state.lfs:
            oid = hashlib.sha256(held).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(held)}\n".encode()
            lfs = {"oid": oid, "size": len(held), "pointerSize": len(pointer)}
            entries[path] |= {"oid": _blob_oid(pointer), "lfs": lfs}
    if below and not entries and not empty:
        raise _RefusedError(404, f"{below} does not exist", "EntryNotFound")
    return list(entries.values())


def _paths(kind: str, content: bytes) -> set[str]:
    """The paths of a request, from a form or from JSON."""
    if "json" in kind:
        return set(json.loads(content)["paths"])
    return set(parse_qs(content.decode()).get("paths", []))
