"""`python -m benchmarks`: print the table of speed and memory ratios."""

import argparse
import os

from benchmarks import ROWS, bench


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which rows (default: all that can run here): {', '.join(ROWS)}")
    parser.add_argument("--data-dir", help="folder with icbhi2017_subset and sprsound, as far as they are there")
    parser.add_argument("--weights", help="a released EfficientAT checkpoint, for the rows that need real weights")
    parser.add_argument("--out", help="write the table as JSON here")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side; the fastest counts (default: 5)")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise every new process compiles all modules again
    print(bench(options.rows, options.data_dir, options.weights, options.out, options.repeats))


if __name__ == "__main__":
    main()
