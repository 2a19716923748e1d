"""The report of an evaluation as one HTML page.

Decisions: the page is rendered from the run record, the evaluation and its predictions; nothing is scored again. It is
one file without scripts and without network: pictures and sounds are embedded, and a content policy forbids everything
else. All values are escaped, because corpus metadata may contain HTML. `report` adds what needs the model and the
recordings (the map of the embedding, the sounds of the worst errors); without them the page says what is missing and
how to get it, but a named folder that does not hold the scored corpus is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laennec.errors import InputError, in_known_form
from laennec.evaluation.baselines import length_groups
from laennec.evaluation.calibration.probabilities import decision_curves
from laennec.evaluation.comparison.evaluations import Evaluation, evaluation_folder, read_evaluation
from laennec.evaluation.geometry import MOST_POINTS, embedding_map
from laennec.evaluation.predictions import Predictions, read_evaluated
from laennec.evaluation.report import sections
from laennec.evaluation.report.details import Extras, cycle_sounds, errors_section, map_section
from laennec.evaluation.report.failures import true_text, worst_errors
from laennec.evaluation.report.plots import MOST_LABELS, embedded_picture, evaluation_plots, figure_png
from laennec.evaluation.report.plots_runs import learning_curves
from laennec.evaluation.summary import row_noun
from laennec.files import atomic_write
from laennec.progress import track
from laennec.rendering import render_template

_LOGIT_TOLERANCE = 0.05  # other machines and batch sizes round differently; another model differs by more
_CAPTIONS = {
    "confusion": "Counts and row shares of the classes: rows are the truth, columns the prediction.",
    "label_confusion": "The label alone: rows are the truth, columns the prediction.",
    "roc": "True positive rate against false positive rate at every threshold; dot: the threshold of the scores above.",
    "precision_recall": "Precision against recall at every threshold; dot: the threshold of the scores above.",
    "reliability": "Predicted probability against observed frequency. Below the diagonal: probabilities too high.",
    "decision": "Net benefit of acting on the probabilities: true positives among all {noun}s, minus false "
    "positives at the cost that the threshold probability sets. The model is useful where its line is above both "
    "others; band: 95 % interval.",
    "length": "AUROC among {noun}s of similar length, a tenth of them in each group, with 95 % intervals.",
    "training": "Loss by epoch, on the training split unless the legend says validation.",
    "validation_percent": "Scores on the validation patients by epoch.",
    "validation_shares": "Per-label metrics on the validation patients by epoch.",
    "loss_terms": "Each term of the objective on its own scale, with its weight, as an average over the epoch.",
}


@dataclass(frozen=True)
class Report:
    """The path of a report, what is missing in it, and the number of sounds in it."""

    path: Path
    missing: tuple[str, ...]
    sounds: int


def write_report(folder: str | Path, run: Mapping[str, Any], evaluation: Mapping[str, Any], table: Any) -> Path:
    """Write report.html and its pictures."""
    folder = Path(folder)
    page, pictures = make_page(run, evaluation, read_evaluated(table, evaluation))
    for name, content in pictures.items():
        with atomic_write(folder / "pictures" / f"{name}.png", "wb") as file:
            file.write(content)
    with atomic_write(folder / "report.html") as file:
        file.write(page)
    return folder / "report.html"


def make_page(
    run: Mapping[str, Any], evaluation: Mapping[str, Any], predictions: Predictions, extras: Extras | None = None
) -> tuple[str, dict[str, bytes]]:
    """The page as text, and its pictures as PNG by name."""
    extras, lengths = extras or Extras(), None
    curves: dict[str, Any] = {}
    if len(predictions.label_names) <= MOST_LABELS:
        lengths, curves = length_groups(predictions), decision_curves(predictions)
    figures = evaluation_plots(evaluation, predictions, lengths, curves)
    if run.get("history"):
        figures |= learning_curves(run["history"], run.get("best_epoch"))
    pictures = {name: figure_png(figure) for name, figure in track(figures.items(), "drawing the report")}
    command = run.get("command")
    noun = row_noun(evaluation)
    captions = {name: text.format(noun=noun) for name, text in _CAPTIONS.items()}
    titles = {name: figure.axes[0].get_title(loc="left").replace("\n", " ") for name, figure in figures.items()}
    embedded = {}
    for name, png in pictures.items():
        caption = captions[name.rstrip("_0123456789")]
        embedded[name] = embedded_picture(png, f"{titles[name]}. {caption}") | {"caption": caption}
    page = render_template(
        "report.html",
        title=str(run.get("name") or "Evaluation"),
        created=run.get("created"),
        version=run.get("laennec_version") or (run.get("versions") or {}).get("laennec"),
        split=(run.get("evaluated") or {}).get("split"),
        description=(run.get("config") or {}).get("description"),
        command=" ".join(map(str, command)) if isinstance(command, list | tuple) else command,
        warnings=[*sections.run_warnings(run), *evaluation["warnings"]],
        headline=sections.headline(evaluation),
        tiles=sections.tiles(evaluation),
        facts=sections.facts(run, evaluation),
        definitions=evaluation["definitions"],
        notes=evaluation["notes"],
        baselines=sections.baseline_table(evaluation),
        length=sections.length_section(lengths, evaluation) if lengths else None,
        smoothing=sections.smoothing_section(evaluation),
        windows=sections.window_sections(evaluation),
        decision=sections.decision_table(curves, evaluation),
        subgroups=sections.subgroup_sections(evaluation),
        errors=errors_section(predictions, evaluation, run, extras),
        geometry=sections.geometry_section(evaluation.get("geometry")),
        map=map_section(predictions, run, extras),
        figures=sections.metric_groups(evaluation),
        counts=sections.counts_and_calibration(evaluation),
        records=sections.records(run, evaluation),
        captions=captions,
        noun=noun,
        pictures=embedded,
    )
    return page, pictures


def report(
    source: str | Path,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    model: str | Path | None = None,
    base: str | None = None,
    corpus: Mapping[str, Any] | None = None,
    audio: bool = True,
    points: int = MOST_POINTS,
) -> Report:
    """Write the report of an evaluation, with the map of the embedding and the sounds of the worst errors.

    Args:
        source: A run's folder, or that of an evaluation.
        split: The scored split; None where there is only one.
        out: The file (.html), or a folder for report.html; None: in the evaluation's folder.
        model: The model, if not in the run's folder.
        base: The base of a head-only model.
        corpus: Location of the corpus ("data_dir", "tables_dir", "allow_missing"), if not that of the run.
        audio: Whether sounds are embedded; they are recordings of patients, and their licence may forbid it.
        points: Largest number of points of the map.
    """
    folder = evaluation_folder(source, split)
    evaluation = read_evaluation(folder)
    extras = _extras(evaluation, model, base, corpus or {}, audio, points)
    with in_known_form(folder, "evaluate the run again"):
        page, _ = make_page(evaluation.run, evaluation.metrics, evaluation.predictions, extras)
    path = folder / "report.html" if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    return Report(path, tuple(extras.missing), sum(sound.audio is not None for sound in extras.sounds.values()))


def _extras(
    evaluation: Evaluation,
    model: str | Path | None,
    base: str | None,
    corpus: Mapping[str, Any],
    audio: bool,
    points: int,
) -> Extras:
    """Map and sounds, where the recordings and the model are available."""
    given = {name: value for name, value in corpus.items() if value is not None}
    predictions = evaluation.predictions
    try:
        table, recipe = _scored_table(evaluation, given)
        places = _rows_of(predictions, table["cycle_id"])
        rows = dict.fromkeys(row["row"] for group in worst_errors(predictions) for row in group["rows"])
        sounds = cycle_sounds(table, {row: places[row] for row in rows}, audio) if rows else {}
    except InputError as error:
        if given:
            raise
        return Extras(missing=[f"no map of the embedding and no sounds: {error}"])
    try:
        embeddings = _embeddings(evaluation, table, recipe, model, base)
    except InputError as error:
        if model is not None or base is not None:
            raise
        return Extras(None, sounds, [f"no map of the embedding: {error}"])
    classes = [true_text(predictions, row) for row in range(len(predictions.table))]
    on_map = embedding_map(embeddings, classes, most=points)
    return Extras(on_map, sounds, [] if on_map is not None else ["Too few rows for a map of the embedding."])


def _scored_table(evaluation: Evaluation, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """The cycle table of the scored split, and the recipe with its corpus."""
    from laennec.corpora.load import provenance
    from laennec.evaluation.scored_data import recipe_of
    from laennec.training.data.split_data import load_splits

    run, origin = evaluation.run, evaluation.origin
    scored = (run["evaluated"].get("corpus") or {}).get("name")
    wanted = dict(given)
    if scored and scored != (run.get("config") or {}).get("corpus", {}).get("name"):
        keys = {"protocol": "protocol", "fold": "fold", "level": "level", "split_seed": "seed"}
        wanted |= {"name": scored, **{key: origin.get(name) for key, name in keys.items()}}
    recipe = recipe_of(evaluation.folder, run, wanted)
    where = recipe.corpus.data_dir
    if where is not None and not Path(where).exists():  # loading a synthetic corpus would write it there
        raise InputError(f"{where}: no such folder; give the folder of the corpus (data_dir, or --data-dir)")
    splits = load_splits(recipe)
    here, there = provenance(splits).get("split_fingerprint"), origin.get("split_fingerprint")
    if here != there or evaluation.split not in splits:
        raise InputError(
            f"{where or recipe.corpus.name}: not the corpus and split that was scored (split {str(here)[:12]}, scored "
            f"on {str(there)[:12]}); give the same data"
        )
    return splits[evaluation.split], recipe


def _rows_of(predictions: Predictions, cycle_ids: Any) -> list[int]:
    rows = {str(name): row for row, name in enumerate(cycle_ids)}
    names = list(map(str, predictions.table.get("cycle_id", ())))
    absent = [name for name in names if name not in rows]
    if absent or not names:
        raise InputError(
            f"the corpus does not hold the cycles that were scored ({(absent or ['no cycle_id'])[0]}); give the data "
            "that the evaluation used"
        )
    return [rows[name] for name in names]


def _embeddings(evaluation: Evaluation, table: Any, recipe: Any, model: str | Path | None, base: str | None) -> Any:
    """The embedding of every scored cycle (cycles, dim), from a model with the stored predictions."""
    from laennec.evaluation.evaluate import load_model, predict_split
    from laennec.evaluation.scored_data import settings_of_model

    of_run = evaluation.folder.parent
    source = model if model is not None else of_run if (of_run / "model").is_dir() else evaluation.run.get("name")
    if source is None or not Path(source).is_dir():
        raise InputError(f"{evaluation.folder}: no model beside the evaluation; give its folder (model, or --model)")
    loaded, extractor = load_model(source, base)
    run = evaluation.run if evaluation.run.get("trained_on") else None
    settings_of_model(recipe, run, loaded, extractor, table)
    again, embeddings, part = predict_split(loaded, extractor, table, evaluation.split, recipe)
    stored = evaluation.predictions
    rows = _rows_of(stored, part.table["cycle_id"])
    for name in evaluation.metrics["output_names"]:
        column = f"logit_{name}"
        if column not in again.columns:
            raise InputError(f"{source}: the model has no label {name}; give the model that was scored")
        gap = np.abs(again[column].to_numpy(float)[rows] - stored.table[column].to_numpy(float))
        if not float(gap.max(initial=0)) <= _LOGIT_TOLERANCE:
            raise InputError(
                f"{source}: the predictions differ from those that were scored ({column} by up to {gap.max():.3g}); "
                "give the model and the data that were scored, or evaluate again"
            )
    return embeddings[rows]
