"""Predict many recordings and write the results to a folder.

Decisions: those of `laennec.inference.batch.recordings` hold here. The files of a recording and the tables over all
recordings are made from the timelines in the journal.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from laennec import __version__
from laennec.audio.recording import Waveform
from laennec.audio.spectrogram import Spectrogram
from laennec.audio.streaming import RecordingStream
from laennec.errors import InputError
from laennec.inference.batch.jobs import Report, Worker
from laennec.inference.batch.journal import Journal
from laennec.inference.batch.parameters import PARAMETERS, Settings, write_parameters
from laennec.inference.batch.recordings import Batch, BatchResult, annotation_of, check_formats, find_recordings
from laennec.inference.outputs import (
    DEFAULT_FORMATS,
    FORMATS,
    SUFFIXES,
    WRITERS,
    Timeline,
    write_csv,
    write_parquet,
    write_recordings,
)
from laennec.inference.predictor import Prediction, Predictor, SpanPrediction
from laennec.processes import check_jobs

__all__ = ["FORMATS", "BatchResult", "Prediction", "Predictor", "SpanPrediction", "find_recordings", "predict"]

PREDICTIONS, RECORDINGS = "laennec.predictions.csv", "laennec.recordings.csv"
PREDICTIONS_PARQUET = "laennec.predictions.parquet"


def predict(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    annotation: str | Path | None = None,
    progress: Callable[[float, int], None] | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    settings: Settings | None = None,
    source: str | Path | None = None,
) -> BatchResult:
    """Predict recordings and write the results; resume where an earlier call with the same settings stopped.

    The ranks of a launch (`accelerate launch`, RANK and WORLD_SIZE) share the recordings and the folder.

    Args:
        predictor: The model and the choice of spans.
        inputs: Audio files and folders.
        out: Folder for the files of each recording (`<recording>.laennec.json`, `.laennec.labels.txt`,
            `.laennec.selections.txt`, `.laennec.png`), the tables over all recordings (`laennec.predictions.csv` and
            `laennec.predictions.parquet` with a row per span, `laennec.recordings.csv` with a row per recording,
            `laennec.failed.csv`), `laennec.parameters.yaml` and the journal.
        formats: Any of "json", "csv", "parquet", "audacity", "raven", "picture".
        annotation: The annotation file of the one recording, or a folder with one for each (`<recording>.txt` or
            `.json`); None: windows, or the predictor's segmentation.
        progress: Called with (recordings done, including the fraction of the current one; total of recordings).
        overwrite: Replace predictions of another model or with other settings in `out`, and files with the names of
            results that no prediction wrote there.
        jobs: Number of processes; results do not depend on it.
        settings: The chosen settings, for `laennec.parameters.yaml`; None takes them from the predictor.
        source: Folder or Hub id of the model, for `laennec.parameters.yaml`.

    Returns:
        `files`, written by this call; `predicted`, recordings with results; `failed`, the others with reasons.

    Raises:
        InputError: Unknown format, no recordings, one annotation file for several recordings, or `out` cannot be
            written to, contains predictions of another model or with other settings, or the annotation or another
            file that would be replaced.
    """
    check_formats(formats, FORMATS)
    batch = _Predictions(Path(out), find_recordings(inputs), formats, annotation)
    if annotation is not None and batch.may_write(Path(annotation)):
        raise InputError(f"{annotation}: the output would overwrite this annotation; choose another --out")
    identity = {"laennec": __version__, "model": predictor.fingerprint(), **predictor.identity(annotation is not None)}
    batch.predictor, batch.identity = predictor, identity
    batch.settings = settings or _settings(predictor, annotation)
    batch.source = None if source is None else str(source)
    return batch.run(identity, overwrite=overwrite, progress=progress, jobs=check_jobs(jobs))


def _settings(predictor: Predictor, annotation: str | Path | None) -> Settings:
    """The settings of a predictor that was built in Python."""
    segmentation = predictor.segmentation
    return Settings(
        window_s=None if predictor.whole else predictor.window_s,
        hop_s=None if predictor.whole else predictor.hop_s,
        annotation=None if annotation is None else str(annotation),
        segment=None if segmentation is None or annotation is not None else asdict(segmentation),
        smoothing="none" if predictor.smoothing == 0 else predictor.smoothing,
        smoothing_neighbours=predictor.neighbours,
        thresholds=predictor.given_thresholds or None,
    )


class _Predictions(Batch):
    """The recordings of one call of `predict` and their files."""

    suffixes = SUFFIXES
    tables = (PREDICTIONS, RECORDINGS, PREDICTIONS_PARQUET, PARAMETERS)
    predictor: Predictor
    settings: Settings
    source: str | None
    identity: dict[str, Any]

    def begin(self) -> None:
        if not (self.out / PARAMETERS).exists():
            self._write_parameters()

    def _write_parameters(self) -> None:
        self.settings.format, identity = list(self.formats), self.identity
        write_parameters(
            self.out / PARAMETERS,
            self.settings,
            {
                "source": self.source,
                "fingerprint": identity["model"],
                "labels": self.predictor.model.config.label_names,
                "decision": identity["decision"],
            },
            {key: identity[key] for key in ("spans", "smoothing")},
        )

    def worker(self) -> Worker:
        return partial(_predicted, self.predictor, "picture" in self.formats)

    def write(self, path: Path, entry: Timeline, more: Spectrogram | None) -> None:
        self._write(path, set(self.files(path)) - self.kept, entry, more)

    def _write(self, path: Path, wanted: Collection[Path], entry: Timeline, more: Spectrogram | None) -> None:
        # a run and its exports have one fingerprint, and write the same files
        named = {"recording": entry["recording"], "model": {"fingerprint": self.identity["model"]}, **entry}
        for format, write in WRITERS.items():
            file = self.out / f"{self.names[path]}{SUFFIXES[format]}"
            if format in self.formats and file in wanted:
                write(file, named)
        if more is not None:
            from laennec.inference.picture import write_picture

            write_picture(self.out / f"{self.names[path]}{SUFFIXES['picture']}", entry, more)

    def restore(self, path: Path, missing: Sequence[Path], timeline: Timeline) -> Timeline | None:
        if any(file.name.endswith(SUFFIXES["picture"]) for file in missing):
            self.kept.update(set(self.files(path)).difference(missing))
            return None  # a picture needs the sound, which is not in the journal
        places = self.predictor.places(annotation_of(path, self.annotation))
        timeline |= {"recording": str(path), "spans": places}
        self._write(path, missing, timeline, None)
        return timeline

    def write_tables(self, journal: Journal, recordings: Sequence[Path]) -> list[Path]:
        def timelines() -> Iterator[Timeline]:
            return (journal.read(self.names[path]) for path in recordings)

        self._write_parameters()
        made = []
        if "csv" in self.formats:
            made += [write_csv(self.out / PREDICTIONS, timelines())]
            made += [write_recordings(self.out / RECORDINGS, timelines())]
        if "parquet" in self.formats:
            provenance = {**self.identity, "source": self.source}
            made += [write_parquet(self.out / PREDICTIONS_PARQUET, timelines(), provenance)]
        return made


def _predicted(
    predictor: Predictor, picture: bool, path: Path, annotation: Path | None, report: Report
) -> tuple[Timeline, Spectrogram | None]:
    """The timeline of a recording, and its spectrogram for a picture."""
    spectrogram = Spectrogram() if picture else None

    def listen(stream: RecordingStream, block: Waveform) -> None:
        if spectrogram is not None:
            spectrogram.add(stream, block)
        report(stream.fraction)

    return predictor(path, annotation, listen).to_dict(), spectrogram
