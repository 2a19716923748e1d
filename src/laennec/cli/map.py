"""`laennec map`: a page with the map of an index, and linear probes of its embeddings."""

import argparse

from laennec.cli.common import add_overwrite, refuse_existing
from laennec.cli.search import index_flags, opened
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec map`."""
    index_flags(parser)
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page")
    add_overwrite(parser)
    parser.add_argument("--points", type=int, default=2000, help="largest number of spans on the map (default: 2000)")
    parser.add_argument(
        "--sound-mb", type=float, default=12.0, help="size of the sounds in the page, in MB; 0: links (default: 12)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw and of t-SNE (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Write the page and print the probes."""
    from laennec.explore.map import lines, write_map
    from laennec.explore.probes import verdict

    refuse_existing(options.out, options.overwrite)
    index = opened(options, backend="torch")
    found = write_map(index, options.out, points=options.points, sound_mb=options.sound_mb, seed=options.seed)
    say("linear probes of the embedding (AUROC; 0.5 is chance):", *lines(found), verdict(found), f"map: {options.out}")
    return 0
