"""The server of the page: which names it answers to, how many connections it holds and how much it stores.

Decisions: Gradio's own server cannot be given limits, so its page is mounted in an application that uvicorn serves.
Requests must name this computer (Starlette's `TrustedHostMiddleware`), and pages of other sites may not use ours. A
browser and an attacker look alike, so nobody is kept waiting: where too many connections are open, the oldest that has
not said what it wants is closed for the new one. Whatever lies in the folder of uploads for longer than promised is
deleted, and the rest has a limit; an upload that is aborted is ended as Gradio ends one that is too large, which
deletes what came of it. Where Gradio is mounted it reads any file of the server that a request names, and fetches any
address, so a request may name uploads alone.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

PORTS = range(7860, 7960)
_CONNECTIONS = 200  # with the backlog far below 1,024, a common limit of open files
_BACKLOG = 100  # asyncio accepts so many at once
_CLOSING_S = 2  # for answers that are under way when the server stops
_RETRY_S = 30
_MOST_BODY = 1 << 20  # of a request that is not an upload, in bytes
_SMALLEST_FILE = 4096  # on a disk
_UPLOAD = "/gradio_api/upload"
_FILE_IN_PATH = re.compile(r"/(?:file[=/]|proxy=)(.*)", re.DOTALL)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at the first free port.

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
    """Where a browser of this computer finds the page."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_names(host: str) -> list[str]:
    """The names by which others reach a server that listens at an address."""
    names = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host}
    if host not in ("localhost", "127.0.0.1", "::1"):
        names.add(socket.gethostname())
        with contextlib.suppress(OSError):
            found = {str(place[4][0]) for place in socket.getaddrinfo(socket.gethostname(), None)}
            names |= {f"[{address}]" if ":" in address else address for address in found}
    return sorted(map(str.lower, names))


def limited(app: ASGIApp, names: Sequence[str], folder: Path, most_bytes: int, oldest_s: float) -> ASGIApp:
    """An application behind the limits of the page; the arguments are those of `Guard`."""
    return TrustedHostMiddleware(Guard(app, names, folder, most_bytes, oldest_s), names, www_redirect=False)


@contextlib.contextmanager
def serving(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve an application as long as this block lasts."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_CLOSING_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
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
    """A connection with a browser; one too many closes the oldest of those that are worth the least."""

    def connection_made(self, transport: Any) -> None:
        """Take the connection, if need be in place of another one."""
        self.since = self.loop.time()
        if len(self.connections) >= _CONNECTIONS:
            oldest: Any = min(self.connections, key=Connection._worth)  # type: ignore[arg-type]
            self.connections.discard(oldest)
            oldest.transport.abort()
        super().connection_made(transport)

    def shutdown(self) -> None:
        """Close the connection as the server stops: some answers never end."""
        self.transport.abort()

    def _worth(self) -> tuple[int, float]:
        """First those without a request, then those that still send one, then those that wait for an answer."""
        if self.cycle is None or self.cycle.response_complete:
            return 0, self.since
        return 1 + (not self.cycle.more_body), self.since


class Guard:
    """What requests may ask for, and how much uploads may leave on the disk.

    Args:
        app: The application.
        names: Names of this computer; `*` for any.
        folder: Where uploads lie.
        most_bytes: Most that may lie there.
        oldest_s: After how many seconds a file there is deleted.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], folder: Path, most_bytes: int, oldest_s: float) -> None:
        self.app, self.names, self.folder, self.most_bytes, self.oldest_s = app, names, folder, most_bytes, oldest_s
        self.kept = 0  # bytes in the folder when it was last looked through
        self.uploads: list[_Upload] = []  # what has arrived since, or arrives now
        self.looking = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not be made, and hand on the others."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if not self._from_here(headers):
            return await PlainTextResponse("A page of another site may not use this one.", 403)(scope, receive, send)
        if scope["path"].rstrip("/") == _UPLOAD:
            return await self._upload(scope, receive, send)
        if "transfer-encoding" in headers or int(headers.get("content-length", 0)) > _MOST_BODY:
            return await PlainTextResponse("The request is too large.", 413)(scope, receive, send)
        named, body = _FILE_IN_PATH.search(scope["path"]), await _body(receive)
        try:
            files = [*([named[1]] if named else []), *_paths_in(json.loads(body or b"null"))]
        except (ValueError, RecursionError):
            return await PlainTextResponse("The request is not JSON.", 400)(scope, receive, send)
        if not all(map(self._is_upload, files)):
            return await PlainTextResponse("The request names a file that was not uploaded.", 403)(scope, receive, send)
        return await self.app(scope, _after(body, receive), _when_to_retry(send))

    def _is_upload(self, name: object) -> bool:
        """Whether a file lies in the folder of uploads; an address does not, whatever stands behind it."""
        try:
            path = Path(name)  # type: ignore[arg-type]
            return path.is_absolute() and path.resolve().is_relative_to(self.folder.resolve())
        except (TypeError, ValueError, OSError):
            return False

    def _from_here(self, headers: Headers) -> bool:
        """Whether the site of the page that asks, and the name that a proxy was asked for, are ours."""
        asked = f"//{headers.get('host', '')}"
        own = {*self.names, _name(asked)}
        proxied = f"//{headers['x-forwarded-host']}" if "x-forwarded-host" in headers else asked
        others = (headers.get("origin", asked), proxied, headers.get("x-gradio-server", asked))
        return "*" in own or set(map(_name, others)) <= own

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.looking:
            in_folder = [upload for upload in self.uploads if upload.ended]
            self.kept = await anyio.to_thread.run_sync(keep_recent, self.folder, self.oldest_s)
            self.uploads = [upload for upload in self.uploads if upload not in in_folder]
        upload, complete = _Upload(), False
        self.uploads.append(upload)

        async def receive_some() -> Message:
            nonlocal complete
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                raise MultiPartException("The upload was aborted.")
            complete = complete or not message.get("more_body", False)
            upload.received += len(message.get("body", b""))
            if self.kept + sum(u.received for u in self.uploads) > self.most_bytes:
                raise MultiPartException(
                    f"The maximum allowed size of all uploads together, {self.most_bytes >> 20} MB, is reached; "
                    f"try again in {self.oldest_s / 60:.0f} minutes."
                )
            return message

        try:
            await self.app(scope, receive_some, send)
        finally:
            upload.ended = True


@dataclass(eq=False)
class _Upload:
    """How many bytes of an upload have arrived, and whether it has ended."""

    received: int = 0
    ended: bool = False


def keep_recent(folder: Path, oldest_s: float) -> int:
    """Delete what has lain in a folder for too long.

    Returns:
        How many bytes of a disk the other files take.
    """
    kept, before = 0, time.time() - oldest_s
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = Path(place, name)
                found = path.lstat()
                if found.st_ctime < before:
                    path.unlink()
                else:
                    kept += max(found.st_size, _SMALLEST_FILE)
        with contextlib.suppress(OSError):  # not empty
            if Path(place) != folder and Path(place).stat().st_mtime < before:
                os.rmdir(place)
    return kept


def _name(site: str) -> str | None:
    """The name of a site's computer, an IPv6 address in brackets; None where there is none."""
    try:
        name = urlsplit(site).hostname
    except ValueError:
        return None
    return f"[{name}]" if name and ":" in name else name


async def _body(receive: Receive) -> bytes:
    """What a request says; it is known to be short."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _after(body: bytes, receive: Receive) -> Receive:
    """A request from its beginning whose body was read."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _paths_in(said: Any) -> Iterator[object]:
    """Every file that a request names, as Gradio writes one: `{"path": ...}`, however deep."""
    if isinstance(said, dict):
        yield from [said["path"]] if "path" in said else []
        said = list(said.values())
    for inner in said if isinstance(said, list) else ():
        yield from _paths_in(inner)


def _when_to_retry(send: Send) -> Send:
    """Have answers of a busy page, which is what Gradio's full queue gives, say when to ask again."""

    async def send_some(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 503:
            MutableHeaders(scope=message)["Retry-After"] = str(_RETRY_S)
        await send(message)

    return send_some
