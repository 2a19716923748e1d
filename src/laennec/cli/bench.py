"""`benchmarks`: measure speed and memory as ratios to what one would use instead."""

import argparse

from laennec.cli.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `benchmarks`."""
    parser.add_argument("rows", nargs="*", help="which rows (default: all that can run here)")
    parser.add_argument("--data-dir", help="folder with icbhi2017_subset and sprsound, as far as they are there")
    parser.add_argument("--weights", help="a released EfficientAT checkpoint, for the rows that want real weights")
    parser.add_argument("--out", help="write the table as JSON here")
    parser.add_argument(
        "--repeats", type=int, default=5, help="how often each side is measured; the fastest counts (default: 5)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    from benchmarks import bench

    say(bench(options.rows, options.data_dir, options.weights, options.out, options.repeats))
    return 0
