"""The server of the page.

Decisions: the socket is opened before anything is loaded into it, so that a port that is taken is one line at once;
nobody but this machine can reach the page unless that is asked for. Nothing is written into a log about what visitors
send.
"""

import contextlib
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.app import Answerer, Limits, application, examples_for, private_folder
from laennec.inference.model_facts import model_facts
from laennec.inference.predictor import Predictor

FIRST_PORT = 7860
_TRIED = 100


def serve_model(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    base: str | None = None,
    name: str | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page for a model until the process is interrupted.

    Args:
        model: Folder of a run or an exported model, or a Hub id.
        host: Address to listen on.
        port: None for the first free one from 7860 on, 0 for any.
        limits: What visitors may ask for.
        window_s: Length of a window, in seconds; None as `Predictor` has it.
        hop_s: From one window's start to the next, in seconds; likewise.
        base: Where the base of a head-only model lies.
        name: What the page calls the model; None as its run or its folder.
        open_browser: Whether to open the page in this machine's browser.
        ready: Called with the page's address once it can be opened.

    Raises:
        InputError: No such model or address, a port that is taken, or windows that cannot be.
    """
    with contextlib.closing(open_socket(host, port)) as opened, _ended_in_order(), private_folder() as folder:
        loaded, extractor = load_model(model, base)
        predictor = Predictor(loaded, extractor, window_s, hop_s)
        facts = model_facts(loaded, model)
        facts = facts if name is None else replace(facts, name=name)
        answerer = Answerer(predictor, facts, limits or Limits(), folder)
        address = address_of(opened, host)
        made = application(answerer, examples_for(facts, folder.parent))
        serve(made, opened, lambda: ready(address), address if open_browser else None)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have Ctrl+C end the block without an error, and SIGTERM likewise where nobody else has a use for it."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    ours = here and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_socket(host: str, port: int | None) -> socket.socket:
    """A listening socket.

    Args:
        host: Name or address of this machine's network.
        port: None for the first free one from 7860 on, 0 for any.

    Raises:
        InputError: No such address here, or the port is taken or not allowed.
    """
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"--port {port} is none; give a number from 0 (any free one) to 65535")
    ports = range(FIRST_PORT, FIRST_PORT + _TRIED) if port is None else [port]
    for candidate in ports:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            opened = socket.socket(family, kind, protocol)
        except (OSError, OverflowError, UnicodeError) as error:
            raise InputError(f"--host {host}: no address of this machine; leave it out for 127.0.0.1") from error
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
            return opened
        except PermissionError as error:
            opened.close()
            raise InputError(f"--port {candidate} on {host} is not allowed here; choose one above 1023") from error
        except (OSError, OverflowError) as error:
            opened.close()
            last = error
    if port is None:
        raise InputError(f"no free port from {ports[0]} to {ports[-1]} on {host} ({last}); give one with --port")
    raise InputError(f"--port {port} on {host} cannot be used ({last}); choose another one")


def address_of(opened: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{opened.getsockname()[1]}"


def serve(application: Any, opened: socket.socket, ready: Callable[[], None], browser: str | None = None) -> None:
    """Answer requests until the process is interrupted.

    Args:
        application: The ASGI application.
        opened: Its socket.
        ready: Called once when requests are answered.
        browser: Address to open in a browser then.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()
                if browser:
                    webbrowser.open(browser)

    settings = uvicorn.Config(
        application, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    Server(settings).run(sockets=[opened])
