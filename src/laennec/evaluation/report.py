"""The report, one page that holds a score together with what it is_frozen on.

Decisions: the page is rendered from the run record, the evaluation and its predictions, so it cannot say what was
not recorded; a field that is missing is shown as "not recorded" instead of being left out. What needs the model or the
recordings is handed in, or the page says how to get it. It is one file without scripts and without network: pictures
and sounds are embedded, and a content policy forbids everything else. All values are escaped, because corpus metadata
may hold HTML.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from laennec.evaluation import report_sections, report_tables
from laennec.evaluation.decision import decision_curves
from laennec.evaluation.length import length_groups
from laennec.evaluation.picture_style import DPI
from laennec.evaluation.pictures import MOST_LABELS, evaluated_answers, length_floor, make_pictures
from laennec.evaluation.report_facts import facts, run_warnings
from laennec.evaluation.report_sections import Extras
from laennec.evaluation.summary import figure_name, figure_text
from laennec.files import atomic_write

_PIXELS_PER_INCH = 100
_PICTURES = {
    "confusion": "Counts and row shares of the classes: rows are the truth, columns the prediction.",
    "label_confusion": "The label alone: rows are the truth, columns the prediction.",
    "roc": "Cycles found against false alarms at every threshold; the dot is the decision that the scores above use.",
    "precision_recall": "How many calls are right against how many cycles are found; the dot is the decision in use.",
    "reliability": "Predicted probability against observed frequency. Below the diagonal: probabilities too high.",
    "decision": "What acting on the probabilities is worth: true calls per cycle, less false alarms at the price that "
    "the threshold probability sets. The model helps where its line lies above both others; band: 95 % over patients.",
    "length": "The ranking among cycles of like length, a tenth of the cycles each, with 95 % intervals.",
    "subgroups": "The score in every subgroup with its interval; the band is the interval of all cycles.",
    "training": "Loss by epoch, on training cycles unless it says validation.",
    "validation_percent": "Scores on the validation patients by epoch.",
    "validation_shares": "Figures of the labels on the validation patients by epoch.",
    "loss_terms": "Each term of the objective on its own scale, with its weight, as an average over the epoch.",
}


def write_report(
    folder: str | Path,
    run: Mapping[str, Any],
    evaluation: dict[str, Any],
    predictions: Any = None,
    *,
    geometry: dict[str, Any] | None = None,
) -> Path:
    """Write report.html and its pictures.

    Args:
        folder: Gets report.html and pictures/*.png.
        run: The run record (run.json); anything in it may be missing.
        evaluation: What `evaluate_predictions` returned.
        predictions: The predictions table (DataFrame), for the curves; None leaves them out.
        geometry: What `class_distances` returned, or evaluation["geometry"].

    Returns:
        The path of report.html.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = Path(folder)
    page, pictures = make_page(run, evaluation, predictions, geometry=geometry)
    for name, content in pictures.items():
        with atomic_write(folder / "pictures" / f"{name}.png", "wb") as file:
            file.write(content)
    with atomic_write(folder / "report.html") as file:
        file.write(page)
    return folder / "report.html"


def make_page(
    run: Mapping[str, Any],
    evaluation: dict[str, Any],
    predictions: Any = None,
    *,
    geometry: dict[str, Any] | None = None,
    extras: Extras | None = None,
) -> tuple[str, dict[str, bytes]]:
    """The page as text, and its pictures as PNG by name.

    Args:
        run: The run record.
        evaluation: What `evaluate_predictions` returned.
        predictions: The predictions table (DataFrame); None leaves out what needs it.
        geometry: What `class_distances` returned, or evaluation["geometry"].
        extras: What needed the model and the recordings.
    """
    geometry = geometry or evaluation.get("geometry")
    answers = None if predictions is None else evaluated_answers(predictions, evaluation)
    lengths, curves = None, {}
    if answers is not None and len(answers.label_names) <= MOST_LABELS:
        draws = {name: (evaluation.get("bootstrap") or {}).get(name, 0) for name in ("n_draws", "seed")}
        lengths, curves = length_groups(answers, **draws), decision_curves(answers, **draws)
    pictures = make_pictures(evaluation, answers, run=dict(run), geometry=geometry, lengths=lengths, curves=curves)
    sections = {
        "geometry": report_sections.geometry_section(geometry) if geometry else None,
        "length": report_sections.length_section(lengths, length_floor(evaluation), evaluation.get("duration_blind"))
        if lengths
        else None,
        "decision": report_sections.decision_section(curves, evaluation),
        "map": report_sections.map_section(answers, run, extras),
        "errors": report_sections.errors_section(answers, evaluation, run, extras),
    }
    return render_report(run, evaluation, {name: _embedded(png) for name, png in pictures.items()}, sections), pictures


def render_report(
    run: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, str] | None = None,
    sections: Mapping[str, Any] | None = None,
) -> str:
    """The page as text.

    Args:
        run: The run record.
        evaluation: What `evaluate_predictions` returned.
        pictures: Data URIs by picture name.
        sections: "geometry", "length", "decision", "map" and "errors" of `report_sections`; what is absent is left out.
    """
    shown = dict.fromkeys(("geometry", "length", "decision", "map", "errors")) | dict(sections or {})
    captions = {name: _PICTURES[kind] for name in pictures or {} if (kind := name.rstrip("_0123456789")) in _PICTURES}
    return render_template(
        "report.html",
        title=str(run.get("name") or "Evaluation"),
        created=run.get("created"),
        version=run.get("laennec_version") or (run.get("versions") or {}).get("laennec"),
        part=(run.get("evaluated") or {}).get("split"),
        description=(run.get("config") or {}).get("description"),
        command=_command(run.get("command")),
        warnings=[*run_warnings(run), *evaluation.get("warnings", [])],
        headline=report_tables.headline(evaluation),
        tiles=report_tables.tiles(evaluation),
        facts=facts(run, evaluation),
        definitions=evaluation.get("definitions", {}),
        floors=report_tables.floor_rows(evaluation),
        smoothing=report_tables.smoothing(evaluation),
        figures=report_tables.figure_rows(evaluation),
        subgroups=report_tables.subgroup_tables(evaluation),
        counts=evaluation.get("counts", {}),
        notes=evaluation.get("notes", []),
        ece={
            name: figure_text("ece", value) for name, value in evaluation.get("calibration", {}).get("ece", {}).items()
        },
        pictures={name: (uri, *_shown_size(uri)) for name, uri in (pictures or {}).items()},
        captions=captions,
        about=_PICTURES,
        alts=report_sections.picture_texts(evaluation, captions),
        history=report_tables.history(run),
        records=report_tables.records(run, evaluation),
        **shown,
    )


def comparison_page(content: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> str:
    """The page of a comparison.

    Args:
        content: What compare.json holds.
        tables: The same as text, a table for each figure.
        pictures: A forest picture as PNG for each table.
    """
    shown = []
    for table, png in zip(tables, pictures, strict=True):
        uri = _embedded(png)
        width, height = _shown_size(uri)
        said = "; ".join(f"{row['name']} {row['difference']}" for row in table["rows"] if row["difference"])
        alt = f"{table['name']}, difference from {content['baseline']}: {said}"
        shown.append({"uri": uri, "width": width, "height": height, "alt": alt})
    names = ("corpus", "corpus_fingerprint", "protocol", "split_fingerprint", "part", "cycles", "patients", "seed")
    facts_shown = [(name.replace("_", " ").capitalize(), report_tables.shown_text(content[name])) for name in names]
    left_out = [figure_name(name) for name in content["left_out"]]
    return render_template(
        "compare.html", content=content, tables=tables, pictures=shown, facts=facts_shown, left_out=left_out
    )


def render_template(name: str, **values: Any) -> str:
    """A page of ours as text that can be written as UTF-8, with every value escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laennec", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(name).render(**values)
    # half of a surrogate pair, as broken file names hold, is no character that a file can keep
    return page.encode("utf-8", "replace").decode("utf-8")


def _embedded(png: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _shown_size(uri: str) -> tuple[int, int]:
    """Width and height of an embedded PNG on the page, so that letters are equally large in all of them."""
    header = base64.b64decode(uri.partition(",")[2][:40])
    width, height = struct.unpack(">II", header[16:24])
    return round(width * _PIXELS_PER_INCH / DPI), round(height * _PIXELS_PER_INCH / DPI)


def _command(command: Any) -> str | None:
    """The command line as one string."""
    return " ".join(map(str, command)) if isinstance(command, list | tuple) else command
