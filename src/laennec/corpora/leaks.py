"""Leaks between the splits of a corpus: found by name, and refused where the protocol excludes them.

Decisions: patients and recordings are compared by name, simultaneous recordings (ICBHI's "mc": one stretch of breathing
at several chest locations) by patient and recording index, and audio by its content hash. The last two are refused only
where disjoint patients are promised. Identical audio is refused if its cycles are the same too (one recording under two
names); with other cycles it may be a mix-up of files, and is only reported with the split. Copies that are not
identical files are found by `laennec.corpora.copies`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from laennec.audio.cycles import LABELS
from laennec.errors import InputError

if TYPE_CHECKING:
    from laennec.corpora.splits import Protocol

Pair = tuple[str, str]

_COLUMNS = (
    *("cycle_id", "recording_id", "patient_id", "label", "start_s", "end_s", "chest_location", "acquisition_mode"),
    *("device", "audio_sha256", "part", "fold"),
)


@dataclass(frozen=True)
class PairLeak:
    """What two splits share."""

    splits: Pair  # the two names
    patients: tuple[str, ...]  # patients with cycles in both
    recordings: tuple[str, ...]  # recordings with cycles in both
    simultaneous: tuple[str, ...]  # sessions ("107_2b3") taken at several chest locations at once, some in each split
    # (recording of the first split, recording of the second), two names for identical audio
    duplicated_audio: tuple[Pair, ...]
    copies: tuple[Pair, ...]  # those of them whose cycles are the same too

    @property
    def clean(self) -> bool:
        """Whether the two splits have nothing in common."""
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
        return f"{self.splits[0]} and {self.splits[1]} share {', '.join(shared) or 'nothing'}"


@dataclass(frozen=True)
class LeakReport:
    """What every pair of splits shares."""

    pairs: tuple[PairLeak, ...]  # one entry for each pair of splits, in the order train, validation, test
    cycles_without_patient: int  # cycles of unknown patient, which may be shared unnoticed

    @property
    def shared(self) -> list[str]:
        """One line for each pair of splits that share something."""
        return [pair.summary for pair in self.pairs if not pair.clean]

    def between(self, one: str, other: str) -> PairLeak:
        """The entry of two splits, in either order."""
        return next(pair for pair in self.pairs if set(pair.splits) == {one, other})


def leak_check(table: Any, splits: Mapping[str, Sequence[int] | npt.NDArray[np.int64]]) -> LeakReport:
    """Find patients, recordings, simultaneous recordings and duplicated audio shared between splits of a table."""
    frame = metadata_frame(table)
    frame["session"] = [
        f"{patient}_{recording.split('_')[1]}" if mode == "mc" and patient and recording.count("_") >= 2 else None
        for recording, patient, mode in zip(
            frame["recording_id"], frame["patient_id"], frame["acquisition_mode"], strict=True
        )
    ]
    cut = {name: frame.iloc[np.asarray(rows, dtype=np.int64)] for name, rows in splits.items()}
    pairs = tuple(_pair_leak((one, other), cut[one], cut[other]) for one, other in itertools.combinations(cut, 2))
    return LeakReport(pairs, sum(int(rows["patient_id"].isna().sum()) for rows in cut.values()))


def refuse_leaks(report: LeakReport, protocol: "Protocol") -> None:
    """Refuse splits that share patients or recordings which the protocol keeps apart."""
    for pair in report.pairs:
        promise = protocol.promise(*pair.splits)
        shared = pair.patients or pair.recordings or pair.simultaneous or pair.copies
        if (promise == "patient" and shared) or (promise == "recording" and pair.recordings):
            raise InputError(
                f"protocol {protocol.name!r} promises that no {promise} is shared, but {pair.summary}; "
                "correct the patient ids or the split table, or drop the duplicated recordings"
            )


def metadata_frame(table: Any, class_column: str = "label") -> pd.DataFrame:
    """The columns that splitting uses, one row a cycle in the table's order, as text, None where unknown.

    Args:
        table: A cycle table: `datasets.Dataset`, pandas DataFrame, or a mapping of columns. Audio is never read.
        class_column: The column that becomes `label` here, where a corpus has classes of its own.
    """
    label_names: Sequence[str] = LABELS
    if hasattr(table, "select_columns"):
        wanted = dict.fromkeys((*_COLUMNS, class_column))
        frame = table.select_columns([name for name in wanted if name in table.column_names]).to_pandas()
        label_names = getattr(table.features.get(class_column), "names", LABELS)
    else:
        frame = pd.DataFrame(table).reset_index(drop=True)
    if class_column in frame:
        frame = frame.assign(label=frame[class_column])
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


def _pair_leak(pair: Pair, one: pd.DataFrame, other: pd.DataFrame) -> PairLeak:
    def shared(column: str) -> list[str]:
        return sorted(set(one[column].dropna()) & set(other[column].dropna()))

    def twins(column: str) -> pd.DataFrame:
        """Different recordings of the two splits that agree in this column."""
        left, right = (
            split[[column, "recording_id"]].dropna(subset=column).drop_duplicates() for split in (one, other)
        )
        both = left.merge(right, on=column, suffixes=("", "_other"))
        return both[both["recording_id"] != both["recording_id_other"]]

    def spans(split: pd.DataFrame, recording: str) -> list[Any]:
        return sorted(split.loc[split["recording_id"] == recording, ["start_s", "end_s"]].astype(str).values.tolist())

    same = twins("audio_sha256")
    twice = sorted(zip(same["recording_id"], same["recording_id_other"], strict=True))
    return PairLeak(
        splits=pair,
        patients=tuple(shared("patient_id")),
        recordings=tuple(shared("recording_id")),
        simultaneous=tuple(sorted(set(twins("session")["session"]))),
        duplicated_audio=tuple(twice),
        copies=tuple((a, b) for a, b in twice if spans(one, a) == spans(other, b)),
    )
