"""Scoring an entry of a benchmark: a model by `laennec.evaluation.evaluate.score`, a file by the same evaluation.

Decisions: a model uses its own thresholds, and the record of a run counts the evaluation. The level and bandwidth
baselines of a file need the recordings and are left out without them. A result contains no paths of this machine.
"""

import datetime
import hashlib
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import laennec
from laennec.benchmark.definitions import Benchmark, load_benchmark
from laennec.benchmark.result_file import (
    SCORE,
    VALUES,
    Baseline,
    Cost,
    Result,
    Source,
    SplitScores,
    one_line,
    write_result,
)
from laennec.benchmark.submission import LABELS, is_submission, read_submission
from laennec.corpora.base import column_of
from laennec.corpora.load import provenance
from laennec.corpora.splits import fingerprint
from laennec.encoders import hub_commit
from laennec.errors import InputError
from laennec.evaluation.baselines import sound_facts
from laennec.evaluation.evaluate import UNKNOWN_SELECTION, load_model, score
from laennec.evaluation.metrics import CLASSES, is_percent
from laennec.evaluation.summary import evaluate_predictions, format_summary
from laennec.files import scratch_folder
from laennec.inference.backends import fingerprint_of
from laennec.inference.predictor import Predictor
from laennec.training.record import hardware, read_run
from laennec.training.tables import truth_table
from laennec.untrusted import read_bytes

_RATE_HZ = 8000
_TIMED_RECORDINGS = 20
_PACKAGE = {  # entries of a result for the model in the package
    "entry": "laennec: model in the package",
    "trained_on": "SPRSound, train (four fifths of its patients); AudioSet",
    "selection": "validation patients (a fifth of train): epochs, learning rate, calibration, thresholds",
}
Scored = dict[str, tuple[SplitScores, str]]  # split -> its scores, and the summary of its evaluation


def enter(
    benchmark: Benchmark,
    source: str | Path | None,
    out: str | Path,
    *,
    data_dir: str | Path,
    entry: str | None = None,
    trained_on: str | None = None,
    selection: str | None = None,
    origin: str | None = None,
    tables_dir: str | None = None,
) -> list[str]:
    """Score an entry on the test splits of a benchmark and write its result file; the scores of each split as lines.

    Args:
        benchmark: One of `laennec.benchmark.definitions.BENCHMARKS`.
        source: A run, an exported model, a Hub id, or a CSV or Parquet file of predictions; None for the model in the
            package.
        out: The result file, which must not exist.
        data_dir: Folder of the complete corpus.
        entry: Name of the entry; None: that of the source.
        trained_on: The training data; None: as the run recorded.
        selection: The data that epochs, thresholds and settings were chosen on; None: as the run recorded.
        origin: Where the entry comes from, e.g. repository, commit and file.
        tables_dir: Folder of the tables of ICBHI 2017; None: that of the corpus or beside it.
    """
    if Path(out).exists():
        raise InputError(f"{out}: exists already; remove it, or name another file (--out)")
    place = Path(source or laennec.DEFAULT_MODEL)
    if place.is_file() and not is_submission(place):
        raise InputError(f"{source}: predictions are read from .csv and .parquet; write them so, or name a model")
    run = read_run(place / "run.json") if (place / "run.json").exists() else {}
    given = {"--entry": entry, "--trained-on": trained_on, "--selection": selection, "--origin": origin}
    if source is None:
        if trained_on or selection:
            flag = "--trained-on" if trained_on else "--selection"
            raise InputError(f"{flag}: known for the model in the package; leave it out")
        entry, trained_on, selection = entry or _PACKAGE["entry"], _PACKAGE["trained_on"], _PACKAGE["selection"]
    learned_from = _training_data(run, benchmark, source, trained_on)
    if not (selection := selection or run.get("selection_set")):
        raise InputError("--selection is missing: name the data on which epochs, thresholds and settings were chosen")
    shown = place.resolve().name if place.exists() else str(source)
    for flag, text in {**given, "name of the entry": shown}.items():
        try:
            one_line("-" if text is None else text)
        except ValueError as error:
            raise InputError(f"{flag} {text!r}: must be {error}") from None
    place_of = {"data_dir": str(data_dir)} | ({"tables_dir": tables_dir} if tables_dir else {})
    splits = load_benchmark(benchmark, **place_of)
    words = [*([shown] if source else []), *(word for flag, text in given.items() if text for word in (flag, text))]
    command = shlex.join(["laennec", "benchmark", benchmark.name, *words])
    with scratch_folder(out) as folder:  # a place that cannot be written is refused before scoring
        if is_submission(place):
            made, scored = _of_file(place, benchmark, splits)
        else:
            made, scored = _of_model(source, benchmark, splits, place_of, command, folder)
    result = Result(
        benchmark=benchmark.name,
        version=benchmark.version,
        entry=entry or shown,
        source=Source(name=shown, origin=origin, **made.pop("source")),
        trained_on=learned_from,
        selection=selection,
        splits={name: scored[name][0] if name in scored else None for name in benchmark.tests},
        command=command,
        laennec=laennec.__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        **made,
    )
    write_result(out, result)
    lines = [benchmark.title]
    for name in benchmark.tests:
        said = scored[name][1].splitlines() if name in scored else ["missing: the result is without this split"]
        said = [line.replace(UNKNOWN_SELECTION, selection) for line in said]  # not known to the evaluation
        lines += ["", f"== {name}", *said]
    return lines


def _training_data(run: dict[str, Any], benchmark: Benchmark, source: str | Path | None, declared: str | None) -> str:
    """The training data of an entry, as recorded by its run or as declared; refused if the benchmark forbids them."""
    if not run and not declared:
        raise InputError("--trained-on is missing: name the training data, e.g. 'SPRSound, train'")
    facts = run["corpus"]["provenance"] if run else {}
    corpora = facts.get("corpora") or ({run["corpus"]["name"]: facts} if run else {})
    corpora = {name: own for name, own in corpora.items() if own.get("protocol") != "corpus-out"}  # all of it is test
    name = "+".join(corpora) if run else str(declared)
    if run and declared:
        raise InputError(f"--trained-on: {source} recorded its training data, {name}; leave it out")
    try:
        benchmark.refuse_training_on(name)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    protocol = corpora.get(benchmark.corpus, {}).get("protocol", benchmark.protocol)
    if protocol != benchmark.protocol:
        raise InputError(
            f"{source}: trained under protocol {protocol}, so it may have learned from the test split; "
            f"{benchmark.name} needs {benchmark.protocol}"
        )
    return name


def _of_file(path: Path, benchmark: Benchmark, splits: Mapping[str, Any]) -> tuple[dict[str, Any], Scored]:
    """The scores of a file of predictions, and its entries of a result."""
    predictions = read_submission(path, benchmark, splits)
    learned = _truth(splits, "train")
    own = any("decided_crackle" in rows for rows in predictions.values())
    decisions = "columns crackle and wheeze" if own else "probability above 0.5"
    notes = [*(f"leak: {line}" for line in provenance(splits)["leaks"] or []), f"a label is predicted by: {decisions}"]
    scored = {}
    for name, rows in predictions.items():
        table = pd.concat([_truth(splits, name), rows], axis=1)
        evaluation = evaluate_predictions(table, problem_type="multi_label", label_names=LABELS, train_table=learned)
        ranked = not rows[["p_crackle", "p_wheeze"]].isin((0, 1)).all(axis=None)
        hard = [] if ranked else ["all probabilities are 0 or 1: the result is without AUROC, AP and calibration error"]
        text = "\n".join([*notes, *hard, format_summary(evaluation)])
        scored[name] = _split_scores(evaluation, name, table, ranked), text
    return {
        "source": {"kind": "predictions", "revision": None, "sha256": hashlib.sha256(read_bytes(path)).hexdigest()},
        "decisions": decisions,
        "cost": None,
    }, scored


def _truth(splits: Mapping[str, Any], name: str) -> pd.DataFrame:
    """Truth and metadata of a split, with level and bandwidth where recordings are available."""
    table = truth_table(splits[name], name, None, LABELS)
    if None in column_of(splits[name], "recording_path"):
        return table
    return table.assign(**sound_facts(splits[name], _RATE_HZ))


def _of_model(
    source: str | Path | None,
    benchmark: Benchmark,
    splits: Mapping[str, Any],
    place_of: Mapping[str, str],
    command: str,
    folder: Path,
) -> tuple[dict[str, Any], Scored]:
    """The scores of a model, evaluated in a temporary folder, and its entries of a result."""
    name = source or laennec.DEFAULT_MODEL
    model, extractor = load_model(name)
    revision = hub_commit(name)  # before scoring: the repository may change meanwhile
    labels, several = model.config.label_names, model.config.is_multi_label
    if set(labels) != set(LABELS if several else CLASSES):
        raise InputError(
            f"{name}: predicts {', '.join(labels)}; a benchmark needs crackle and wheeze, or both as classes"
        )
    corpus = {"name": benchmark.corpus, "protocol": benchmark.protocol, **place_of}
    scored = {}
    for split in [name for name in benchmark.tests if name in splits]:
        done = score(name, split=split, corpus=corpus, out=folder / split, command=command)
        table = pd.read_parquet(done.folder / "predictions.parquet")
        scored[split] = _split_scores(done.evaluation, split, table, True), done.summary
    return {
        "source": {"kind": "model", "revision": revision, "sha256": fingerprint_of(model, extractor)},
        "decisions": "thresholds of the model" if several else "most probable class",
        "cost": _cost(model, extractor, column_of(splits["train"], "recording_path")),
    }, scored


def _cost(model: Any, extractor: Any, paths: list[str]) -> Cost:
    """Number of parameters, and CPU seconds per hour of sound after a warm-up recording."""
    machine, timed, predictor = hardware(), sorted(set(paths))[:_TIMED_RECORDINGS], Predictor(model, extractor)
    predictor(timed[0])
    start = time.process_time()
    sound_s = sum(predictor(path).duration_s for path in timed)
    cpu_s = 3600 * (time.process_time() - start) / sound_s
    return Cost(
        parameters=model.num_parameters(),
        cpu_s_per_hour=None if machine["gpus"] else round(cpu_s, 1),
        processor=machine["processor"],
    )


def _split_scores(evaluation: dict[str, Any], split: str, table: pd.DataFrame, ranked: bool) -> SplitScores:
    """The parts of an evaluation that a result stores; no AUROC, AP and calibration unless `ranked`."""
    kept = [name for name in VALUES if ranked or is_percent(name)]
    baselines = [
        Baseline(
            name=row["name"],
            values={name: row["values"].get(name) for name in (SCORE, "crackle.roc_auc", "wheeze.roc_auc")},
            interval=row["intervals"].get(SCORE),
            difference=row["advantage"]["value"],
            difference_interval=row["advantage"]["interval"],
        )
        for row in evaluation["floors"]
        if row["advantage"]
    ]
    return SplitScores(
        fingerprint=fingerprint({split: table["cycle_id"]}),
        patients=evaluation["counts"]["patients"],
        effective_patients=evaluation["effective_patients"],
        confusion=evaluation["confusion"]["matrix"],
        values={name: evaluation["values"][name] for name in kept},
        intervals={name: evaluation["intervals"].get(name) for name in kept},
        baselines=baselines,
        within_lengths=evaluation["within_lengths"] if ranked else None,
        middle=(evaluation.get("duration_blind") or {}).get("values"),
        calibration_error=evaluation["calibration"]["ece"] if ranked else None,
    )
