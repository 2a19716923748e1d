"""`laennec card`: render a run's model card from its records."""

import argparse
from pathlib import Path

from laennec.cli.common import say
from laennec.errors import InputError


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec card`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or of a published record")
    parser.add_argument("--out", metavar="FILE", help="the card (default: README.md in the run's folder)")
    parser.add_argument(
        "--answers", metavar="FILE", help="YAML of what no record knows (licence, funding, ...); kept in run.json"
    )
    parser.add_argument("--check", action="store_true", help="write no card; fail and say what is open")
    parser.add_argument(
        "--record",
        metavar="DIR",
        help="write the small record that is published (run.json without curves) and no card",
    )


def run(options: argparse.Namespace) -> int:
    """Render, check, or write the record."""
    from laennec.files import atomic_write
    from laennec.hub.card import FILE, record_answers, render_card
    from laennec.hub.checklist import questions
    from laennec.hub.evidence import read_evidence, write_evidence

    if options.answers is not None:
        record_answers(options.run_folder, options.answers)
    if options.record is not None:
        say(f"record: {write_evidence(read_evidence(options.run_folder), options.record)}")
        return 0
    card = render_card(options.run_folder)
    about = questions()
    if options.check:
        if card.unanswered:
            said = "; ".join(f"{key} ({about.get(key, '')})" for key in card.unanswered)
            raise InputError(f"{options.run_folder}: the card leaves open: {said}")
        say(f"{options.run_folder}: every item is answered")
        return 0
    out = Path(options.out) if options.out else Path(options.run_folder) / FILE
    with atomic_write(out) as file:
        file.write(card.text)
    say(f"card: {out}")
    for key in card.unanswered:
        say(f"open: {key} ({about.get(key, '')})")
    return 0
