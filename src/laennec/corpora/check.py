"""Checking a corpus on disk before training on it.

Decisions: the check decodes every recording and does not stop at the first bad one. It lists what loading would refuse,
so that a corpus without problems loads, and cycles that are too short for one frame of a front end at its default
settings, which training would refuse.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laennec.audio.cycles import LABELS
from laennec.audio.recording import DecodeError
from laennec.audio.streaming import open_recording
from laennec.cache import hash_files
from laennec.corpora.base import Corpus
from laennec.corpora.copies import find_duplicates
from laennec.corpora.load import locate_corpus
from laennec.corpora.recordings import AnnotatedRecording, Event
from laennec.errors import InputError, one_line


@dataclass
class AuditReport:
    """What a corpus on disk consists of, and what is wrong with it."""

    corpus: str  # its name
    data_dir: str  # where it is
    # SHA-256 over its recordings and annotations; None where a file cannot be read
    corpus_fingerprint: str | None = None
    recordings: int = 0  # number of recordings
    patients: int = 0  # number of patients
    cycles: int = 0  # number of cycles (of events for SPRSound)
    # name of a property -> value -> how many: `label` and `event` count cycles, `device`, `chest_location`,
    # `acquisition_mode`, `part` and `sampling_rate` count recordings
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # one line each, naming the file
    notes: list[str] = field(default_factory=list)  # remarks that are no problems

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [
            f"{self.corpus} in {self.data_dir}",
            f"fingerprint {self.corpus_fingerprint or 'unknown'}",
            f"{self.recordings} recordings, {self.patients} patients, {self.cycles} cycles",
        ]
        for name, values in self.counts.items():
            lines.append(f"{name}: " + ", ".join(f"{value} ({count})" for value, count in values.items()))
        lines += [one_line(f"note: {note}") for note in self.notes]
        lines += [one_line(f"problem: {problem}") for problem in self.problems]
        count = len(self.problems)
        lines.append(f"{count} problem{'s' if count > 1 else ''}" if count else "no problems")
        return lines


def check_corpus(
    corpus: str | type[Corpus],
    data_dir: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> AuditReport:
    """Count, hash and decode everything in a corpus, and list all problems."""
    kind, folder, options = locate_corpus(corpus, data_dir, cache_dir, **options)
    if kind.can_be_exported and not Path(folder).expanduser().exists():
        raise InputError(f"{folder}: no such folder or archive; check data_dir (--data-dir)")
    report = AuditReport(kind.name, str(folder))
    try:
        found = kind(folder, cache_dir, **options)
        found.check_complete()
    except InputError as error:
        report.problems.append(str(error))
        return report
    report.problems += found.problems
    report.notes += found.notes
    report.recordings = len(found.recordings)
    report.patients = len({r.patient_id for r in found.recordings if r.patient_id is not None})
    _decode(found, report, progress)
    for name in ("device", "chest_location", "acquisition_mode", "split"):
        values = Counter(str(getattr(recording, name) or "unknown") for recording in found.recordings)
        if set(values) - {"unknown"}:
            report.counts["part" if name == "split" else name] = dict(values.most_common())
    _hash(found, report)
    return report


def _decode(corpus: Corpus, report: AuditReport, progress: Callable[[int, int], None] | None) -> None:
    """Decode each recording, read its annotation and count what is in it."""
    labels: Counter[str] = Counter()
    events: Counter[str] = Counter()
    rates: Counter[str] = Counter()
    classes = corpus.features["label"].names
    own = tuple(classes) != LABELS
    for done, recording in enumerate(corpus.recordings, start=1):
        duration_s = None
        if recording.audio_path is not None:
            try:
                with open_recording(recording.audio_path) as stream:
                    for _ in stream.blocks():
                        pass
                    duration_s = stream.duration_s
                rates[f"{stream.source_sampling_rate} Hz"] += 1
            except DecodeError as error:
                report.problems.append(str(error))
        problems = corpus.check_events(recording, duration_s)
        report.problems += [str(problem) for problem in problems]
        found = _events(corpus, recording)
        report.problems += _too_short(recording, found, duration_s)
        for event in found:
            report.cycles += 1
            label = "+".join(event.names) if own and event.names else event.label
            labels[label or "unknown"] += 1
            events.update(event.names or ())
        if progress is not None:
            progress(done, len(corpus.recordings))
    if corpus.class_column == "label":
        report.counts["label"] = {
            label: labels[label] for label in (*classes, "unknown") if label in classes or labels[label]
        }
    if events:
        title = "event" if corpus.class_column == "label" else corpus.class_column
        report.counts[title] = dict(events.most_common())
    if rates:
        report.counts["sampling_rate"] = dict(rates.most_common())


def _events(corpus: Corpus, recording: AnnotatedRecording) -> Sequence[Event]:
    """The events of a recording, or none where its annotation is a problem already listed."""
    if recording.whole and recording.audio_path is None:
        return []
    try:
        return corpus.read_events(recording, float("inf") if recording.whole else None)
    except InputError:
        return []


def _too_short(recording: AnnotatedRecording, events: Sequence[Event], duration_s: float | None) -> list[str]:
    """A problem for each event shorter than one frame of a front end that keeps natural lengths."""
    from laennec.audio.features import PRESETS, preset_length  # transformers is slow to import

    # front ends that stack frames need longer cycles, and raise their own error
    fronts = [f for name, f in PRESETS.items() if preset_length(name) == "natural" and f.stack_frames == 1]
    problems = []
    for event in events:
        end_s = event.end_s if duration_s is None else min(event.end_s, duration_s)
        if math.isinf(end_s):
            continue
        # the samples that cutting gives at each front end's rate
        short = [f for f in fronts if f.frames(int(end_s * f.sampling_rate) - int(event.start_s * f.sampling_rate)) < 1]
        if short:
            window_ms = max(1000 * front.window_samples / front.sampling_rate for front in short)
            where = recording.annotation_path or recording.audio_path
            problems.append(
                f"{where}: the cycle of {recording.recording_id} at {event.start_s:g} to {event.end_s:g} s "
                f"is shorter than one frame ({window_ms:g} ms); correct the annotation or delete the line"
            )
    return problems


def _hash(corpus: Corpus, report: AuditReport) -> None:
    sounds = [r.audio_path for r in corpus.recordings if r.audio_path is not None and os.access(r.audio_path, os.R_OK)]
    try:
        hashes = hash_files(sounds, corpus.cache_dir)
        report.corpus_fingerprint = corpus.manifest.corpus_fingerprint
    except InputError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
        return
    for group in find_duplicates(hashes, corpus.cache_dir):
        paths = ", ".join(str(path) for path in group)
        report.problems.append(f"the same sound under {len(group)} names: {paths}; keep one of them")
