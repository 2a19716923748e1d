"""Run all attacks: hostile or damaged models, files, tables, caches and requests, and kills of a study.

    python tests/soak/attacks.py --out docs/results/reliability.json

These are the tests of tests/attacks, also those that a usual test run leaves out. Each attack must give a result with
unchanged bits, or one line that says what is wrong, where, and what to do.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import keep, parser_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the attacks and count them."""
    options = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        words = ["tests/attacks", "-q", "-n", "2", "-m", "soak or not soak", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False)
        cases = ElementTree.parse(report).iter("testcase")
    tried, survived, skipped = Counter[str](), Counter[str](), 0
    for case in cases:
        what = case.attrib["classname"].split(".")[2].removeprefix("test_")
        skipped += case.find("skipped") is not None
        tried[what] += case.find("skipped") is None
        survived[what] += len(case) == 0 or case[0].tag.startswith("system")
    figures = {
        "tried": tried.total(),
        "survived": survived.total(),
        "failed, or with another bit": tried.total() - survived.total(),
        "not tried here": skipped,
        "of which": ", ".join(f"{what} {count}" for what, count in sorted(tried.items())),
    }
    keep(
        options.out,
        "attacks",
        "hostile and unlucky input: a result with the same bits, or one line that says what is wrong",
        figures,
        held=tried == survived and tried.total() > 0,
    )


if __name__ == "__main__":
    main()
