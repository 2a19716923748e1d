"""All readers of text that people or other programs wrote, for the fuzzer and its short test.

Each reader takes an empty folder and the bytes of one file; it must give a result or an `InputError` of one line.
`seeds` are valid files, which the fuzzer damages.
"""

import functools
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laennec.errors import InputError
from laennec.files import journal_line
from laennec.inference.batch.journal import Journal

ICBHI = b"0.036\t0.579\t0\t0\n0.579\t2.45\t1\t0\n2.45\t3.893\t0\t1\n3.893 5.793 1 1\n"
AUDACITY = b"0.0\t1.5\tcrackle\n\\\t100.0\t400.0\n1.5\t2.25\tnormal\n2.25\t3.0\tcrackle + wheeze\n"
RAVEN = (
    b"Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\n"
    b"1\tWaveform 1\t1\t0.5\t1.5\t0.0\t2000.0\ta.wav\n1\tSpectrogram 1\t1\t0.5\t1.5\t0.0\t2000.0\ta.wav\n"
)
SPRSOUND = json.dumps(
    {"record_annotation": "CAS & DAS", "event_annotation": [
        {"start": "308", "end": "2044", "type": "Normal"}, {"start": 2044, "end": 3000.5, "type": "Wheeze+Crackle"}]}
).encode()  # fmt: skip
CYCLES = (
    b"recording,start_s,end_s,crackle,wheeze,patient_id,sex,age_years\na,0.0,0.5,0,1,p1,F,63\na.wav,0.5,1,1,0,p1,f,\n"
)
LABELLED = b"file;start;end;label\na;0.0;0.5;both\na;0.5;1;normal\n"
FACTS = b"recording\tpatient_id\tsex\tage_years\tbmi\tdiagnosis\na\t7\tmale\t3.5\t.5\tCOPD\n"
RECIPE = b"""name: soak
description: "a recipe"
seed: 1
corpus: {name: synthetic, protocol: patient-60-20-20, options: {patients: 4}}
features: {preset: song2021, length: natural, filter_cutoff_hz: [50, 1000], filter_kind: bandpass}
encoder:
  type: cnn
  config: &c {channels: [4, 8]}
augment: {noise: {probability: 0.5}, mix: {method: mixup, domain: features}}
loss: {auxiliary: {add: {weight: 0.2}}, class_weights: balanced}
train: {epochs: 12, batch_size: 8, learning_rate: 1e-3, selection_metric: loss, betas: [0.9, 0.999]}
head: {threshold_rule: youden, calibration: platt}
pretrain: {epochs: 3}
card: {licence: apache-2.0}
"""
PARAMETERS = b"""settings: {window_s: 5, hop_s: 2.5, annotation: null, segment: {}, smoothing: auto,
  smoothing_neighbours: 1, thresholds: {crackle: 0.4}, format: [json, csv]}
model: {fingerprint: abc}
"""
METRICS = {
    "split": "test", "problem_type": "multi_label", "label_names": ["crackle", "wheeze"],
    "output_names": ["crackle", "wheeze"], "thresholds": {"crackle": 0.1, "wheeze": 0.0},
    "temperatures": {"crackle": 1.5, "wheeze": 1.0}, "intercepts": {"crackle": 0.5}, "headline": "icbhi.Score",
    "counts": {"cycles": 4, "patients": 2}, "uncertainty": {"method": "jackknife"}, "values": {"undefined": None},
}  # fmt: skip
PREDICTIONS = b"""cycle_id,recording_id,patient_id,start_s,end_s,crackle,wheeze,label,logit_crackle,logit_wheeze
a#00,a,1,0,1,0,1,wheeze,-1.5,2
a#01,a,1,1,2,1,0,crackle,1.5,-2
b#00,b,2,0,1,1,1,both,0.5,1
b#01,b,2,1,2,0,0,normal,-0.5,-1
"""


@dataclass(frozen=True)
class Reader:
    """A function of laennec that reads files.

    Attributes:
        name: Kind of file.
        read: (folder, file content) -> any result.
        seeds: Valid files.
        form: Format in which values of the structure can be replaced: "text" (none), "json", "jsonl" or "yaml".
    """

    name: str
    read: Callable[[Path, bytes], object]
    seeds: tuple[bytes, ...]
    form: str = "text"


def _file(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path, bytes], object]]:
    """Make a reader of (folder, content) from a function of a path; the file gets this name."""

    def wrap(read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
        def with_content(folder: Path, content: bytes) -> object:
            path = folder / name
            path.write_bytes(content)
            return read(path)

        return with_content

    return wrap


def a_second_of_sound() -> bytes:
    """A silent WAV file of one second."""
    samples = bytes(8000)
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 4000, 8000, 2, 16) + b"data" + struct.pack("<I", 8000)
    return b"RIFF" + struct.pack("<I", len(head) + 8000) + head + samples


@_file("a.txt")
def _icbhi(path: Path) -> object:
    from laennec.audio.cycles import check_annotation, read_annotation

    check_annotation(path, 6.0)
    return read_annotation(path)


@_file("a.txt")
def _labels(path: Path) -> object:
    from laennec.audio.cycles import read_labels

    return _refused(lambda: read_labels(path)) or read_labels(path, 4.0)


def _refused(read: Callable[[], object]) -> object:
    """The result, or None if the file was refused with an InputError."""
    try:
        return read()
    except InputError:
        return None


@_file("a.selections.txt")
def _spans(path: Path) -> object:
    from laennec.audio.cycles import read_spans

    return _refused(lambda: read_spans(path, 4.0)) or read_spans(path)


@_file("a.json")
def _sprsound(path: Path) -> object:
    from laennec.corpora.sprsound import read_events, read_record_label
    from laennec.inference.predictor import annotated_spans

    _refused(lambda: annotated_spans(path, 4.0))
    _refused(lambda: read_record_label(path))
    return read_events(path)


def _folder(folder: Path, content: bytes) -> object:
    """Load a folder corpus with this table and one with this label file, and read all rows."""
    from laennec.corpora.base import to_arrow
    from laennec.corpora.folder.corpus import Folder

    place = folder / "corpus"
    if not place.exists():
        place.mkdir()
        (place / "a.wav").write_bytes(a_second_of_sound())
    (place / "cycles.csv").write_bytes(content)
    rows = []
    for unlabelled in (False, True):
        corpus = _refused(lambda u=unlabelled: Folder(place, folder / "cache", unlabelled=u))
        for recording in corpus.recordings if corpus else ():
            corpus.check_events(recording, 1.0)
            rows += _refused(lambda c=corpus, r=recording: c.rows(r)) or []
        if corpus:
            to_arrow(rows, corpus.features)
    return rows


@_file("run.json")
def _recipe_of_a_run(path: Path) -> object:
    from laennec.training.recipe import Recipe
    from laennec.training.record import read_record, write_record

    record = read_record(path)
    write_record(path.with_name("again.json"), record)
    if isinstance(record.get("config"), dict):
        return Recipe.from_record(record["config"]).to_dict()
    return None


def _run_evidence(folder: Path, content: bytes) -> object:
    from laennec.hub.evidence import read_evidence

    (folder / "run.json").write_bytes(content)
    return read_evidence(folder)


@functools.cache
def _table() -> bytes:
    import io

    import pandas as pd

    file = io.BytesIO()
    pd.read_csv(io.BytesIO(PREDICTIONS)).to_parquet(file)
    return file.getvalue()


def _metrics(folder: Path, content: bytes) -> object:
    from laennec.evaluation.comparison.evaluations import read_evaluation

    place = folder / "evaluation-test"
    if not place.exists():
        place.mkdir()
        (place / "predictions.parquet").write_bytes(_table())
        (place / "run.json").write_text('{"evaluated": {"split": "test"}}')
    (place / "metrics.json").write_bytes(content)
    return read_evaluation(place)


def _checkpoint(folder: Path, content: bytes) -> object:
    from laennec.training.checkpoints import damage, last_whole

    place = folder / "checkpoint-2"
    place.mkdir(exist_ok=True)
    for name in ("trainer_state.json", "rng_state.pth"):
        (place / name).write_text("{}")
    (place / "manifest.json").write_bytes(content)
    damage(place)
    return last_whole(folder)


def _trainer_state(folder: Path, content: bytes) -> object:
    from laennec.training.checkpoints import last_whole, seal

    shutil.rmtree(folder / "checkpoint-2", ignore_errors=True)
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "trainer_state.json").write_bytes(content)
    seal(folder / "checkpoint-2", 1)
    return last_whole(folder)


def _model_config(folder: Path, content: bytes) -> object:
    from laennec.evaluation.calibration.recalibrate import _model_config as read

    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_bytes(content)
    return read(folder)


@_file("laennec.journal.jsonl")
def _journal(path: Path) -> object:
    journal = Journal(path)
    return [journal.read(name) for name in journal.entries]


@_file("laennec.json")
def _mark(path: Path) -> object:
    from laennec.corpora.hub.exported import MANIFEST, read_manifest

    path.rename(path.with_name(MANIFEST))
    return read_manifest(path.parent)


@_file("split.txt")
def _icbhi_tables(path: Path) -> object:
    from laennec.corpora import icbhi2017

    return [
        _refused(lambda r=read: r(path))
        for read in (
            icbhi2017.read_official_split, icbhi2017.read_folds, icbhi2017.read_diagnoses, icbhi2017.read_demographics
        )
    ]  # fmt: skip


@_file("REFERENCE.csv")
def _physionet(path: Path) -> object:
    from laennec.corpora.physionet2016 import read_reference

    return read_reference(path)


def _metadata(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        from laennec.corpora.hub.layouts import read_layout

        (folder / "a.wav").write_bytes(b"")
        (folder / name).write_bytes(content)
        return read_layout(folder, "table", ("train", "test"))

    return read


@_file("predictions.csv")
def _predictions(path: Path) -> object:
    """A predictions table with arbitrary text in its columns, as from a spreadsheet."""
    import pandas as pd

    from laennec.evaluation.predictions import read_predictions

    try:
        table = pd.read_csv(path)
    except (ValueError, pd.errors.ParserError, OverflowError):  # errors of pandas' reader
        return None
    answers = []
    for kind, names in (("multi_label", ["crackle", "wheeze"]), ("single_label", ["normal", "crackle"])):
        answers.append(_refused(lambda k=kind, n=names: read_predictions(table, problem_type=k, label_names=n)))
    return answers


@_file("predictions.parquet")
def _stored_predictions(path: Path) -> object:
    from laennec.evaluation.calibration.recalibrate import read_validation
    from laennec.evaluation.predictions import read_predictions

    table = read_validation(path)
    return read_predictions(table, problem_type="multi_label", label_names=["crackle", "wheeze"])


@_file("recipe.yaml")
def _recipe(path: Path) -> object:
    from laennec.training.recipe import Recipe

    return Recipe.from_yaml(path).to_dict()


@_file("override.txt")
def _override(path: Path) -> object:
    """A recipe setting from the command line."""
    from laennec.training.recipe import Recipe

    text = path.read_text(errors="replace")
    recipe = path.with_name("recipe.yaml")
    recipe.write_bytes(RECIPE)
    key, _, value = text.partition("=")
    return Recipe.from_yaml(recipe, **{key: value})


@_file("parameters.yaml")
def _parameters(path: Path) -> object:
    from laennec.inference.batch.parameters import read_parameters

    settings, _ = read_parameters(path)
    return settings.segmentation()


@_file("answers.yaml")
def _answers(path: Path) -> object:
    from laennec.hub import card

    (path.parent / "run.json").write_text('{"config": {"name": "soak"}, "card": {}}')
    return card.record_answers(path.parent, path)


@_file("README.md")
def _card(path: Path) -> object:
    from laennec.hub.card import check_publishable

    return check_publishable(path.parent)


_RUN = json.dumps({"config": {"name": "soak", "seed": 0, "train": {"epochs": 2}}, "corpus": {"name": "synthetic"},
                   "operating_points": {"thresholds": {"crackle": 0.1}}, "evaluations": []}).encode()  # fmt: skip
_SHA = "0" * 64

GROUPS: dict[str, tuple[Reader, ...]] = {
    "annotations": (
        Reader("ICBHI text", _icbhi, (ICBHI,)),
        Reader("Audacity labels", _labels, (AUDACITY, ICBHI)),
        Reader("Raven tables", _spans, (RAVEN, AUDACITY)),
        Reader("SPRSound JSON", _sprsound, (SPRSOUND,), "json"),
        Reader("folder corpora", _folder, (CYCLES, LABELLED, FACTS)),
    ),
    "json": (
        Reader("run record", _recipe_of_a_run, (_RUN,), "json"),
        Reader("evidence of a run", _run_evidence, (_RUN,), "json"),
        Reader("metrics", _metrics, (json.dumps(METRICS).encode(),), "json"),
        Reader("manifest of a checkpoint", _checkpoint, (
            json.dumps({"processes": 1, "files": {"trainer_state.json": {"bytes": 2, "sha256": _SHA}}}).encode(),
            b'{"processes": 1, "files": {}}'), "json"),
        Reader("state of a checkpoint", _trainer_state, (
            b'{"best_model_checkpoint": "runs/checkpoint-1", "global_step": 2}',), "json"),
        Reader("configuration of a model", _model_config, (b'{"id2label": {"0": "crackle"}}',), "json"),
        Reader("journal", _journal, (
            journal_line(journal=3, identity={"model": "m"}) + journal_line(names=["a"]) + journal_line(
                name="a", content="c", status=["a", 1, 2, 3], others=[], timeline={"recording": "a"}),), "jsonl"),
        Reader("manifest of an export", _mark, (json.dumps({
            "format": 1, "corpus": "icbhi2017", "files": {"cycles/train-00000-of-00001.parquet": {"sha256": _SHA}},
        }).encode(),), "json"),
    ),
    "tables": (
        Reader("ICBHI tables", _icbhi_tables, (
            b"101_1b1_Al_sc_Meditron\ttrain\n102_1b1_Ar_sc_Meditron\ttest\n", b"101\t0\n102\t1\n", b"101\tURTI\n",
            b"101 3 F NA 19 99\n102 0.75 M 28.47 NA NA\n")),
        Reader("PhysioNet tables", _physionet, (b"a0001,1,0\na0002,-1,1\n", b"a0001,1\n")),
        Reader("metadata.csv", _metadata("metadata.csv"), (b"file_name,split,label\na.wav,train,x\nb.wav,test,y\n",)),
        Reader("metadata.jsonl", _metadata("metadata.jsonl"), (b'{"file_name": "a.wav", "label": "x"}\n\n',), "jsonl"),
        Reader("predictions", _predictions, (PREDICTIONS,)),
        Reader("stored predictions", _stored_predictions, (_table(),)),
    ),
    "recipes": (
        Reader("recipe", _recipe, (RECIPE, *RECIPE.splitlines(keepends=True)[3:5], b"train: {epochs: 3}\n"), "yaml"),
        Reader("value of the command line", _override, (
            b"train.epochs=3", b"learning-rate=1e-3", b"loss.auxiliary.add={weight: 0.2}", b"corpus.options.x=[1, a]")),
        Reader("parameters.yaml", _parameters, (PARAMETERS,), "yaml"),
        Reader("answers", _answers, (b"licence: apache-2.0\nintended_use: research\n",), "yaml"),
        Reader("head of a card", _card, (b"---\nlicense: apache-2.0\ntags: [audio]\n---\n# title\n",)),
    ),
}  # fmt: skip


def fault_of(reader: Reader, folder: Path, content: bytes) -> str | None:
    """The fault of a reader on a file: any error but an `InputError` of one line; None if there is no fault.

    A reader that hangs or takes all memory must be stopped from outside.
    """
    try:
        reader.read(folder, content)
    except InputError as error:
        return f"several lines: {str(error)[:300]!r}" if "\n" in str(error) else None
    except Exception as error:
        frames, place = error.__traceback__, "?"
        while frames is not None:
            if "laennec" in frames.tb_frame.f_code.co_filename:
                place = f"{Path(frames.tb_frame.f_code.co_filename).name}:{frames.tb_lineno}"
            frames = frames.tb_next
        return f"{type(error).__name__} at {place}: {str(error)[:200]!r}"
    return None
