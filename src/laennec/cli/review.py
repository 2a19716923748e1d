"""`laennec review`: review what a model predicts, span by span; the answers become a corpus."""

import argparse
import importlib.util

from laennec.cli.common import chosen
from laennec.cli.predict import model_and_inputs
from laennec.errors import InputError
from laennec.progress import Progress
from laennec.review import RULES
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec review`."""
    add = parser.add_argument
    models = "the model (folder of a run or an exported model, or Hub id; default: the model in the package)"
    people = "the patient of each recording: a CSV with recording and patient_id, or a regular expression that finds it"
    add("paths", nargs="*", metavar="PATH", help=f"{models}, then the folder of recordings")
    add("--out", help="folder of the review, new or of an earlier one; not in the folder of recordings")
    add("--agreement", metavar="REVIEW", help="print the agreement of the reviewers, and exit")
    add("--rule", default="uncertain", help=f"order of the spans: {', '.join(RULES)} (default: uncertain)")
    add("--per-patient", type=int, default=5, help="most spans of a patient in the queue; 0 for all (default: 5)")
    add("--patients", help=f"{people} in the file's name, e.g. '^[^_]+' (default: each recording is a patient)")
    add("--reviewer", help="who answers (default: the user of this computer)")
    add("--labels", help="labels to choose from, separated by commas (default: those of the model)")
    add(
        "--members",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="further models for --rule disagreement, if MODEL is not an ensemble",
    )
    add("--segment", action="store_true", help="review automatically detected breaths instead of windows")
    add("--annotation", metavar="FOLDER", help="review the cycles of the annotations in this folder")
    add("--share", action="store_true", help="leave out what another reviewer has answered")
    add("--disputed", action="store_true", help="review only spans on which reviewers disagree")
    add("--blind", action="store_true", help="do not show the probabilities")
    add("--seed", type=int, default=0, help="seed of the rule random, and of ties (default: 0)")
    add("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    add("--port", type=int, help="port (default: the first free port from 7860)")
    add("--open", action="store_true", help="open the page in the browser")


def run(options: argparse.Namespace) -> int:
    """Serve the page until interrupted, or print the agreement."""
    if options.agreement:
        from laennec.review.agreement import agreement_of, agreement_text

        say(*agreement_text(agreement_of(options.agreement)))
        return 0
    if options.out is None or not options.paths:
        raise InputError("give the folder of recordings and --out, or --agreement REVIEW; see laennec review --help")
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is not installed; pip install 'laennec[app]'")
    from laennec.inference.page.app import serve_model
    from laennec.review.page import with_review
    from laennec.review.session import Review

    source, folders = model_and_inputs(options.paths)
    if len(folders) > 1 or options.per_patient < 0:
        raise InputError(
            f"{folders[1]}: a second folder; review one" if folders[1:] else "--per-patient: give 0 or more"
        )
    names = ("rule", "reviewer", "patients", "members", "segment", "annotation", "share", "disputed", "blind", "seed")
    labels = options.labels and [label for label in options.labels.split(",") if label.strip()]
    review = Review(
        source,
        folders[0],
        options.out,
        per_patient=options.per_patient or None,
        labels=labels,
        progress=Progress("predicting"),
        **chosen(options, *names),
    )
    say(f"review: {options.out} ({review})")
    serve_model(
        source,
        **chosen(options, "host", "port"),
        open_browser=options.open,
        wrap=lambda page: with_review(page, review),
        ready=lambda address: say(f"page: {address} (Ctrl+C stops it; every answer is kept at once)"),
    )
    say(f"answers: {options.out}/annotations.csv ({len(review.answers.agreed())} spans)")
    return 0
