"""`laennec card`: write the model card of a run."""

import argparse
from pathlib import Path

from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.terminal import say
from laennec.training.record import read_record


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec card`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or of a published record")
    parser.add_argument("--out", metavar="FILE", help="output file (default: README.md in the folder of the run)")
    parser.add_argument(
        "--answers",
        metavar="FILE",
        help="YAML file with the items that the author completes (licence, funding, ...); stored in run.json",
    )
    parser.add_argument("--check", action="store_true", help="write no card; exit with an error if items are open")
    parser.add_argument(
        "--record", metavar="DIR", help="write no card, but a record for publication (run.json without training curves)"
    )


def run(options: argparse.Namespace) -> int:
    """Render or check the card, or write the record."""
    read_record(Path(options.run_folder) / "run.json")  # refuses a wrong folder before the slow imports
    from laennec.hub.card import FILE, HOW_TO_ANSWER, describe_questions, record_answers, render_card
    from laennec.hub.evidence import read_evidence, write_evidence

    read_evidence(options.run_folder)  # refuses another record before answers are written to it
    if options.answers is not None:
        record_answers(options.run_folder, options.answers)
    if options.record is not None:
        say(f"record: {write_evidence(read_evidence(options.run_folder), options.record)}")
        return 0
    card = render_card(options.run_folder)
    if options.check:
        if card.unanswered:
            questions = describe_questions(card.unanswered)
            raise InputError(f"{options.run_folder}: open questions: {questions}; {HOW_TO_ANSWER}")
        say(f"{options.run_folder}: every question is answered")
        return 0
    out = Path(options.out) if options.out else Path(options.run_folder) / FILE
    with atomic_write(out) as file:
        file.write(card.text)
    say(f"card: {out}")
    for key in card.unanswered:
        say(f"open: {describe_questions([key])}")
    return 0
