"""What the splits of a corpus share, and the refusal of what a protocol promises they do not share.

Decisions: four kinds of sharing are checked. Patients and recordings by name; simultaneous recordings (ICBHI's "mc":
one stretch of breathing at several chest locations) by patient and recording index; and identical audio under two names
by its content hash (SPRSound has one such pair, in train and test_intra). The last two are refused only where disjoint
patients are promised. Identical audio is refused if the cycles are the same too, which makes it one recording under two
names; with other cycles it is a placeholder or a mix-up of files, and is reported with the split.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laennec.corpora.protocols import Pair, Protocol, part_rank, protocol_named
from laennec.errors import InputError

_COLUMNS = (
    "cycle_id",
    "recording_id",
    "patient_id",
    "label",
    "start_s",
    "end_s",
    "chest_location",
    "acquisition_mode",
    "device",
    "audio_sha256",
    "part",
    "fold",
)
_LABELS = ("normal", "crackle", "wheeze", "both")


@dataclass(frozen=True)
class PairLeak:
    """What two parts share.

    Attributes:
        parts: The two part names.
        patients: Patients with cycles in both.
        recordings: Recordings with cycles in both.
        simultaneous: Sessions ("107_2b3") taken at several chest locations at once, some in each part.
        duplicated_audio: (recording of the first part, recording of the second), two names for identical audio.
        copies: Those of them whose cycles are the same too.
    """

    parts: Pair
    patients: tuple[str, ...]
    recordings: tuple[str, ...]
    simultaneous: tuple[str, ...]
    duplicated_audio: tuple[Pair, ...]
    copies: tuple[Pair, ...]

    @property
    def clean(self) -> bool:
        """Whether the two parts share nothing."""
        return not (self.patients or self.recordings or self.simultaneous or self.duplicated_audio)

    @property
    def summary(self) -> str:
        """One line, e.g. "train and test share 2 patients (156, 218), 3 simultaneous sessions (156_2b3, ...)"."""
        found = {
            "patient": self.patients,
            "recording": self.recordings,
            "simultaneous session": self.simultaneous,
            "duplicated recording": tuple(f"{one} = {other}" for one, other in self.duplicated_audio),
        }
        shared = [
            f"{len(names)} {word}{'s' * (len(names) > 1)} ({some(names)})" for word, names in found.items() if names
        ]
        return f"{self.parts[0]} and {self.parts[1]} share {', '.join(shared) or 'nothing'}"


@dataclass(frozen=True)
class LeakReport:
    """What every pair of parts shares.

    Attributes:
        pairs: One entry for each pair of parts, in the order train, validation, test.
        cycles_without_patient: Cycles of unknown patient, about whom nothing can be promised.
        cycles_without_hash: Cycles whose audio has no content address, so that duplicates of it are not found.
    """

    pairs: tuple[PairLeak, ...]
    cycles_without_patient: int
    cycles_without_hash: int

    @property
    def clean(self) -> bool:
        """Whether no two parts share anything."""
        return all(pair.clean for pair in self.pairs)

    @property
    def shared(self) -> list[str]:
        """One line for each pair of parts that share something."""
        return [pair.summary for pair in self.pairs if not pair.clean]

    @property
    def lines(self) -> list[str]:
        """One line for each pair of parts, and one for each thing that could not be checked."""
        lines = [pair.summary for pair in self.pairs]
        if self.cycles_without_patient:
            lines.append(f"{self.cycles_without_patient} cycles have no patient_id: not checked for shared patients")
        if self.cycles_without_hash:
            lines.append(f"{self.cycles_without_hash} cycles have no audio_sha256: not checked for duplicated audio")
        return lines

    def between(self, one: str, other: str) -> PairLeak:
        """The entry of two parts, in either order.

        Raises:
            KeyError: The split has no such pair.
        """
        for pair in self.pairs:
            if set(pair.parts) == {one, other}:
                return pair
        raise KeyError((one, other))


def leak_check(table: Any, parts: Mapping[str, Sequence[int] | np.ndarray[Any, Any]]) -> LeakReport:
    """Find patients, recordings, simultaneous recordings and duplicated audio shared between parts.

    Args:
        table: A cycle table, as for `laennec.corpora.splits.split_table`.
        parts: Row numbers of each part.

    Returns:
        One entry for each pair of parts.
    """
    frame = metadata_frame(table)
    frame["session"] = [
        f"{patient}_{recording.split('_')[1]}" if mode == "mc" and patient and recording.count("_") >= 2 else None
        for recording, patient, mode in zip(
            frame["recording_id"], frame["patient_id"], frame["acquisition_mode"], strict=True
        )
    ]
    cut = {name: frame.iloc[np.asarray(parts[name], dtype=np.int64)] for name in sorted(parts, key=part_rank)}
    pairs = tuple(_pair_leak((one, other), cut[one], cut[other]) for one, other in itertools.combinations(cut, 2))
    used = frame.iloc[np.concatenate([np.asarray(rows, dtype=np.int64) for rows in [*parts.values(), ()]])]
    return LeakReport(pairs, _nulls(used, "patient_id"), _nulls(used, "audio_sha256"))


def refuse_leaks(report: LeakReport, protocol: Protocol | str) -> None:
    """Raise where two parts share what the protocol promises they do not.

    Raises:
        InputError: Names the parts, what they share, and what to do.
    """
    protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
    for pair in report.pairs:
        promise = protocol.promise(*pair.parts)
        shared = pair.patients or pair.recordings or pair.simultaneous or pair.copies
        if (promise == "patient" and shared) or (promise == "recording" and pair.recordings):
            raise InputError(
                f"protocol {protocol.name!r} promises that no {promise} is shared, but {pair.summary}; "
                "correct the patient ids or the split table, or drop the duplicated recordings"
            )


def metadata_frame(table: Any, class_column: str = "label") -> pd.DataFrame:
    """The columns that a split looks at, one row a cycle in the table's order, as text with None where unknown.

    Args:
        table: A cycle table: `datasets.Dataset`, pandas DataFrame, or a mapping of columns. Audio is never read.
        class_column: The column that becomes `label` here, where a corpus has classes of its own.

    Raises:
        InputError: A cycle or recording without a name, or a cycle id that is there twice.
    """
    label_names: Sequence[str] = _LABELS
    if hasattr(table, "select_columns"):
        wanted = dict.fromkeys((*_COLUMNS, class_column))
        frame = table.select_columns([name for name in wanted if name in table.column_names]).to_pandas()
        label_names = getattr(table.features.get(class_column), "names", _LABELS)
    else:
        frame = pd.DataFrame(table).reset_index(drop=True)
    if class_column != "label" and class_column in frame:
        frame["label"] = frame[class_column]
    frame = frame[[name for name in _COLUMNS if name in frame]]
    for needed in ("cycle_id", "recording_id"):
        if needed not in frame or frame[needed].isna().any():
            raise InputError(f"the cycle table has rows without {needed}; every cycle needs one to be split")
    twice = frame["cycle_id"][frame["cycle_id"].duplicated()]
    if len(twice):
        raise InputError(f"cycle {twice.iloc[0]!r} is in the table twice; cycle ids have to be unique to be split")
    text = {}
    for name in _COLUMNS:
        values: list[Any] = frame[name].tolist() if name in frame else [None] * len(frame)
        if name == "label" and name in frame and pd.api.types.is_numeric_dtype(frame[name]):
            values = [None if pd.isna(code) else label_names[int(code)] for code in values]
        if name == "fold":  # a column with gaps comes back as floating point
            values = [None if pd.isna(value) else int(value) for value in values]
        text[name] = pd.Series([None if pd.isna(value) else str(value) for value in values], dtype=object)
    return pd.DataFrame(text)


def some(names: Sequence[str]) -> str:
    """The first three names, and dots where there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _nulls(frame: pd.DataFrame, column: str) -> int:
    return sum(value is None for value in frame[column].tolist())


def _pair_leak(pair: Pair, one: pd.DataFrame, other: pd.DataFrame) -> PairLeak:
    def shared(column: str) -> list[str]:
        return sorted(set(one[column].dropna()) & set(other[column].dropna()))

    def twins(column: str, value: str) -> list[Pair]:
        """Different recordings of the two parts that agree in this column."""
        left, right = (set(part.loc[part[column] == value, "recording_id"]) for part in (one, other))
        return sorted((a, b) for a in left for b in right if a != b)

    def spans(part: pd.DataFrame) -> dict[str, list[Any]]:
        """Times of the cycles of each recording whose audio is in both parts."""
        rows = part[part["audio_sha256"].isin(shared("audio_sha256"))]
        return {
            str(name): sorted(zip(cycles["start_s"].map(str), cycles["end_s"].map(str), strict=True))
            for name, cycles in rows.groupby("recording_id")
        }

    twice = sorted(itertools.chain.from_iterable(twins("audio_sha256", value) for value in shared("audio_sha256")))
    left, right = spans(one), spans(other)
    return PairLeak(
        parts=pair,
        patients=tuple(shared("patient_id")),
        recordings=tuple(shared("recording_id")),
        simultaneous=tuple(session for session in shared("session") if twins("session", session)),
        duplicated_audio=tuple(twice),
        copies=tuple((a, b) for a, b in twice if left[a] == right[b]),
    )
