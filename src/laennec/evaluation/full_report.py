"""The report of a run, rendered again from its files and completed from model and recordings.

Decisions: nothing is scored: the figures are those of the evaluation, and the model answers only to give its
embeddings, which must belong to the answers that were stored. Without corpus or model there is a report all the same,
which says what is missing and how to get it; a place that was named and does not hold the corpus is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laennec.errors import InputError
from laennec.evaluation.embedding_map import MOST_POINTS, embedding_map
from laennec.evaluation.evaluations import Evaluation, evaluation_folder, read_evaluation
from laennec.evaluation.predictions import Answers
from laennec.evaluation.report import make_page
from laennec.evaluation.report_sections import Extras
from laennec.evaluation.worst import said, worst_errors
from laennec.files import atomic_write

_SAME_LOGIT = 0.05  # other machines and batches round otherwise; another model is further off


@dataclass(frozen=True)
class Reported:
    """Where a report lies, and what could not be added to it."""

    path: Path
    missing: tuple[str, ...]
    sounds: int


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
) -> Reported:
    """Write the report of an evaluation as one page, with the map of the embedding and the worst errors to listen to.

    Args:
        source: A run's folder, or that of an evaluation.
        split: The part that was scored; None where there is only one.
        out: The file (.html), or a folder for report.html; None: in the evaluation's folder.
        model: Where the model lies, if not in the run's folder.
        base: Where the base of a head-only model lies.
        corpus: Where the corpus lies ("data_dir", "tables_dir", "allow_missing"), if not where the run found it.
        audio: Whether sounds are embedded; they are recordings of patients, and their licence may forbid it.
        points: Most points of the map.

    Returns:
        The page, and what is missing in it.

    Raises:
        InputError: There is no evaluation, its files do not belong together, or a corpus or model that was named is
            not the one that was scored.
    """
    folder = evaluation_folder(source, split)
    evaluation = read_evaluation(folder)
    extras = _extras(evaluation, model, base, corpus or {}, audio, points)
    page, _ = make_page(evaluation.run, evaluation.metrics, evaluation.predictions, extras=extras)
    path = folder / "report.html" if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    heard = sum(sound.audio is not None for sound in extras.sounds.values())
    return Reported(path, tuple(extras.missing), heard)


def _extras(
    evaluation: Evaluation,
    model: str | Path | None,
    base: str | None,
    corpus: Mapping[str, Any],
    audio: bool,
    points: int,
) -> Extras:
    """What needs the recordings and the model, as far as they are at hand."""
    given = {name: value for name, value in corpus.items() if value is not None}
    try:
        table, recipe = _scored_part(evaluation, given)
        sounds = _sounds(evaluation.answers, table, audio)
    except InputError as error:
        if given:
            raise
        how = "no map of the embedding and no sounds; say where the corpus lies: laennec report RUN --data-dir DIR"
        return Extras(missing=[f"{_line(error)} ({how})"])
    try:
        embeddings = _embeddings(evaluation, table, recipe, model, base)
    except InputError as error:
        if model is not None or base is not None:
            raise
        how = "no map of the embedding; say where the model lies: laennec report RUN --model DIR"
        return Extras(None, sounds, audio, [f"{_line(error)} ({how})"])
    answers = evaluation.answers
    classes = [said(answers, row, answers.true, answers.truth) for row in range(len(answers.table))]
    places = embedding_map(embeddings, classes, most=points)
    few = [] if places is not None else ["Too few cycles for a map of the embedding."]
    return Extras(places, sounds, audio, few)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _scored_part(evaluation: Evaluation, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """The cycle table of the part that was scored, and the settings that it was read with."""
    from laennec.corpora import provenance
    from laennec.evaluation.evaluate import recipe_of
    from laennec.training.split_data import load_splits

    run, origin = evaluation.run, evaluation.origin
    scored = (run["evaluated"].get("corpus") or {}).get("name")
    wanted = dict(given)
    if scored and scored != (run.get("config") or {}).get("corpus", {}).get("name"):
        split_of = {"protocol": "protocol", "fold": "fold", "level": "level", "seed": "split_seed"}
        wanted |= {"name": scored, **{key: origin.get(name) for name, key in split_of.items()}}
    recipe = recipe_of(evaluation.folder, run, wanted)
    where = recipe.corpus.data_dir
    if where is not None and not Path(where).exists():  # a synthetic corpus would be written there: a report only reads
        raise InputError(f"{where}: no such folder")
    parts = load_splits(recipe)
    here, there = provenance(parts).get("split_fingerprint"), origin.get("split_fingerprint")
    if here != there:
        raise InputError(
            f"{recipe.corpus.data_dir or recipe.corpus.name}: not the corpus and split that was scored (split "
            f"{str(here)[:12]}, scored on {str(there)[:12]}); give the same data"
        )
    if evaluation.split not in parts:
        raise InputError(f"{recipe.corpus.name}: there is no part {evaluation.split} any more; evaluate the run again")
    return parts[evaluation.split], recipe


def _places(answers: Answers, cycle_ids: Any) -> list[int]:
    """Where each of the answers' cycles lies in a table."""
    place = {str(name): row for row, name in enumerate(cycle_ids)}
    names = [str(name) for name in answers.table["cycle_id"]] if "cycle_id" in answers.table.columns else []
    absent = [name for name in names if name not in place]
    if absent or not names:
        raise InputError(
            f"the corpus does not hold the cycles that were scored ({(absent or ['no cycle_id'])[0]}); give the data "
            "that the evaluation used"
        )
    return [place[name] for name in names]


def _sounds(answers: Answers, table: Any, audio: bool) -> dict[int, Any]:
    """Sounds and pictures of the worst errors, by row of the answers."""
    from laennec.inference.sounds import cycle_sounds

    places = _places(answers, table["cycle_id"])
    rows = dict.fromkeys(row["row"] for group in worst_errors(answers) for row in group["rows"])
    return cycle_sounds(table, {row: places[row] for row in rows}, audio) if rows else {}


def _embeddings(evaluation: Evaluation, table: Any, recipe: Any, model: str | Path | None, base: str | None) -> Any:
    """The embedding of every answered cycle (cycles, dim), from a model that answers as was stored."""
    from laennec.evaluation.evaluate import answer_part, check_model_fits, load_model

    of_run = evaluation.folder.parent
    source = model if model is not None else of_run if (of_run / "model").is_dir() else evaluation.run.get("name")
    if source is None or not Path(source).is_dir():
        raise InputError(f"{evaluation.folder}: there is no model beside the evaluation")
    loaded, extractor = load_model(source, base)
    run = evaluation.run if evaluation.run.get("trained_on") else None
    check_model_fits(recipe, run, loaded, extractor, table)
    predictions, embeddings, part = answer_part(loaded, extractor, table, evaluation.split, recipe)
    answers = evaluation.answers
    places = _places(answers, part.table["cycle_id"])
    for name in evaluation.metrics["output_names"]:
        column = f"logit_{name}"
        if column not in predictions.columns:
            raise InputError(f"{source}: the model does not answer {name}; give the model that was scored")
        gap = np.abs(predictions[column].to_numpy(float)[places] - answers.table[column].to_numpy(float))
        if gap.size and not float(gap.max()) <= _SAME_LOGIT:
            raise InputError(
                f"{source}: the model answers otherwise than when it was scored ({column} by up to {gap.max():.3g}); "
                "give the model and the data that were scored, or evaluate again"
            )
    return embeddings[places]
