"""Many recordings -> timelines in a folder.

Decisions: a recording that cannot be read is listed and skipped, the others are answered. A batch that was stopped
goes on where it stopped, and ends with the files of one that was not. An output folder belongs to one model and one set
of settings; its tables of all recordings are made once, at the end.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from laennec import __version__
from laennec.audio.recording import Waveform
from laennec.audio.streaming import RecordingStream
from laennec.encoders import encoder_digest
from laennec.errors import InputError
from laennec.files import explain_write_errors, lock_or_refuse, remove_temporary_files
from laennec.inference.journal import JOURNAL, Journal, key_of, open_journal
from laennec.inference.outputs import (
    DEFAULT_FORMATS,
    FORMATS,
    SUFFIXES,
    WRITERS,
    Timeline,
    write_csv,
    write_failures,
)
from laennec.inference.parameters import PARAMETERS, Settings, write_parameters
from laennec.inference.predictor import Answer, Prediction, Predictor
from laennec.inference.spans import annotation_of, refuse_one_for_many
from laennec.inference.timeline_picture import Spectrogram, write_picture
from laennec.memory import in_one_line

__all__ = ["FORMATS", "Answer", "Predicted", "Prediction", "Predictor", "find_recordings", "predict"]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".rf64", ".caf")
PREDICTIONS, FAILED = "predictions.csv", "failed.csv"
_LONGEST_NAME = 200  # bytes; file systems allow 255, suffixes and temporary names included


@dataclass
class Predicted:
    """What a call of `predict` did.

    Attributes:
        files: The files of this call's recordings, and the tables.
        answered: The recordings that have a timeline now.
        failed: The others, with their reasons.
        resumed: How many of the answered ones an earlier call had answered.
    """

    files: list[Path] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0


def find_recordings(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as given, folders searched for audio, each once.

    Raises:
        InputError: There is no recording at all. A file that does not exist is found out when it is read.
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
            f"no recordings in {', '.join(map(str, inputs))}; give audio files or a folder that holds some"
        )
    return list(found)


def model_fingerprint(predictor: Predictor) -> str:
    """sha256 of the weights and the front end that answer; the same for a run and for its exports."""
    model, extractor = predictor.model, predictor.extractor
    weights = [encoder_digest(part) for part in (model.encoder, model.head)]  # type: ignore[arg-type]
    made_of = [*weights, extractor.fingerprint(), extractor.recording_filter, model.config.pooling]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


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
) -> Predicted:
    """Answer recordings and write their timelines; go on where an earlier call of the same was stopped.

    Args:
        predictor: Model and spans.
        inputs: Audio files and folders.
        out: Folder for the files of each recording (`<recording>.json`, `.labels.txt`, `.selections.txt`, `.png`), for
            the tables of all (`predictions.csv`, `failed.csv`), for `parameters.yaml` and the journal.
        formats: Any of "json", "csv", "audacity", "raven", "picture".
        annotation: The annotation file of the one recording, or a folder with one for each (`<recording>.txt` or
            `.json`); None: windows, or the predictor's segmentation.
        progress: Called with (recordings done, with the part of the one at work; recordings in all).
        overwrite: Replace the answers of another model or other settings that `out` holds.
        settings: What was chosen, for `parameters.yaml`; None takes it from the predictor.
        source: Where the model comes from, likewise.

    Raises:
        InputError: Unknown format, nothing to predict, one annotation file for several recordings, `out` cannot be
            written to, or holds the answers of another model or other settings.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        said = f"unknown format {unknown[0]!r}" if unknown else "no format"
        raise InputError(f"{said}; it can be {', '.join(FORMATS)} (--format)")
    recordings = find_recordings(inputs)
    refuse_one_for_many(recordings, annotation)
    batch = _Batch(predictor, Path(out), tuple(dict.fromkeys(formats)), annotation, _output_names(recordings))
    fingerprint = model_fingerprint(predictor)
    try:
        with explain_write_errors(batch.out):
            batch.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # what that has no words for
        raise InputError(f"{out}: this folder cannot be made ({error.strerror}); choose another --out") from error
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
                "decision": predictor.decision,
            },
            {key: identity[key] for key in ("spans", "smoothing")},
        )
        return batch.run(recordings, journal, progress)


def _settings(predictor: Predictor, annotation: str | Path | None) -> Settings:
    """What somebody who made a predictor by hand has chosen."""
    segmentation = predictor.segmentation
    return Settings(
        predictor.window_s,
        predictor.hop_s,
        None if annotation is None else str(annotation),
        None if segmentation is None or annotation is not None else asdict(segmentation),
        predictor.smoothing or "none",
        predictor.neighbours,
        predictor.given_thresholds or None,
    )


class _Batch:
    """The recordings of one call on the way to their files."""

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

    def run(
        self, recordings: Sequence[Path], journal: Journal, progress: Callable[[float, int], None] | None
    ) -> Predicted:
        """Answer what an earlier call has not, then write the tables of all."""
        keys = {path: key for path in recordings if (key := self._answered_before(path, journal)) is not None}
        result = Predicted(resumed=len(keys))
        done = len(keys)
        if progress:
            progress(done, len(recordings))
        for path in recordings:
            if path not in keys:
                told = None if progress is None else partial(_tell, progress, done, len(recordings))
                try:
                    keys[path] = self._answer(path, journal, told)
                except _Failed as failure:
                    result.failed.append((str(path), failure.reason))
                done += 1
                if progress:
                    progress(done, len(recordings))
            if path in keys:
                result.answered.append(str(path))
                result.files += self._files(path)
        self._write_tables(result, (journal.read(key) for path in recordings if (key := keys.get(path))))
        return result

    def clean_up(self) -> None:
        """Remove what a kill left of the files of this call."""
        own = {f"{name}{suffix}" for name in self.names.values() for suffix in SUFFIXES.values()}
        remove_temporary_files(self.out, own | {PREDICTIONS, FAILED, PARAMETERS})

    def forget(self, journal: Journal) -> None:
        """Remove the files of the answers that are given up, so that none of them lies among the new ones."""
        for name in journal.owners:
            for suffix in SUFFIXES.values():
                (self.out / f"{name}{suffix}").unlink(missing_ok=True)
        for table in (PREDICTIONS, FAILED):
            (self.out / table).unlink(missing_ok=True)

    def _answered_before(self, path: Path, journal: Journal) -> str | None:
        """The key of a recording that the journal has, its files made whole; None for one that is to be answered."""
        try:
            key = key_of(path, annotation_of(path, self.annotation))
        except InputError:
            return None
        if key is None or key not in journal:
            return None
        name = self.names[path]
        # another recording of this name may have been answered into this folder since
        missing = [f for f in self._files(path) if journal.owners.get(name) != key or not f.exists()]
        if any(file.suffix == SUFFIXES["picture"] for file in missing):
            return None  # pictures show the sound, which the journal has not
        if missing:
            self._write(path, journal.read(key))
        return key

    def _answer(self, path: Path, journal: Journal, told: Callable[[float], None] | None) -> str:
        """Answer a recording, write its files and take it down; the key of its line."""
        spectrogram = Spectrogram() if "picture" in self.formats else None

        def listen(stream: RecordingStream, block: Waveform) -> None:
            if spectrogram is not None:
                spectrogram.add(stream, block)
            if told is not None:
                told(stream.fraction)

        try:
            annotation = annotation_of(path, self.annotation)
            if annotation is not None and annotation.absolute() in {f.absolute() for f in self._files(path)}:
                raise InputError(f"{annotation}: the answers would overwrite this annotation; choose another --out")
            key = key_of(path, annotation)
            with in_one_line(str(path), "cut the recording, or use a machine with more memory"):
                timeline = self.predictor(path, annotation, listen).to_dict()
        except InputError as error:
            said = str(error)
            raise _Failed(said if str(path) in said else f"{path}: {said}") from error
        self._write(path, timeline)
        if spectrogram is not None:
            write_picture(self.out / f"{self.names[path]}{SUFFIXES['picture']}", timeline, spectrogram)
        assert key is not None, "a recording that could be read has a size"
        journal.add(key, self.names[path], timeline)
        return key

    def _files(self, path: Path) -> list[Path]:
        return [self.out / f"{self.names[path]}{SUFFIXES[f]}" for f in self.formats if f in SUFFIXES]

    def _write(self, path: Path, timeline: Timeline) -> None:
        """Write a recording's files but its picture."""
        for format in self.formats:
            if format in WRITERS:
                WRITERS[format](self.out / f"{self.names[path]}{SUFFIXES[format]}", timeline)

    def _write_tables(self, result: Predicted, timelines: Iterator[Timeline]) -> None:
        if "csv" in self.formats and result.answered:
            result.files.append(write_csv(self.out / PREDICTIONS, timelines))
        if result.failed:
            result.files.append(write_failures(self.out / FAILED, result.failed))
        else:
            (self.out / FAILED).unlink(missing_ok=True)


class _Failed(Exception):  # noqa: N818 - an outcome, not an error
    """A recording that cannot be answered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _tell(progress: Callable[[float, int], None], done: int, total: int, part: float) -> None:
    progress(done + min(part, 0.99), total)


def _output_names(recordings: Sequence[Path]) -> dict[Path, str]:
    """The stem of each recording; its way from the common folder where two share a stem, a number where that fails."""
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
    """The end of a name that would be too long for a file system with what is added to it."""
    return os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:]) if len(os.fsencode(name)) > _LONGEST_NAME else name
