"""`laennec doctor`: what of the environment works, and what to do about what does not.

Decisions: the exit code is 0 where all that laennec needs works and 1 where something it needs does not; a note
never changes it.
"""

import argparse
import json
import os
import sys

from laennec.cli.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    """`--json`, `--online`."""
    parser.add_argument("--json", action="store_true", help="the findings as JSON: room, name, state, found, remedy")
    parser.add_argument("--online", action="store_true", help="also ask the Hub for an answer")


def run(options: argparse.Namespace) -> int:
    """Examine and print."""
    from laennec.doctor import examine
    from laennec.doctor.finding import worst
    from laennec.doctor.page import page

    findings = examine(options.online)
    state = worst(findings)
    if options.json:
        rows = [found.to_dict() for found in findings]
        say(json.dumps({"state": state, "findings": rows}, indent=2, ensure_ascii=False))
    else:
        say(page(findings, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return int(state == "PROBLEM")
