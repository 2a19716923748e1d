"""`laennec app`: serve a web page that predicts uploaded recordings."""

import argparse
import importlib.util

from laennec import DEFAULT_MODEL
from laennec.cli.common import add_model, add_options, chosen, refuse_missing_model
from laennec.errors import InputError
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec app`."""
    add_model(parser, "model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=int, help="port (default: the first free port from 7860)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which visitors reach the page, such as that of a proxy; repeatable",
    )
    for name, default, what in (
        ("minutes", 5, "duration of a recording in minutes"),
        ("mb", 50, "size of a file in megabytes"),
        ("total-mb", 1000, "size of the files of all visitors together in megabytes"),
    ):
        parser.add_argument(f"--max-{name}", type=float, default=default, help=f"maximum {what} (default: {default})")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_options(parser, "--window-s", "--hop-s", "--base")


def run(options: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is not installed; pip install 'laennec[app]'")
    refuse_missing_model(options.model)
    from laennec.inference.page.app import Limits, serve_model

    others = "; everybody on the network can use it by this computer's name or address"
    audience = "" if options.host in ("127.0.0.1", "localhost", "::1") else others
    serve_model(
        options.model,
        **chosen(options, "host", "port", "window_s", "hop_s", "base"),
        hosts=options.allow_host,
        limits=Limits(options.max_minutes, options.max_mb, options.max_total_mb),
        open_browser=options.open,
        ready=lambda address: say(f"page: {address} (Ctrl+C stops it{audience})"),
    )
    return 0
