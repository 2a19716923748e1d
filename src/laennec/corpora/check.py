"""Looking over a corpus on disk before anything is learnt from it.

Decisions: the check decodes every recording and never stops at the first bad one; it lists what it finds and leaves
judging to the reader. What loading would refuse is in the list too, so that a corpus without problems loads; so is a
cycle that does not fill one frame of a front end at its usual settings, which training would refuse.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laennec.audio.cycles import LABELS, label_of
from laennec.audio.recording import DecodeError, read_recording
from laennec.corpora import icbhi2017
from laennec.corpora.base import (
    Corpus,
    Event,
    Manifest,
    RecordingEntry,
    corpus_fingerprint,
    manifest_of,
)
from laennec.corpora.duplicates import same_sounds
from laennec.corpora.exported import is_address
from laennec.corpora.files import hash_files, named, sha256_of
from laennec.corpora.load import CORPORA, locate_corpus
from laennec.errors import InputError
from laennec.files import cache_root

__all__ = [
    "AuditReport",
    "Manifest",
    "cache_root",
    "check_corpus",
    "corpus_fingerprint",
    "hash_files",
    "manifest_of",
    "sha256_of",
]


@dataclass
class AuditReport:
    """What a corpus on disk consists of, and what is wrong with it.

    Attributes:
        corpus: Its name.
        data_dir: Where it is.
        corpus_fingerprint: SHA-256 over its recordings and annotations; None where a file cannot be read.
        recordings: Number of recordings.
        patients: Number of patients.
        cycles: Number of cycles (of events for SPRSound).
        counts: Name of a property -> value -> how many: `label` and `event` count cycles, `device`, `chest_location`,
            `acquisition_mode`, `part` and `sampling_rate` count recordings.
        problems: One line each, naming the file.
        notes: What to know although it is no problem.
    """

    corpus: str
    data_dir: str
    corpus_fingerprint: str | None = None
    recordings: int = 0
    patients: int = 0
    cycles: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people, some lines."""
        lines = [
            f"{self.corpus} in {self.data_dir}",
            f"fingerprint {self.corpus_fingerprint or 'unknown'}",
            f"{self.recordings} recordings, {self.patients} patients, {self.cycles} cycles",
        ]
        for name, values in self.counts.items():
            lines.append(f"{name}: " + ", ".join(f"{value} {count}" for value, count in values.items()))
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"{len(self.problems)} problems" if self.problems else "no problems")
        return "\n".join(lines)


def check_corpus(
    name: str,
    data_dir: str | Path | None = None,
    *,
    tables_dir: str | Path | None = None,
    allow_missing: bool = False,
    level: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> AuditReport:
    """Count, hash and decode everything in a corpus, and list all that is wrong.

    Args:
        name: The corpus, as for `laennec.corpora.load.load_corpus`.
        data_dir: Its folder or archive.
        tables_dir: Where the tables are, if not beside the recordings.
        allow_missing: Do not count missing and unpaired recordings as problems.
        level: As for `load_corpus`; of SPRSound both are checked.
        cache_dir: Root of the caches.
        progress: Called with (recordings done, recordings in all).
        **options: As for `load_corpus`.

    Returns:
        The report; its `problems` are empty for a sound corpus.

    Raises:
        InputError: There is no such corpus or folder, so that there is nothing to report on.
    """
    local = data_dir is not None and name != "hub" and not is_address(data_dir)
    if data_dir is not None and local and name in CORPORA and not Path(data_dir).expanduser().exists():
        raise InputError(f"{data_dir}: no such folder or archive; check --data-dir")
    kind, folder, settings = locate_corpus(name, data_dir, tables_dir, allow_missing, level, cache_dir, **options)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    report = AuditReport(name, str(folder))
    try:
        corpus = kind.scan(folder, cache_dir, kind.BUILDER_CONFIG_CLASS(**settings))
    except InputError as error:
        report.problems.append(str(error))
        return report
    report.problems += corpus.problems
    report.notes += corpus.notes
    report.recordings = len(corpus.entries)
    report.patients = len({entry.patient_id for entry in corpus.entries if entry.patient_id is not None})
    _listen(corpus, report, progress)
    _count_recordings(corpus, report)
    _hash(corpus, report, cache_dir)
    if name == icbhi2017.NAME:
        _compare_with_published(corpus, folder, tables_dir, allow_missing, report)
    return report


def _listen(corpus: Corpus, report: AuditReport, progress: Callable[[int, int], None] | None) -> None:
    """Decode each recording, read its annotation and count what is in it."""
    labels: Counter[str] = Counter()
    events: Counter[str] = Counter()
    rates: Counter[str] = Counter()
    for done, entry in enumerate(corpus.entries, start=1):
        duration_s = None
        if entry.audio_path is not None:
            try:
                recording = read_recording(entry.audio_path)
                duration_s = recording.duration_s
                rates[str(recording.source_sampling_rate)] += 1
            except DecodeError as error:
                report.problems.append(str(error))
        problems = corpus.check_events(entry, duration_s)
        report.problems += [str(problem) for problem in problems]
        found = _events(corpus, entry)
        report.problems += _too_short(entry, found, duration_s)
        for event in found:
            report.cycles += 1
            known = event.crackle is not None and event.wheeze is not None
            labels[label_of(event.crackle, event.wheeze) if known else "unknown"] += 1  # type: ignore[arg-type]
            events.update(event.names or ())
        if progress is not None:
            progress(done, len(corpus.entries))
    if corpus.class_column == "label":
        report.counts["label"] = {
            label: labels[label] for label in (*LABELS, "unknown") if label in LABELS or labels[label]
        }
    if events:
        title = "event" if corpus.class_column == "label" else corpus.class_column
        report.counts[title] = dict(events.most_common())
    if rates:
        report.counts["sampling_rate"] = dict(rates.most_common())


def _events(corpus: Corpus, entry: RecordingEntry) -> list[Any]:
    """The events of a recording, or none where its annotation is a problem already listed."""
    if entry.whole and entry.audio_path is None:
        return []
    try:
        return corpus.read_events(entry, float("inf") if entry.whole else None)
    except InputError:
        return []


def _too_short(entry: RecordingEntry, events: Sequence[Event], duration_s: float | None) -> list[str]:
    """The events that a front end which keeps the length of a cycle makes no frame of."""
    from laennec.audio.features import PRESETS, preset_length  # transformers is slow to import

    # one that stacks frames wants more than all others, and says so itself where it is used
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
            problems.append(
                f"{entry.annotation_path}: the cycle of {entry.recording_id} at {event.start_s:g} to {event.end_s:g} s "
                f"is shorter than one frame ({window_ms:g} ms); correct the annotation or delete the line"
            )
    return problems


def _count_recordings(corpus: Corpus, report: AuditReport) -> None:
    for name in ("device", "chest_location", "acquisition_mode", "part"):
        values = Counter(str(getattr(entry, name) or "unknown") for entry in corpus.entries)
        if set(values) - {"unknown"}:
            report.counts[name] = dict(values.most_common())


def _hash(corpus: Corpus, report: AuditReport, cache_dir: str | Path | None) -> None:
    """Fingerprint, and sounds that are there under two names."""
    sounds = [e.audio_path for e in corpus.entries if e.audio_path is not None and os.access(e.audio_path, os.R_OK)]
    try:
        hashes = hash_files(sounds, cache_dir)
        report.corpus_fingerprint = corpus_fingerprint(corpus, cache_dir)
    except InputError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
        return
    for group in same_sounds(hashes, cache_dir):
        paths = ", ".join(str(path) for path in group)
        report.problems.append(f"the same sound under {len(group)} names: {paths}; keep one of them")


def _compare_with_published(
    corpus: Corpus, folder: Path, tables_dir: str | Path | None, allow_missing: bool, report: AuditReport
) -> None:
    """Which of the 920 recordings are missing, and which are none of them."""
    try:
        path = icbhi2017.find_in([corpus.root, folder.expanduser().absolute()], "split", tables_dir)
        split = icbhi2017.read_official_split(path) if path else None
    except InputError as error:
        report.problems.append(str(error))
        return
    if split is None:
        report.notes.append(f"{corpus.root}: no published split table found, so missing recordings cannot be named")
        return
    present = {entry.recording_id for entry in corpus.entries}
    missing, extra = sorted(set(split) - present), sorted(present - set(split))
    if missing:
        line = f"{corpus.root}: {len(missing)} of {len(split)} recordings missing: {named(missing, 20)}"
        (report.notes if allow_missing else report.problems).append(line)
    if extra:
        report.problems.append(f"{corpus.root}: not in the published split: {named(extra, 20)}; remove or rename them")
