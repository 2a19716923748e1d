"""`laennec push`: upload the model of a run to the Hub."""

import argparse

from laennec.cli.common import add_options, chosen, without_library_bars
from laennec.hub import export_format
from laennec.terminal import complain, say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec push`."""
    parser.add_argument("source", metavar="RUN", help="folder of a run, or of an exported model")
    parser.add_argument(
        "repo", metavar="REPO", help="OWNER/NAME on the Hub; created as a private repository if it does not exist"
    )
    parser.add_argument("--format", help="full (default), head, lora, stock, onnx or onnx-int8, as in laennec export")
    add_options(parser, "--base", "--base-name", "--base-revision")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--public", action="store_true", help="make the repository public after the upload")
    parser.add_argument("--license", help="licence of the model on the card, e.g. cc-by-4.0")
    parser.add_argument("--message", help="commit message")
    text = "time limit of a request in seconds (default: 60)"
    parser.add_argument("--timeout-s", type=float, default=60.0, help=text)


def run(options: argparse.Namespace) -> int:
    """Upload the model, and print its address."""
    from laennec.hub.upload import check_repo_name, find_token

    # check what needs no slow imports first
    if options.format is not None:
        export_format(options.format)
    check_repo_name(options.repo)
    find_token(options.repo)
    from huggingface_hub.utils import logging

    from laennec.hub.push import push

    without_library_bars()
    logging.set_verbosity_error()  # no warning for an upload without changes
    names = ("format", "base", "base_name", "base_revision", "revision", "public", "license", "message", "timeout_s")
    pushed = push(options.source, options.repo, **chosen(options, *names))
    if pushed.left:
        complain(f"note: these files are not part of the model and were not uploaded: {', '.join(pushed.left)}")
    state = "private; --public makes it public" if pushed.private else "public"
    say(f"pushed model: {pushed.url} ({len(pushed.files)} files, {state}, verified on the Hub)")
    return 0
