"""What every request and every answer of the page passes through.

Decisions: a browser that shows the page is told to ask no other machine for anything (fonts, scripts, pictures,
anything that a later version of Gradio might add). Of the many things that Gradio's server offers only those are there
that the page needs. A request is refused for the size that its header states, and cut off when it grows beyond it.
"""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio puts its settings into inline scripts and makes templates into functions
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
# what a browser asked for while every part of the page was used, and what browsers ask of any page; no file by its
# address on another machine ("file=http:..."), which Gradio would ask that machine about
PATHS = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?"
    r"|/(assets|static)/.*"
    r"|/gradio_api/(upload|upload_progress|cancel|startup-events|queue/(join|data)|heartbeat/\w+|file=[^:]*)"
)


def headers(framed: bool) -> list[tuple[bytes, bytes]]:
    """What every answer says to the browser.

    Args:
        framed: Whether another site may show the page in a frame, as Spaces do.
    """
    policy = _POLICY if framed else f"{_POLICY}; frame-ancestors 'self'"
    said = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    }
    return [(key.encode(), value.encode()) for key, value in said.items()]


class _TooLargeError(Exception):
    """A request has grown beyond what is allowed."""


class Gate:
    """An ASGI application around another.

    Args:
        inner: The application.
        most_bytes: Of a request's body.
        paths: What can be asked for at all.
        framed: As for `headers`; None: where the page runs as a Space.
    """

    def __init__(
        self, inner: Application, most_bytes: int, framed: bool | None = None, paths: re.Pattern[str] = PATHS
    ) -> None:
        self.inner = inner
        self.most_bytes = most_bytes
        self.paths = paths
        self.headers = headers("SPACE_ID" in os.environ if framed is None else framed)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        received, begun = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most_bytes:
                raise _TooLargeError
            return message

        async def marked(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                kept = [(k, v) for k, v in message.get("headers", []) if k.lower() not in dict(self.headers)]
                message = {**message, "headers": [*kept, *self.headers]}
            await send(message)

        async def refuse(status: int, said: str) -> None:
            kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await marked({"type": "http.response.start", "status": status, "headers": kind})
            await marked({"type": "http.response.body", "body": said.encode()})

        too_large = f"more than {self.most_bytes} bytes are not accepted"
        stated = dict(scope.get("headers", [])).get(b"content-length", b"0")
        if not self.paths.fullmatch(scope["path"]):
            await refuse(404, "there is nothing here")
        elif not stated.isdigit() or int(stated) > self.most_bytes:
            await refuse(413, too_large)
        else:
            try:
                await self.inner(scope, counted, marked)
            except _TooLargeError:
                if begun:
                    raise
                await refuse(413, too_large)
