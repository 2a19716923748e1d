"""Measure which lines of the package the tests run.

    python tests/soak/lines.py [--kept] [--out docs/results/reliability.json]

The tests and all processes that they start run under coverage; copies of the package that tests make elsewhere do not
count. --kept uses the data of an earlier run. Modules with less than 90 % are listed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import keep, parser_of

ROOT = Path(__file__).resolve().parents[2]
LEAST = 90.0


def coverage(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, check=True)


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--kept", action="store_true", help="do not run the tests: take the data that lie here")
    options = parser.parse_args()
    if not options.kept:
        coverage("erase")
        coverage("run", "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
        coverage("combine", "--quiet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.json"
        coverage("json", "--quiet", "--fail-under=0", "-o", str(path))
        found = json.loads(path.read_text())
    total = found["totals"]
    for name, file in sorted(found["files"].items()):
        share = file["summary"]["percent_covered"]
        if share < LEAST:
            print(f"{share:5.1f} %  {name}")
    figures = {
        "lines": total["num_statements"],
        "run by the tests": f"{total['percent_covered']:.1f} %",
        "modules": len(found["files"]),
        "modules below 90 %": sum(file["summary"]["percent_covered"] < LEAST for file in found["files"].values()),
    }
    keep(options.out, "lines", "the tests run 90 % of the package's lines", figures, total["percent_covered"] >= LEAST)


if __name__ == "__main__":
    main()
