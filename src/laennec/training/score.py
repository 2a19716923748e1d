"""Stage 9, evaluation of a trained model on a held-out part.

Decided here: the part is the one that the run's protocol left out, recognised by its split fingerprint: a run cannot
be scored under the name of a split that it was not trained on. Every scoring of a test part is written into the run
record, because a part that is looked at often is no test part any more.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora import cache_root, provenance
from laennec.errors import InputError
from laennec.evaluation import evaluate_predictions, format_summary, write_report
from laennec.model import LaennecForAudioClassification
from laennec.training.config import Recipe, recipe_from_dict
from laennec.training.embed import EmbeddingCache, embed_cycles
from laennec.training.experiment import load_parts, make_part
from laennec.training.record import Timings, hardware, read_record, versions, write_record
from laennec.training.tables import logit_thresholds, predictions_table, truth_table
from laennec.writing import write_aside


@dataclass
class Scored:
    """Where the results of a scoring lie, and what they say."""

    folder: Path
    summary: str
    evaluation: dict[str, Any]


def load_model(
    source: str | Path, base: str | None = None
) -> tuple[LaennecForAudioClassification, LaennecFeatureExtractor]:
    """A model with its front end, from a run's folder, an exported folder or the Hub.

    Raises:
        InputError: There is no laennec model there, or its base is missing or another.
    """
    folder = Path(source) / "model" if (Path(source) / "model" / "config.json").exists() else source
    if Path(source).is_dir() and not (Path(folder) / "config.json").exists():
        raise InputError(
            f"{source}: no model in this folder (no config.json); give a finished run, an exported folder or a Hub id"
        )
    model = LaennecForAudioClassification.from_pretrained(folder, base=base)
    try:
        extractor = LaennecFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: no usable front end beside the model ({str(error).splitlines()[0]}); export the run again"
        ) from error
    model.eval()
    return model, extractor


def score(
    source: str | Path,
    *,
    split: str = "test",
    corpus: dict[str, Any] | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    command: str = "",
    draws: int = 1000,
) -> Scored:
    """Score a run or a model on one part of a corpus.

    Args:
        source: A run's folder, an exported model's folder or a Hub id.
        split: Name of the part: "test", or "test_intra" and the like where a corpus has several.
        corpus: Settings that replace those of the run's corpus (data_dir, or another corpus altogether).
        out: Folder of the results; None: `evaluation-<split>` in the run's folder.
        base: Where the base of a head-only model lies.
        command: The literal command, for the record.
        draws: Bootstrap draws.

    Returns:
        The folder with predictions.parquet, metrics.json, run.json, pictures and report.html; the printed summary.

    Raises:
        InputError: The part does not exist, the corpus is not the run's, or data or model cannot be read.
    """
    run_path = Path(source) / "run.json"
    run = read_record(run_path) if run_path.exists() else None
    recipe = _recipe(run, corpus)
    if run is None and out is None:
        raise InputError("a model outside its run needs an output folder: pass --out DIR")
    folder = Path(out) if out is not None else Path(source) / f"evaluation-{split}"
    timings = Timings()
    with timings.measure("evaluation"):
        model, extractor = load_model(source, base)
        names = model.config.label_names
        parts = load_parts(recipe)
        origin = provenance(parts)
        _check_split(run, recipe, origin, corpus)
        if split not in parts:
            raise InputError(
                f"{recipe.corpus.name}: there is no part {split!r}; the parts are {', '.join(parts)} (--split)"
            )
        part = make_part(split, parts[split], recipe, extractor, names, False)
        embeddings = embed_cycles(
            model, extractor, part.dataset, part.keys(), EmbeddingCache(cache_root(), model, extractor)
        )
        column = recipe.target.column
        predictions = predictions_table(model, truth_table(part.table, split, column, names), embeddings)
        training = truth_table(parts["train"], "train", column, names) if "train" in parts else None
        evaluation = evaluate_predictions(
            predictions,
            problem_type="multi_label" if model.config.is_multi_label else "single_label",
            label_names=names,
            thresholds=logit_thresholds(model),
            train_table=training,
            n_draws=draws,
        )
    record = {
        **(
            run
            or {
                "name": str(source),
                "config": recipe.to_dict(),
                "selection_set": "unknown: the model came without its run record",
            }
        ),
        "evaluated": {
            "split": split,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "corpus": {
                "name": recipe.corpus.name,
                "fingerprint": origin.get("corpus_fingerprint"),
                "provenance": origin,
            },
            "versions": versions(),
            "hardware": hardware(),
            "timings": timings.seconds,
        },
    }
    if run is not None:
        run["evaluations"] = [
            *run.get("evaluations", []),
            {k: record["evaluated"][k] for k in ("split", "created", "command")},
        ]
        record["evaluations"] = run["evaluations"]
    with write_aside(folder / "predictions.parquet", "wb") as file:
        predictions.to_parquet(file)
    write_record(folder / "metrics.json", evaluation)
    write_record(folder / "run.json", record)
    write_report(folder, record, evaluation, predictions)
    if run is not None:
        write_record(run_path, run)
    return Scored(folder, format_summary(evaluation), evaluation)


def _recipe(run: dict[str, Any] | None, corpus: dict[str, Any] | None) -> Recipe:
    """The settings that say which data to read: the run's, or the given corpus."""
    if run is None and not (corpus or {}).get("name"):
        raise InputError("a model outside its run needs a corpus: pass --corpus NAME --data-dir DIR")
    recipe = recipe_from_dict(run["config"], "run.json") if run else Recipe()
    given = {k: v for k, v in (corpus or {}).items() if v is not None}
    if given.get("name", recipe.corpus.name) != recipe.corpus.name:
        recipe.corpus = type(recipe.corpus)()
    for key, value in given.items():
        setattr(recipe.corpus, key, value)
    return recipe


def _check_split(
    run: dict[str, Any] | None, recipe: Recipe, origin: dict[str, Any], corpus: dict[str, Any] | None
) -> None:
    """Refuse to score a run on a split that is not the one it was trained on."""
    if run is None or recipe.corpus.name != run["corpus"]["name"]:
        return
    trained = run["corpus"]["provenance"]
    if origin.get("split_fingerprint") != trained.get("split_fingerprint"):
        raise InputError(
            f"{recipe.corpus.data_dir or recipe.corpus.name}: not the corpus and split that this run was trained on (split "
            f"{str(origin.get('split_fingerprint'))[:12]}, trained on {str(trained.get('split_fingerprint'))[:12]}): training cycles could be "
            "in the scored part; give the same data and protocol"
        )
