"""The server of the page, with limits on host names, connections and disk space.

Decisions: Gradio's own server has no such limits, so its page is mounted in an application that uvicorn serves. At the
limit of connections, a new one closes the oldest one without a request; uvicorn's own limit refuses the new one, which
may be a visitor's. A mounted Gradio reads any file and fetches any address that a request names, so a request may name
uploads only. An aborted upload raises the error of one that is too large, after which Gradio deletes its files.
"""

import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

PORTS = range(7860, 7960)
_CONNECTIONS, _BACKLOG = 200, 100  # together far below 1,024, a common limit of open files
_CLOSING_S = 2  # for responses in progress when the server stops
_MOST_BODY = 1 << 20  # of a request that is not an upload, in bytes
_SMALLEST_FILE = 4096  # bytes that any file takes on a disk
_UPLOAD = "/gradio_api/upload"
_FILE_IN_PATH = re.compile(r"/(?:file[=/]|proxy=)(.*)", re.DOTALL)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at the port, or at the first free one.

    Raises:
        OSError, OverflowError, UnicodeError: The address or the port cannot be used.
    """
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    for number in PORTS if port is None else [port]:
        try:
            return socket.create_server((host, number), family=family, backlog=_BACKLOG)
        except OSError as error:
            problem = error
    raise problem


def address_of(listener: socket.socket) -> str:
    """The address of the page for a browser of this computer."""
    host, port = listener.getsockname()[:2]
    return f"http://{'localhost' if ipaddress.ip_address(host).is_unspecified else _bracketed(host)}:{port}"


def own_names(host: str) -> list[str]:
    """The host names of a server that listens at an address."""
    names = {"localhost", "127.0.0.1", "::1", host}
    if host not in ("localhost", "127.0.0.1", "::1"):
        names.add(socket.gethostname())
        with contextlib.suppress(OSError):
            names |= {str(place[4][0]) for place in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(_bracketed(name.lower()) for name in names)


@contextlib.contextmanager
def serving(app: ASGIApp, names: Sequence[str], listener: socket.socket) -> Iterator[None]:
    """Serve an application under these host names during this block."""
    named = TrustedHostMiddleware(app, names, www_redirect=False)
    limits: dict[str, Any] = {"backlog": _BACKLOG, "timeout_graceful_shutdown": _CLOSING_S}
    server = uvicorn.Server(
        uvicorn.Config(named, http=Connection, ws="none", log_level="error", server_header=False, **limits)
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        raise RuntimeError("the server of the page did not start; the lines above say why")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


class Connection(H11Protocol):
    """A connection with a browser; at the limit, a new one closes the first one in the order of `_rank`."""

    def connection_made(self, transport: Any) -> None:
        """Accept the connection; at the limit, close another one first."""
        self.since = self.loop.time()
        if len(self.connections) >= _CONNECTIONS:
            oldest: Any = min(self.connections, key=Connection._rank)  # type: ignore[arg-type]
            self.connections.discard(oldest)
            oldest.transport.abort()
        super().connection_made(transport)

    def shutdown(self) -> None:
        """Close the connection when the server stops, because some responses never end."""
        self.transport.abort()

    def _rank(self) -> tuple[int, float]:
        """Without a request first, then those still sending one, then those that wait for a response; oldest first."""
        if self.cycle is None or self.cycle.response_complete:
            return 0, self.since
        return 1 + (not self.cycle.more_body), self.since


class Guard:
    """Middleware that refuses what the page never requests, and limits how much uploads leave on the disk.

    Args:
        app: The application.
        names: Names of this computer; `*` for any.
        folder: Where uploads are.
        most_bytes: Maximum size of all uploads together.
        oldest_s: Age in seconds at which a file there is deleted.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], folder: Path, most_bytes: int, oldest_s: float) -> None:
        self.app, self.names, self.folder, self.most_bytes, self.oldest_s = app, names, folder, most_bytes, oldest_s
        self.arrived = 0  # bytes of all uploads so far
        self.kept = 0  # bytes in the folder when it was last measured, less what had arrived by then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request that is refused, and pass on the others."""
        if scope["type"] == "http":
            request = Request(scope, receive)
            try:
                refusal = await self._refusal(request)
            except ClientDisconnect:
                return None
            if refusal is not None:
                return await PlainTextResponse(*refusal)(scope, receive, send)
            receive = await self._counted(receive) if _is_upload(request) else _replayed(await request.body(), receive)
        return await self.app(scope, receive, send)

    def _from_here(self, headers: Headers) -> bool:
        """Whether the page that sends the request and the host names in proxy headers belong to this server."""
        own = {*self.names, _name(f"//{headers.get('host', '')}")}
        sites = [headers[name] for name in ("origin", "x-gradio-server") if name in headers]
        sites += [f"//{name}" for name in headers.getlist("x-forwarded-host")]
        return "*" in own or set(map(_name, sites)) <= own

    async def _refusal(self, request: Request) -> tuple[str, int] | None:
        """Text and status of a refusal: of another site, too large, not JSON, or naming other files; else None."""
        if not self._from_here(request.headers):
            return "A page of another site may not use this one.", 403
        if _is_upload(request):
            return None
        if "transfer-encoding" in request.headers or int(request.headers.get("content-length", 0)) > _MOST_BODY:
            return "The request is too large.", 413
        named = _FILE_IN_PATH.search(request.scope["path"])
        try:
            files = [*([named[1]] if named else []), *_paths_in(json.loads(await request.body() or b"null"))]
            known = all(isinstance(name, str) for name in files) and all(map(self._has, set(files)))
        except (ValueError, RecursionError):
            return "The request is not JSON.", 400
        return None if known else ("The request names a file that was not uploaded.", 403)

    def _has(self, name: Any) -> bool:
        """Whether a file is in the folder of uploads; an address is not."""
        try:
            path = Path(name)
            return path.is_absolute() and path.resolve().is_relative_to(self.folder.resolve())
        except (ValueError, OSError):
            return False

    async def _counted(self, receive: Receive) -> Receive:
        """The `receive` of an upload, which raises if the upload is aborted or exceeds the remaining space."""
        before, complete = self.arrived, False
        self.kept = await anyio.to_thread.run_sync(keep_recent, self.folder, self.oldest_s) - before

        async def receive_some() -> Message:
            nonlocal complete
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                raise MultiPartException("The upload was aborted.")
            complete = complete or not message.get("more_body", False)
            self.arrived += len(message.get("body", b""))
            if self.kept + self.arrived > self.most_bytes:
                raise MultiPartException(
                    f"The maximum allowed size of all uploads together, {self.most_bytes >> 20} MB, is reached; "
                    f"try again in {self.oldest_s / 60:.0f} minutes."
                )
            return message

        return receive_some


def keep_recent(folder: Path, oldest_s: float) -> int:
    """Delete what has been in a folder for too long; returns how many bytes of the disk the other files take."""
    kept, before = 0, time.time() - oldest_s
    for place, _, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ctime < before:
                    path.unlink()
                else:
                    kept += max(path.lstat().st_size, _SMALLEST_FILE)
        with contextlib.suppress(OSError):  # not empty
            if Path(place) != folder and Path(place).stat().st_mtime < before:
                os.rmdir(place)
    return kept


def _bracketed(name: str) -> str:
    """A name or an IPv4 address as it is, an IPv6 address in brackets."""
    return f"[{name}]" if ":" in name else name


def _name(site: str) -> str | None:
    """The host name in a URL; None where there is none."""
    try:
        name = urlsplit(site).hostname
    except ValueError:
        return None
    return None if name is None else _bracketed(name)


def _is_upload(request: Request) -> bool:
    return request.scope["path"].rstrip("/") == _UPLOAD


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a request body that was read already, and then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_body


def _paths_in(content: Any) -> list[object]:
    """Every file that a request names in Gradio's form, `{"path": ...}`, at any depth."""
    found, left = [], [content]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            found += [inner["path"]] if "path" in inner else []
            left += inner.values()
        elif isinstance(inner, list):
            left += inner
    return found
