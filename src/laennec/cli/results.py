"""`laennec results`: gather scores into a results file, or render the tables of documents."""

import argparse

from laennec.cli.common import say
from laennec.errors import InputError


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec results`."""
    parser.add_argument("paths", nargs="+", metavar="FOLDER_OR_MD", help="folders of evaluations, or documents (.md)")
    parser.add_argument("--into", help="the results file that evaluations are gathered into")
    parser.add_argument("--baseline", metavar="NAME", help="with --into: the recipe that the others are compared with")


def run(options: argparse.Namespace) -> int:
    """Gather, render, or both."""
    from laennec.study.results import collect, render

    documents = [p for p in options.paths if p.endswith(".md")]
    if options.into:
        say(f"results: {collect([p for p in options.paths if p not in documents], options.into, options.baseline)}")
    elif len(documents) < len(options.paths):
        raise InputError("results: folders of evaluations need --into FILE")
    for document in documents:
        say(f"{document}: {'as it was' if render(document) else 'rendered anew'}")
    return 0
