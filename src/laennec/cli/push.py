"""`laennec push`: put a run's model on the Hub."""

import argparse
import sys

from laennec.cli.common import say, without_library_bars


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec push`."""
    parser.add_argument("source", metavar="RUN", help="folder of a run, or of an exported model")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub; made, private, if it is not there")
    parser.add_argument("--format", help="head, lora, full (default), stock, onnx or onnx-int8, as for laennec export")
    parser.add_argument("--base", help="where the base of a head-only run lies now")
    parser.add_argument("--base-name", help="the Hub id of the base, for head and lora")
    parser.add_argument("--base-revision", help="the commit, tag or branch of the base")
    parser.add_argument("--revision", "--branch", help="branch to push to (default: main)")
    parser.add_argument("--public", action="store_true", help="open the repository once it holds the model")
    parser.add_argument("--license", help="the licence that the card names, e.g. cc-by-4.0")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--timeout-s", type=float, default=60.0, help="how long a request waits for an answer (default: 60)"
    )


def run(options: argparse.Namespace) -> int:
    """Push, and say where to."""
    from laennec.hub.upload import check_repo_name, find_token

    # what is told at once comes before what takes seconds to import
    check_repo_name(options.repo)
    find_token(options.repo)
    from huggingface_hub.utils import logging

    from laennec.hub.push import push

    without_library_bars()
    logging.set_verbosity_error()  # an upload that had nothing to send is no warning here
    pushed = push(
        options.source,
        options.repo,
        format=options.format,
        base=options.base,
        base_name=options.base_name,
        base_revision=options.base_revision,
        revision=options.revision,
        public=options.public,
        license=options.license,
        message=options.message,
        timeout_s=options.timeout_s,
    )
    if pushed.left:
        print(f"laennec: note: not uploaded, no files of a model: {', '.join(pushed.left)}", file=sys.stderr)
    state = "private; --public opens it" if pushed.private else "public"
    say(f"pushed model: {pushed.url} ({len(pushed.files)} files, {state}, compared with the Hub's record)")
    return 0
