"""`laennec app`: serve a web page that predicts uploaded recordings."""

import argparse
import importlib.util

from laennec import DEFAULT_MODEL
from laennec.cli.common import refuse_missing_model
from laennec.errors import InputError
from laennec.terminal import say

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec app`."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="model: folder of a run, folder of an exported model, or Hub id (default: the model in the package)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=int, help="port (default: the first free port from 7860)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which visitors reach the page, such as that of a proxy; repeatable",
    )
    parser.add_argument(
        "--max-minutes", type=float, default=5.0, help="maximum duration of a recording in minutes (default: 5)"
    )
    parser.add_argument("--max-mb", type=float, default=50.0, help="maximum size of a file in megabytes (default: 50)")
    parser.add_argument(
        "--max-total-mb",
        type=float,
        default=1000.0,
        help="maximum size of the files of all visitors together in megabytes (default: 1000)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--window-s", type=float, help="length of a window in seconds (default: as in laennec predict)")
    parser.add_argument(
        "--hop-s", type=float, help="time from one window to the next in seconds (default: as in laennec predict)"
    )
    parser.add_argument("--base", help="path of the base encoder of a head-only model")


def run(options: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is not installed; pip install 'laennec[app]'")
    refuse_missing_model(options.model)
    from laennec.inference.page.app import Limits, serve_model

    audience = (
        "" if options.host in _LOOPBACK else "; everybody on the network can use it by this computer's name or address"
    )
    serve_model(
        options.model,
        host=options.host,
        port=options.port,
        hosts=options.allow_host,
        limits=Limits(options.max_minutes, options.max_mb, options.max_total_mb),
        window_s=options.window_s,
        hop_s=options.hop_s,
        base=options.base,
        open_browser=options.open,
        ready=lambda address: say(f"page: {address} (Ctrl+C stops it{audience})"),
    )
    return 0
