"""Splitting by a named protocol, the validation carve-out and the split fingerprint.

Decisions: `split_table` checks its result against the promise of the protocol and returns no split that breaks it.
Validation is carved from train by whole patients who are in no test split, because selecting a model on test patients
is selecting on test; only random-80-20 draws cycles, as its paper does, and its stamp says so. Draws are hashes of
(seed, purpose, name): the order of rows and the versions of libraries change nothing.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laennec.corpora.leaks import LeakReport, PairLeak, leak_check, metadata_frame, refuse_leaks, some
from laennec.corpora.protocols import (
    BY_RECORDING,
    OTHER_DEVICES,
    PROTOCOLS,
    WITH_FOLDS,
    Pair,
    Protocol,
    part_rank,
    protocol_named,
)
from laennec.errors import InputError

__all__ = [
    "PROTOCOLS",
    "LeakReport",
    "PairLeak",
    "Protocol",
    "SplitResult",
    "assign_groups",
    "fingerprint",
    "leak_check",
    "refuse_leaks",
    "split_table",
]

Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Names = np.ndarray[Any, np.dtype[np.object_]]

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class SplitResult:
    """A split of a cycle table.

    Attributes:
        parts: Sorted row numbers of the table for each part; together every row once.
        protocol: Its name in `PROTOCOLS`.
        fold: The test fold, where the protocol has folds, else 0.
        seed: The seed of whatever was drawn.
        fingerprint: SHA-256 of the cycle ids of each part, independent of the order of rows.
        stamp: What every number computed on this split has to carry, or None.
        promises_disjoint_patients: For each pair of parts, whether the protocol promises that no patient is in both.
        leaks: What the pairs do share.
        part_fingerprints: The same for each part alone: a corpus that gained a test part still has its training part.
    """

    parts: dict[str, Rows]
    protocol: str
    fold: int
    seed: int
    fingerprint: str
    stamp: str | None
    promises_disjoint_patients: dict[Pair, bool]
    leaks: LeakReport
    part_fingerprints: dict[str, str]


def split_table(
    table: Any,
    protocol: str,
    *,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    official_split: Mapping[str, str] | None = None,
    folds: Mapping[str, int] | None = None,
    class_column: str = "label",
) -> SplitResult:
    """Split a cycle table by a named protocol, and check that the split keeps the protocol's promise.

    Args:
        table: A cycle table: `datasets.Dataset`, pandas DataFrame, or a mapping of columns. Audio is never read.
        protocol: A name in `PROTOCOLS`.
        fold: The test fold; of a protocol with folds only.
        validation_fraction: Share of the train cycles to carve out, approximately (patients stay whole); 0 carves
            nothing. patient-60-20-20 has its own 20 %.
        seed: Seed of every draw.
        official_split: recording_id -> "train" or "test", for official and official-strict. Names that have no cycles
            are ignored.
        folds: patient_id -> published fold; without it patient-5fold draws folds stratified by label.
        class_column: The column that draws are stratified by, where a corpus has classes of its own.

    Returns:
        The parts as row numbers, with fingerprint, stamp and leak report.

    Raises:
        InputError: Unknown protocol, missing table or column, too few patients, or a broken promise.
    """
    chosen = protocol_named(protocol)
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction}; give a share of train from 0 to below 1")
    if fold and protocol not in WITH_FOLDS:
        raise InputError(
            f"fold {fold} means nothing under protocol {protocol!r}; use fold 0 or {' or '.join(WITH_FOLDS)}"
        )
    frame = metadata_frame(table, class_column)
    part = _assign(frame, protocol, fold, seed, official_split, folds)
    # SPRSound's test parts alone, for scoring what was trained elsewhere
    nothing_to_train_on = protocol == "sprsound-official" and not (part == "train").any()
    carves = protocol != "patient-60-20-20" and "validation" not in part and not nothing_to_train_on
    if validation_fraction and carves:
        part[_validation_rows(frame, part, protocol, validation_fraction, seed)] = "validation"
    expected = set() if protocol == "sprsound-official" else {"train", "test"}
    names = sorted(expected | set(part), key=part_rank)
    parts = {name: np.flatnonzero(part == name) for name in names}
    leaks = leak_check(frame, parts)
    refuse_leaks(leaks, chosen)
    ids = frame["cycle_id"].to_numpy()
    return SplitResult(
        parts=parts,
        protocol=protocol,
        fold=fold,
        seed=seed,
        fingerprint=fingerprint({name: ids[rows] for name, rows in parts.items()}),
        stamp=_stamp(chosen, leaks),
        promises_disjoint_patients={
            pair: chosen.promise(*pair) == "patient" for pair in itertools.combinations(names, 2)
        },
        leaks=leaks,
        part_fingerprints={name: fingerprint({name: ids[rows]}) for name, rows in parts.items()},
    )


def fingerprint(parts: Mapping[str, Iterable[str]]) -> str:
    """SHA-256 over the sorted cycle ids of every part: the order of rows and of parts does not matter."""
    canonical = json.dumps({name: sorted(ids) for name, ids in parts.items()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def assign_groups(
    groups: Sequence[str], strata: Sequence[str], shares: Sequence[float], *, seed: int, purpose: str
) -> dict[str, int]:
    """Deal whole groups into parts so that every stratum is divided as the shares ask, as nearly as groups allow.

    Groups are dealt by size in powers of two, largest first, and within one power of two in the order of a seeded hash.
    Each goes where it least increases the squared deviation from the shares, summed over strata relative to their
    totals. No part is left empty.

    Args:
        groups: The group of each row.
        strata: The stratum of each row.
        shares: Wanted share of each part, summing to 1.
        seed: Seed of the order.
        purpose: What the draw is for; different purposes have unrelated orders.

    Returns:
        Part number of every group.

    Raises:
        ValueError: Fewer groups than parts.
    """
    counts = pd.crosstab(np.asarray(groups, dtype=object), np.asarray(strata, dtype=object))
    counts = counts.sort_index(axis=0).sort_index(axis=1)
    if len(counts) < len(shares):
        raise ValueError(f"{len(counts)} groups cannot fill {len(shares)} parts")
    sizes = counts.to_numpy(dtype=np.float64)
    # the sum over strata is one more column, so that the parts come out right in size too
    sizes = np.concatenate([sizes, sizes.sum(axis=1, keepdims=True)], axis=1)
    totals, share = sizes.sum(axis=0), np.asarray(shares, dtype=np.float64)[:, None]
    names = [str(name) for name in counts.index]
    order = sorted(
        range(len(names)), key=lambda row: (-int(sizes[row, -1]).bit_length(), _draw(seed, purpose, names[row]))
    )
    have = np.zeros((len(shares), sizes.shape[1]))
    dealt: dict[str, int] = {}
    for position, row in enumerate(order):
        increase = (2 * sizes[row] * (have / share - totals) + sizes[row] ** 2 / share) / totals
        cost = np.round(increase.sum(axis=1), 9)  # rounded, so that ties do not hang on the order of a sum
        empty = have[:, -1] == 0
        if empty.sum() >= len(order) - position:
            cost = np.where(empty, cost, np.inf)
        part = int(np.argmin(cost))
        have[part] += sizes[row]
        dealt[names[row]] = part
    return dealt


def _assign(
    frame: pd.DataFrame,
    protocol: str,
    fold: int,
    seed: int,
    official_split: Mapping[str, str] | None,
    folds: Mapping[str, int] | None,
) -> Names:
    """The part of every row, before validation is carved from train."""
    if protocol in ("official", "official-strict"):
        part = _published_parts(frame, official_split, protocol)
        if protocol == "official-strict":
            in_test = set(_patients(frame, protocol)[part == "test"])
            part[frame["patient_id"].isin(in_test).to_numpy()] = "test"
        return part
    if protocol == "patient-5fold":
        return np.where(_folds(frame, fold, seed, folds) == fold, "test", "train").astype(object)
    if protocol == "patient-60-20-20":
        return _deal(frame, "chest_location", (0.6, 0.2, 0.2), ("train", "validation", "test"), seed, protocol)
    if protocol == "recording-80-20":
        return _deal(frame, "label", (0.8, 0.2), ("train", "test"), seed, protocol, unit="recording_id")
    if protocol == "random-80-20":
        part = np.full(len(frame), "train", dtype=object)
        part[_draw_cycles(frame, np.arange(len(frame)), 0.2, seed, protocol)] = "test"
        return part
    if protocol == "device-out":
        return _device_out(frame, fold)
    if protocol in ("database-out", "published-folds"):
        return _fold_out(frame, protocol, fold)
    if protocol in ("published-parts", "validation-folder"):
        return _own_parts(frame, protocol)
    wrong = sorted({str(value) for value in frame["part"]} - {"train", "test_intra", "test_inter"})
    if wrong:
        raise InputError(
            f"protocol {protocol!r} reads column 'part' (train, test_intra, test_inter), but it holds {some(wrong)}; "
            "load an SPRSound corpus or use another protocol"
        )
    return frame["part"].to_numpy(dtype=object).copy()


def _published_parts(frame: pd.DataFrame, official_split: Mapping[str, str] | None, protocol: str) -> Names:
    if official_split is None:
        raise InputError(
            f"protocol {protocol!r} needs the published split, and none was given; "
            "put ICBHI_challenge_train_test.txt beside the recordings or use another protocol"
        )
    missing = sorted(set(frame["recording_id"]) - set(official_split))
    if missing:
        raise InputError(
            f"the published split does not name {len(missing)} of the recordings ({some(missing)}); "
            "correct the split table or use another protocol"
        )
    part = frame["recording_id"].map(dict(official_split)).to_numpy(dtype=object).copy()
    wrong = sorted({str(value) for value in part} - {"train", "test"})
    if wrong:
        raise InputError(f"the published split says {some(wrong)}, but a recording is in train or in test; correct it")
    return part


def _device_out(frame: pd.DataFrame, fold: int) -> Names:
    """Test is what one stethoscope recorded; nothing of its patients is trained on, with whatever it was recorded."""
    if frame["device"].isna().any():
        raise InputError("protocol 'device-out' needs the device of every recording; use another protocol")
    known = sorted(set(frame["device"]))
    if fold >= len(known) or len(known) < 2:
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(known))
        raise InputError(f"protocol 'device-out': there is no device {fold} to leave out; there are {listed}")
    own = (frame["device"] == known[fold]).to_numpy()
    theirs = frame["patient_id"].isin(set(_patients(frame, "device-out")[own])).to_numpy()
    return np.where(own, "test", np.where(theirs, OTHER_DEVICES, "train")).astype(object)


def _fold_out(frame: pd.DataFrame, protocol: str, fold: int) -> Names:
    """Test is what the table's column `fold` gives this number."""
    if frame["fold"].isna().any():
        remedy = "name the column of the folds (fold_column) or use another protocol"
        raise InputError(f"protocol {protocol!r} needs the fold of every recording, and some have none; {remedy}")
    known = sorted(set(frame["fold"]), key=int)
    if str(fold) not in known or len(known) < 2:
        raise InputError(
            f"protocol {protocol!r}: there is no fold {fold} to leave out; the folds are {', '.join(known)}"
        )
    return np.where(frame["fold"] == str(fold), "test", "train").astype(object)


def _own_parts(frame: pd.DataFrame, protocol: str) -> Names:
    """The parts that the corpus itself is laid out in."""
    part = frame["part"].to_numpy(dtype=object).copy()
    if protocol == "validation-folder":
        part = np.where(part == "validation", "test", "train").astype(object)
    if wrong := sorted({str(value) for value in part} - {"train", "validation", "test"}):
        raise InputError(
            f"protocol {protocol!r} knows train, validation and test, not {some(wrong)}; use another protocol"
        )
    for needed in ("train", "test"):
        if needed not in part:
            remedy = "name it in the corpus' options, or use another protocol"
            raise InputError(f"protocol {protocol!r}: the corpus has no {needed} part; {remedy}")
    return part


def _folds(frame: pd.DataFrame, fold: int, seed: int, folds: Mapping[str, int] | None) -> Rows:
    """The fold of every row: published where given, else one of five drawn groups of patients."""
    patients = _patients(frame, "patient-5fold")
    if folds is None:
        known = list(range(5))
        number = _deal(frame, "label", (0.2,) * 5, known, seed, "patient-5fold").astype(np.int64)
    else:
        known = sorted({int(value) for value in folds.values()})
        missing = sorted(set(patients) - set(folds))
        if missing:
            raise InputError(
                f"the published folds do not name {len(missing)} of the patients ({some(missing)}); "
                "correct patient_list_foldwise.txt or give no folds"
            )
        number = np.array([int(folds[patient]) for patient in patients], dtype=np.int64)
        if fold in known and fold not in number:
            raise InputError(
                f"protocol 'patient-5fold': none of the patients here is of the published fold {fold}; there are "
                f"patients of {', '.join(map(str, sorted(set(number.tolist()))))}"
            )
    if fold not in known:
        raise InputError(f"there is no fold {fold}; the folds are {', '.join(map(str, known))}")
    return number


def _deal(
    frame: pd.DataFrame,
    stratum: str,
    shares: Sequence[float],
    names: Sequence[Any],
    seed: int,
    protocol: str,
    unit: str = "patient_id",
) -> Names:
    """Name the part of every row by dealing whole patients or recordings, stratified by a column."""
    groups = _patients(frame, protocol) if unit == "patient_id" else frame[unit].to_numpy(dtype=object)
    count = len(set(groups))
    if count < len(shares):
        word = unit.removesuffix("_id")
        raise InputError(f"protocol {protocol!r} needs at least {len(shares)} {word}s, but the corpus has {count}")
    strata = frame[stratum].fillna(_UNKNOWN).tolist()
    dealt = assign_groups(groups.tolist(), strata, shares, seed=seed, purpose=protocol)
    return np.array([names[dealt[group]] for group in groups], dtype=object)


def _draw_cycles(frame: pd.DataFrame, among: Rows, share: float, seed: int, purpose: str) -> Rows:
    """The given share of these rows, drawn by the rank of each cycle's hash."""
    wanted = max(1, round(share * len(among)))
    if wanted >= len(among):
        raise InputError(f"protocol 'random-80-20' has only {len(among)} cycles to draw from; use a larger corpus")
    ranked = sorted(among.tolist(), key=lambda row: _draw(seed, purpose, frame["cycle_id"].iat[row]))
    return np.sort(np.array(ranked[:wanted], dtype=np.int64))


def _validation_rows(frame: pd.DataFrame, part: Names, protocol: str, share: float, seed: int) -> Rows:
    """Rows of train that become validation: whole patients, stratified by label.

    Patients of a test part are left out, unless the protocol shares its patients with train by design: then leaving
    them out would protect nothing and make validation unlike train (SPRSound's intra patients are the ill ones).
    """
    train = part == "train"
    if protocol == "random-80-20":
        return _draw_cycles(frame, np.flatnonzero(train), share, seed, "validation")
    patients = _groups(frame) if protocol in BY_RECORDING else _patients(frame, protocol)
    published = protocol.startswith("published-")
    apart = [
        name
        for name in set(part[~train])
        if protocol_named(protocol).promise("validation", name) == "patient" or published
    ]
    in_test = set(patients[np.isin(part, apart)])
    eligible = train & np.array([patient not in in_test for patient in patients], dtype=bool)
    count = len(set(patients[eligible]))
    if count < 2 and published:  # a dataset whose parts share all their groups: nothing is left to protect
        eligible, count = train, len(set(patients[train]))
    if count < 2:
        raise InputError(
            f"protocol {protocol!r}: validation is carved from train patients who are in no test part, and there are "
            f"{count}, fewer than 2; use a larger corpus or validation_fraction 0"
        )
    # a share of the whole of train, although the patients who are also in test have to stay behind in it
    wanted = share * train.sum() / eligible.sum()
    if wanted >= 1:
        return np.flatnonzero(eligible)
    strata = frame["label"].fillna(_UNKNOWN).to_numpy(dtype=object)[eligible].tolist()
    dealt = assign_groups(patients[eligible].tolist(), strata, (1 - wanted, wanted), seed=seed, purpose="validation")
    return np.flatnonzero(eligible & np.array([dealt.get(patient) == 1 for patient in patients], dtype=bool))


def _stamp(protocol: Protocol, leaks: LeakReport) -> str | None:
    """The protocol's own stamp, or for the published ICBHI split who is in train and test."""
    if protocol.name in BY_RECORDING:
        return _stamp_by_recording(protocol, leaks)
    both = leaks.between("train", "test").patients if protocol.name == "official" else ()
    if not both:
        return protocol.stamp
    who = f"patients {' and '.join(both)}" if len(both) == 2 else f"{len(both)} of the patients ({some(both)})"
    return f"official split: {who} are in train and test"


def _stamp_by_recording(protocol: Protocol, leaks: LeakReport) -> str | None:
    """What a split by parts or recordings cannot promise of people."""
    stamps = [protocol.stamp] if protocol.stamp else []
    if leaks.cycles_without_patient:
        stamps.append("patients are not known: no recording is shared, a person may be")
    pairs = [pair for pair in leaks.pairs if "test" in pair.parts]
    shared = sorted({group for pair in pairs for group in pair.patients})
    if shared and protocol.name.startswith("published-"):
        who = f"{len(shared)} groups of test ({some(shared)})" if len(shared) > 1 else f"group {shared[0]} of test"
        verb = "are" if len(shared) > 1 else "is"
        stamps.append(f"{protocol.name}: {who} {verb} in train or validation too")
    return "; ".join(stamps) or None


def _groups(frame: pd.DataFrame) -> Names:
    """The patient of every row, or the recording where nobody knows the patient."""
    return frame["patient_id"].where(frame["patient_id"].notna(), frame["recording_id"]).to_numpy(dtype=object)


def _patients(frame: pd.DataFrame, protocol: str) -> Names:
    unknown = int(frame["patient_id"].isna().sum())
    if unknown:
        raise InputError(
            f"{unknown} cycles have no patient_id, so protocol {protocol!r} cannot keep patients apart; "
            "fill patient_id in, or use random-80-20 and its stamp"
        )
    return frame["patient_id"].to_numpy(dtype=object)


def _draw(seed: int, purpose: str, name: str) -> str:
    """A sortable random draw that depends on nothing but its arguments."""
    return hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).hexdigest()
