"""Predict many recordings and write the results to a folder.

Decisions: a recording that cannot be read is listed in failed.csv and the others are predicted. An interrupted batch
resumes where it stopped and ends with the same files as an uninterrupted one. An output folder belongs to one model and
one set of settings. Tables over all recordings are written once, at the end.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laennec import __version__
from laennec.audio.recording import AUDIO_SUFFIXES, Waveform
from laennec.audio.streaming import RecordingStream
from laennec.errors import InputError
from laennec.files import explain_write_errors, lock_or_refuse, remove_temporary_files
from laennec.inference.journal import JOURNAL, Journal, key_of, open_journal
from laennec.inference.outputs import (
    DEFAULT_FORMATS,
    FORMATS,
    LABELS_SUFFIX,
    SELECTIONS_SUFFIX,
    SUFFIXES,
    WRITERS,
    Timeline,
    write_csv,
    write_failures,
    write_recordings,
)
from laennec.inference.parameters import PARAMETERS, Settings, write_parameters
from laennec.inference.predictor import Prediction, Predictor, SpanPrediction
from laennec.memory import in_one_line

if TYPE_CHECKING:
    from laennec.inference.picture import Spectrogram

__all__ = ["FORMATS", "BatchResult", "Prediction", "Predictor", "SpanPrediction", "find_recordings", "predict"]

ANNOTATION_SUFFIXES = (".txt", ".json", LABELS_SUFFIX, SELECTIONS_SUFFIX, ".Table.1.selections.txt")
PREDICTIONS, RECORDINGS, FAILED = "predictions.csv", "recordings.csv", "failed.csv"
_LONGEST_NAME = 200  # bytes; file systems allow 255, suffixes and temporary names included


@dataclass
class BatchResult:
    """The outcome of a call of `predict`.

    Attributes:
        files: The files of this call's recordings, and the tables.
        predicted: The recordings that have predictions now.
        failed: The other recordings, each with its reason.
        resumed: How many of `predicted` an earlier call had already finished.
    """

    files: list[Path] = field(default_factory=list)
    predicted: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0


def find_recordings(inputs: Sequence[str | Path]) -> list[Path]:
    """List the given files and the audio files in the given folders, each once.

    Raises:
        InputError: There is no recording. A file that does not exist is reported when it is read.
    """
    found: dict[Path, None] = {}
    for item in map(Path, inputs):
        if item.is_dir():
            found.update(
                (p, None)
                for p in sorted(item.rglob("*"))
                if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
            )
        else:
            found[item] = None
    if not found:
        raise InputError(
            f"no recordings in {', '.join(map(str, inputs))}; give audio files or a folder that contains some"
        )
    return list(found)


def predict(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    annotation: str | Path | None = None,
    progress: Callable[[float, int], None] | None = None,
    overwrite: bool = False,
    settings: Settings | None = None,
    source: str | Path | None = None,
) -> BatchResult:
    """Predict recordings and write the results; resume where an earlier call with the same settings stopped.

    Args:
        predictor: The model and the choice of spans.
        inputs: Audio files and folders.
        out: Folder for the files of each recording (`<recording>.json`, `.labels.txt`, `.selections.txt`, `.png`), the
            tables over all recordings (`predictions.csv` with a row per span, `recordings.csv` with a row per
            recording, `failed.csv`), `parameters.yaml` and the journal.
        formats: Any of "json", "csv", "audacity", "raven", "picture".
        annotation: The annotation file of the one recording, or a folder with one for each (`<recording>.txt` or
            `.json`); None: windows, or the predictor's segmentation.
        progress: Called with (recordings done, including the fraction of the current one; total of recordings).
        overwrite: Replace predictions of another model or with other settings in `out`.
        settings: The chosen settings, for `parameters.yaml`; None takes them from the predictor.
        source: Folder or Hub id of the model, for `parameters.yaml`.

    Raises:
        InputError: Unknown format, no recordings, one annotation file for several recordings, or `out` cannot be
            written to or contains predictions of another model or with other settings.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        problem = f"unknown format {unknown[0]!r}" if unknown else "no format"
        raise InputError(f"--format: {problem}; choose from {', '.join(FORMATS)}")
    recordings = find_recordings(inputs)
    if annotation is not None and len(recordings) > 1 and not Path(annotation).is_dir():
        raise InputError(f"{annotation}: one annotation for {len(recordings)} recordings; give a folder of annotations")
    batch = _Batch(predictor, Path(out), tuple(dict.fromkeys(formats)), annotation, _output_names(recordings))
    fingerprint = predictor.fingerprint()
    try:
        with explain_write_errors(batch.out):
            batch.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: this folder cannot be created ({error.strerror}); choose another --out") from error
    identity = {"laennec": __version__, "model": fingerprint, **predictor.identity(annotation is not None)}
    with lock_or_refuse(batch.out / JOURNAL), open_journal(batch.out, identity, overwrite, batch.forget) as journal:
        batch.clean_up()
        chosen = settings or _settings(predictor, annotation)
        chosen.format = list(batch.formats)
        write_parameters(
            batch.out / PARAMETERS,
            chosen,
            {
                "source": None if source is None else str(source),
                "fingerprint": fingerprint,
                "labels": predictor.model.config.label_names,
                "decision": identity["decision"],
            },
            {key: identity[key] for key in ("spans", "smoothing")},
        )
        return batch.run(recordings, journal, progress or (lambda done, total: None))


def _settings(predictor: Predictor, annotation: str | Path | None) -> Settings:
    """The settings of a predictor that was built in Python."""
    segmentation = predictor.segmentation
    return Settings(
        window_s=None if predictor.whole else predictor.window_s,
        hop_s=None if predictor.whole else predictor.hop_s,
        annotation=None if annotation is None else str(annotation),
        segment=None if segmentation is None or annotation is not None else asdict(segmentation),
        smoothing=predictor.smoothing or "none",
        smoothing_neighbours=predictor.neighbours,
        thresholds=predictor.given_thresholds or None,
    )


class _Batch:
    """The recordings of one call of `predict` and their files."""

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        formats: tuple[str, ...],
        annotation: str | Path | None,
        names: dict[Path, str],
    ) -> None:
        self.predictor, self.out, self.formats, self.annotation = predictor, out, formats, annotation
        self.names = names

    def run(self, recordings: Sequence[Path], journal: Journal, progress: Callable[[float, int], None]) -> BatchResult:
        """Predict what is not in the journal, then write the tables."""
        keys = {path: key for path in recordings if (key := self._finished_key(path, journal)) is not None}
        result = BatchResult(resumed=len(keys))
        done = len(keys)
        progress(done, len(recordings))
        for path in recordings:
            if path not in keys:
                try:
                    spectrogram = self._spectrogram()
                    report = partial(_report, progress, done, len(recordings))
                    key, timeline = self._predict(path, spectrogram, report)
                except InputError as error:
                    reason = str(error)
                    result.failed.append((str(path), reason if str(path) in reason else f"{path}: {reason}"))
                else:
                    keys[path] = key
                    self._write(path, timeline)
                    if spectrogram is not None:
                        from laennec.inference.picture import write_picture

                        write_picture(self.out / f"{self.names[path]}{SUFFIXES['picture']}", timeline, spectrogram)
                    journal.write(key=key, name=self.names[path], timeline=timeline)
                done += 1
                progress(done, len(recordings))
            if path in keys:
                result.predicted.append(str(path))
                result.files += self._files(path)
        if "csv" in self.formats and result.predicted:
            for name, write in ((PREDICTIONS, write_csv), (RECORDINGS, write_recordings)):
                timelines = (journal.read(keys[path]) for path in recordings if path in keys)
                result.files.append(write(self.out / name, timelines))
        if result.failed:
            result.files.append(write_failures(self.out / FAILED, result.failed))
        else:
            (self.out / FAILED).unlink(missing_ok=True)
        return result

    def _spectrogram(self) -> "Spectrogram | None":
        if "picture" not in self.formats:
            return None
        from laennec.inference.picture import Spectrogram  # matplotlib, a second that other formats do not need

        return Spectrogram()

    def clean_up(self) -> None:
        """Remove temporary files of this call that a killed process left behind."""
        own = {f"{name}{suffix}" for name in self.names.values() for suffix in SUFFIXES.values()}
        remove_temporary_files(self.out, own | {PREDICTIONS, RECORDINGS, FAILED, PARAMETERS})

    def forget(self, journal: Journal) -> None:
        """Remove the files of predictions that are overwritten, so that none stays among the new ones."""
        files = [f"{name}{suffix}" for name in journal.owners for suffix in SUFFIXES.values()]
        for file in (*files, PREDICTIONS, RECORDINGS, FAILED):
            (self.out / file).unlink(missing_ok=True)

    def _finished_key(self, path: Path, journal: Journal) -> str | None:
        """The key of a finished recording, after its missing files are restored; None for other recordings."""
        try:
            key = key_of(path, annotation_of(path, self.annotation))
        except InputError:
            return None
        if key is None or key not in journal:
            return None
        # another recording of this name may have been written to this folder since
        owned = journal.owners.get(self.names[path]) == key
        missing = [file for file in self._files(path) if not owned or not file.exists()]
        if any(file.suffix == SUFFIXES["picture"] for file in missing):
            return None  # a picture needs the sound, which is not in the journal
        if missing:
            self._write(path, journal.read(key))
        return key

    def _predict(
        self, path: Path, spectrogram: "Spectrogram | None", report: Callable[[float], None]
    ) -> tuple[str, Timeline]:
        """The key and the predictions of a recording; an InputError is a problem of this recording alone."""

        def listen(stream: RecordingStream, block: Waveform) -> None:
            if spectrogram is not None:
                spectrogram.add(stream, block)
            report(stream.fraction)

        annotation = annotation_of(path, self.annotation)
        if annotation is not None and annotation.absolute() in {f.absolute() for f in self._files(path)}:
            raise InputError(f"{annotation}: the output would overwrite this annotation; choose another --out")
        key = key_of(path, annotation)
        with in_one_line(str(path), "cut the recording, or use a machine with more memory"):
            timeline = self.predictor(path, annotation, listen).to_dict()
        assert key is not None, "a recording that could be read has a size"
        return key, timeline

    def _files(self, path: Path) -> list[Path]:
        return [self.out / f"{self.names[path]}{SUFFIXES[f]}" for f in self.formats if f in SUFFIXES]

    def _write(self, path: Path, timeline: Timeline) -> None:
        """Write the files of a recording except its picture."""
        for format in self.formats:
            if format in WRITERS:
                WRITERS[format](self.out / f"{self.names[path]}{SUFFIXES[format]}", timeline)


def annotation_of(recording: Path, annotation: str | Path | None) -> Path | None:
    """Find the annotation of a recording: the file itself, or the file with the recording's name in a folder.

    Raises:
        InputError: The folder has two files for the recording.
    """
    if annotation is None:
        return None
    place = Path(annotation)
    if not place.is_dir():
        return place
    found = [p for suffix in ANNOTATION_SUFFIXES if (p := place / f"{recording.stem}{suffix}").exists()]
    if len(found) > 1:
        names = " and ".join(p.name for p in found[:2])
        raise InputError(f"{recording}: two annotations in {place} ({names}); remove one, or give the file itself")
    return found[0] if found else place / f"{recording.stem}{ANNOTATION_SUFFIXES[0]}"


def _report(progress: Callable[[float, int], None], done: int, total: int, part: float) -> None:
    progress(done + min(part, 0.99), total)


def _output_names(recordings: Sequence[Path]) -> dict[Path, str]:
    """Output names: the stem; where stems are equal, the path below the common folder; otherwise with a number."""
    stems = Counter(_shortened(p.stem) for p in recordings)
    common = Path(os.path.commonpath([p.absolute().parent for p in recordings]))
    names: dict[Path, str] = {}
    taken: set[str] = set()
    # unique stems first, so that they keep their names
    for path in sorted(recordings, key=lambda p: stems[_shortened(p.stem)] > 1):
        stem = _shortened(path.stem)
        way = path.absolute().relative_to(common).parts
        name = wanted = stem if stems[stem] == 1 else _shortened("_".join(way))
        number = 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        names[path] = name
        taken.add(name)
    return names


def _shortened(name: str) -> str:
    """The end of a name that would be too long for a file system together with its suffix."""
    return os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:]) if len(os.fsencode(name)) > _LONGEST_NAME else name
