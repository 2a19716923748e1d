"""Named protocols of splitting, what each promises, the validation carve-out and the split fingerprint.

Decisions: a protocol promises something for every pair of its splits (they share no patient, no recording, or only no
cycle); the default is the strongest, and a protocol lists its exceptions. `split_table` returns no split that breaks
its promise. Validation is carved from train by whole patients who are in no test split, because a model selected on
test patients is selected on the test split; only random-80-20 draws cycles, as its paper does. Draws are hashes of
(seed, purpose, name), so they do not depend on the order of rows or on library versions.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from laennec.corpora.leaks import LeakReport, Pair, leak_check, metadata_frame, refuse_leaks, some
from laennec.corpora.recordings import AnnotatedRecording, spelled_alike
from laennec.errors import InputError
from laennec.files import digest

Unit = Literal["patient", "recording", "cycle"]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Names = np.ndarray[Any, np.dtype[np.object_]]

SPLIT_ORDER = ("train", "validation", "test", "test_other_devices", "test_intra", "test_inter")
OTHER_DEVICES = "test_other_devices"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Protocol:
    """A named way to split a corpus."""

    name: str  # the word that recipes, reports and cards use
    description: str  # one sentence on what goes where
    # pairs of splits that promise less than disjoint patients, and the unit that they do not share
    weaker: Mapping[Pair, Unit]
    stamp: str | None  # a warning to state with every number of this protocol, or None

    def promise(self, one: str, other: str) -> Unit:
        """What the two splits never share: whole patients, whole recordings, or nothing larger than a cycle."""
        return self.weaker.get((one, other)) or self.weaker.get((other, one)) or "patient"


def _all_pairs(unit: Unit) -> dict[Pair, Unit]:
    return dict.fromkeys((("train", "validation"), ("train", "test"), ("validation", "test")), unit)


_DESCRIPTIONS = {
    "official": "ICBHI 2017 as published, by recording (60/40); patients 156 and 218 are in train and test.",
    "official-strict": "The published ICBHI 2017 split, with every recording of a patient found in both moved to test.",
    "patient-5fold": "Five folds of whole patients, the published ones where given; `fold` is the test fold.",
    "patient-60-20-20": "60 % train, 20 % validation and 20 % test by whole patients, stratified by chest location.",
    "random-80-20": "80 % train and 20 % test of randomly drawn cycles (Song et al. 2021); patients and recordings are "
    "shared.",
    "recording-80-20": "80 % train and 20 % test of randomly drawn recordings; patients are shared.",
    "sprsound-official": "SPRSound as published: test_intra holds other recordings of train patients, test_inter "
    "unseen patients.",
    "device-out": "One stethoscope left out: device `fold`, in alphabetical order, is the test split. Recordings that "
    "its patients have of other devices are a test split of their own, test_other_devices.",
    "corpus-out": "One corpus left out, of several that a recipe lists: all of it is the test split.",
    "database-out": "PhysioNet/CinC 2016: database `fold` (0 is a, 5 is f) is the test split. Patients are not "
    "published; databases come from different research groups.",
    "validation-folder": "PhysioNet/CinC 2016: train on the training databases, test on the folder validation; refused "
    "where that folder holds copies of training recordings.",
    "published-parts": "A dataset's own train, validation and test splits; what groups they share is reported.",
    "published-folds": "A dataset's own folds; `fold` is the test fold. What groups the splits share is reported.",
}
_WEAKER: dict[str, dict[Pair, Unit]] = {
    "official": {("train", "test"): "recording"},
    "random-80-20": _all_pairs("cycle"),
    "recording-80-20": {("train", "test"): "recording", ("validation", "test"): "recording"},
    "sprsound-official": {("train", "test_intra"): "recording", ("validation", "test_intra"): "recording"},
    "device-out": {("test", OTHER_DEVICES): "recording"},
    "database-out": {("train", "validation"): "recording"},
    "validation-folder": {("train", "validation"): "recording"},
    "published-parts": _all_pairs("recording"),
    "published-folds": _all_pairs("recording"),
}
_STAMPS = {"random-80-20": "leaky: random cycles", "recording-80-20": "leaky: random recordings"}
PROTOCOLS = {
    name: Protocol(name, description, _WEAKER.get(name, {}), _STAMPS.get(name))
    for name, description in _DESCRIPTIONS.items()
}
# protocols with a test fold, and protocols that treat a recording as a patient where patients are unknown
WITH_FOLDS = ("patient-5fold", "device-out", "database-out", "published-folds")
BY_RECORDING = ("recording-80-20", "database-out", "validation-folder", "published-parts", "published-folds")
# what any corpus with patients can be split by
COMMON_PROTOCOLS = (
    *("patient-60-20-20", "patient-5fold", "random-80-20", "recording-80-20", "device-out"),
    *("published-parts", "published-folds"),
)


def protocol_named(name: str) -> Protocol:
    """The protocol of this name."""
    if name not in PROTOCOLS:
        near = ", ".join(map(repr, difflib.get_close_matches(str(name), PROTOCOLS, n=3, cutoff=0.4)))
        hint = f"did you mean {near}? " if near else ""
        raise InputError(f"no protocol is called {name!r}; {hint}Valid: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def split_rank(name: str) -> tuple[int, str]:
    """Sorting key that puts splits in the order train, validation, test."""
    return (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name)


@dataclass(frozen=True)
class SplitResult:
    """A split of a cycle table."""

    splits: dict[str, Rows]  # sorted row numbers of each split; every row of the table is in one split
    fingerprint: str  # SHA-256 of the cycle ids of all splits, independent of the order of rows
    stamp: str | None  # a warning to state with every number of this split, or None
    leaks: LeakReport  # what the pairs of splits share
    # the same for each split alone: that of train stays the same when a test split is added
    fingerprints: dict[str, str]


def split_table(
    table: Any,
    protocol: str,
    *,
    fold: int = 0,
    validation_fraction: float = 0.2,
    validation_fold: int | str | None = None,
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
        validation_fold: Divide the patients that validation is drawn from into 1 / validation_fraction folds, and carve
            out this one; "all" carves out none, for models trained on all folds in turn.
        seed: Seed of every draw.
        official_split: recording_id -> "train" or "test", for official and official-strict. Names that have no cycles
            are ignored.
        folds: patient_id -> published fold; without it patient-5fold draws folds stratified by label.
        class_column: The column that draws are stratified by, where a corpus has classes of its own.

    Raises:
        InputError: The protocol is unknown or does not fit the table, or a setting is wrong.
    """
    chosen = protocol_named(protocol)
    if not isinstance(validation_fraction, Real) or not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction!r}; give a share of train from 0 to below 1")
    if fold and protocol not in WITH_FOLDS:
        raise InputError(f"fold {fold} is not used by protocol {protocol!r}; use fold 0 or {' or '.join(WITH_FOLDS)}")
    frame = metadata_frame(table, class_column)
    split_of = _assign(frame, protocol, fold, seed, official_split, folds)
    # corpus-out, or SPRSound without its train split, for scoring models trained on other data
    nothing_to_train_on = protocol in ("sprsound-official", "corpus-out") and not (split_of == "train").any()
    carves = protocol != "patient-60-20-20" and "validation" not in split_of and not nothing_to_train_on
    if validation_fold is not None and (not carves or protocol == "random-80-20" or not validation_fraction):
        raise InputError(
            f"validation_fold is {validation_fold}, but protocol {protocol!r} with validation_fraction "
            f"{validation_fraction:g} takes no validation patients from train; leave validation_fold out"
        )
    if validation_fraction and carves and validation_fold != "all":
        rows = _validation_rows(frame, split_of, chosen, validation_fraction, seed, validation_fold)
        split_of[rows] = "validation"
    expected = set() if protocol in ("sprsound-official", "corpus-out") else {"train", "test"}
    splits = {name: np.flatnonzero(split_of == name) for name in sorted(expected | set(split_of), key=split_rank)}
    leaks = leak_check(frame, splits)
    refuse_leaks(leaks, chosen)
    ids = frame["cycle_id"].to_numpy()
    return SplitResult(
        splits=splits,
        fingerprint=fingerprint({name: ids[rows] for name, rows in splits.items()}),
        stamp=_stamp(chosen, leaks),
        leaks=leaks,
        fingerprints={name: fingerprint({name: ids[rows]}) for name, rows in splits.items()},
    )


def fingerprint(splits: Mapping[str, Iterable[str]]) -> str:
    """SHA-256 over the sorted cycle ids of every split: the order of rows and of splits does not matter."""
    return digest({name: sorted(splits[name]) for name in sorted(splits)})


def assign_groups(
    groups: Sequence[str], strata: Sequence[str], shares: Sequence[float], *, seed: int, purpose: str
) -> dict[str, int]:
    """Assign whole groups to splits so that every stratum is divided as closely to the shares as possible.

    Groups are assigned by size in powers of two, largest first, and within one power of two in the order of a hash of
    seed and purpose. Each goes where it least increases the squared deviation from the shares, summed over strata
    relative to their totals. No split is left empty. `groups` and `strata` are those of each row; shares sum to 1.
    """
    counts = pd.crosstab(np.asarray(groups, dtype=object), np.asarray(strata, dtype=object))
    counts = counts.sort_index(axis=0).sort_index(axis=1)
    if len(counts) < len(shares):
        raise ValueError(f"{len(counts)} groups cannot fill {len(shares)} splits")
    sizes = counts.to_numpy(dtype=np.float64)
    # the sum over strata is one more column, so that the sizes of the splits follow the shares too
    sizes = np.concatenate([sizes, sizes.sum(axis=1, keepdims=True)], axis=1)
    totals, share = sizes.sum(axis=0), np.asarray(shares, dtype=np.float64)[:, None]
    names = [str(name) for name in counts.index]
    order = sorted(
        range(len(names)), key=lambda row: (-int(sizes[row, -1]).bit_length(), _draw(seed, purpose, names[row]))
    )
    have = np.zeros((len(shares), sizes.shape[1]))
    assigned: dict[str, int] = {}
    for position, row in enumerate(order):
        increase = (2 * sizes[row] * (have / share - totals) + sizes[row] ** 2 / share) / totals
        cost = np.round(increase.sum(axis=1), 9)  # rounded, so that ties do not depend on the order of summation
        empty = have[:, -1] == 0
        if empty.sum() >= len(order) - position:
            cost = np.where(empty, cost, np.inf)
        split = int(np.argmin(cost))
        have[split] += sizes[row]
        assigned[names[row]] = split
    return assigned


def _assign(
    frame: pd.DataFrame,
    protocol: str,
    fold: int,
    seed: int,
    official_split: Mapping[str, str] | None,
    folds: Mapping[str, int] | None,
) -> Names:
    """The split of every row, before validation is carved from train."""
    if protocol in ("official", "official-strict"):
        split_of = _official(frame, official_split, protocol)
        if protocol == "official-strict":
            in_test = set(_patients(frame, protocol)[split_of == "test"])
            split_of[frame["patient_id"].isin(in_test).to_numpy()] = "test"
        return split_of
    if protocol == "patient-5fold":
        return np.where(_folds(frame, fold, seed, folds) == fold, "test", "train").astype(object)
    if protocol == "patient-60-20-20":
        return _stratified(frame, "chest_location", (0.6, 0.2, 0.2), ("train", "validation", "test"), seed, protocol)
    if protocol == "recording-80-20":
        return _stratified(frame, "label", (0.8, 0.2), ("train", "test"), seed, protocol, unit="recording_id")
    if protocol == "random-80-20":
        split_of = np.full(len(frame), "train", dtype=object)
        split_of[_draw_cycles(frame, np.arange(len(frame)), 0.2, seed, protocol)] = "test"
        return split_of
    if protocol == "device-out":
        return _device_out(frame, fold)
    if protocol == "corpus-out":
        return np.full(len(frame), "test", dtype=object)
    if protocol in ("database-out", "published-folds"):
        return _fold_out(frame, protocol, fold)
    return _own_splits(frame, protocol)


def _official(frame: pd.DataFrame, official_split: Mapping[str, str] | None, protocol: str) -> Names:
    if official_split is None:
        raise InputError(
            f"protocol {protocol!r} needs the published split, and none was given; "
            "put ICBHI_challenge_train_test.txt beside the recordings or use another protocol"
        )
    if missing := sorted(set(frame["recording_id"]) - set(official_split)):
        raise InputError(
            f"the published split does not name {len(missing)} of the recordings ({some(missing)}); "
            "correct the split table or use another protocol"
        )
    split_of = frame["recording_id"].map(dict(official_split)).to_numpy(dtype=object).copy()
    if wrong := sorted({str(value) for value in split_of} - {"train", "test"}):
        raise InputError(f"the published split has {some(wrong)}; a recording is in train or in test; correct it")
    return split_of


def _device_out(frame: pd.DataFrame, fold: int) -> Names:
    """Test holds the recordings of one stethoscope; its patients' recordings of other devices are not in train."""
    if frame["device"].isna().any():
        raise InputError("protocol 'device-out' needs the device of every recording; use another protocol")
    known = sorted(set(frame["device"]))
    if not 0 <= fold < len(known) or len(known) < 2:
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(known))
        raise InputError(f"protocol 'device-out': there is no device {fold} to leave out; there are {listed}")
    if spelled_alike(Path(), [AnnotatedRecording("", device, None) for device in known]):
        raise InputError(
            f"protocol 'device-out': two of the devices {', '.join(map(repr, known))} may be one; "
            "write one name in one way, or give two devices names that differ more"
        )
    own = (frame["device"] == known[fold]).to_numpy()
    theirs = frame["patient_id"].isin(set(_patients(frame, "device-out")[own])).to_numpy()
    return np.where(own, "test", np.where(theirs, OTHER_DEVICES, "train")).astype(object)


def _fold_out(frame: pd.DataFrame, protocol: str, fold: int) -> Names:
    """Test holds the rows with this number in the column `fold`."""
    if frame["fold"].isna().any():
        remedy = "name the column of the folds (fold_column) or use another protocol"
        raise InputError(f"protocol {protocol!r} needs the fold of every recording, and some have none; {remedy}")
    known = sorted(set(frame["fold"]), key=int)
    if str(fold) not in known or len(known) < 2:
        raise InputError(
            f"protocol {protocol!r}: there is no fold {fold} to leave out; the folds are {', '.join(known)}"
        )
    return np.where(frame["fold"] == str(fold), "test", "train").astype(object)


def _own_splits(frame: pd.DataFrame, protocol: str) -> Names:
    """The splits that the corpus itself is published in (column `part`)."""
    split_of = frame["part"].to_numpy(dtype=object).copy()
    if protocol == "validation-folder":
        split_of = np.where(split_of == "validation", "test", "train").astype(object)
    sprsound = protocol == "sprsound-official"
    valid = ("train", "test_intra", "test_inter") if sprsound else ("train", "validation", "test")
    if wrong := sorted({str(value) for value in split_of} - set(valid)):
        raise InputError(
            f"protocol {protocol!r} reads column 'part' ({', '.join(valid)}), but it holds {some(wrong)}; "
            "use another protocol"
        )
    if missing := [name for name in ("train", "test") if name not in split_of and not sprsound]:
        remedy = "name it in the corpus' options, or use another protocol"
        raise InputError(f"protocol {protocol!r}: the corpus has no {missing[0]} split; {remedy}")
    return split_of


def _folds(frame: pd.DataFrame, fold: int, seed: int, folds: Mapping[str, int] | None) -> Rows:
    """The fold of every row: published where given, else one of five drawn groups of patients."""
    patients = _patients(frame, "patient-5fold")
    if folds is None:
        known = list(range(5))
        number = _stratified(frame, "label", (0.2,) * 5, known, seed, "patient-5fold").astype(np.int64)
    else:
        known = sorted({int(value) for value in folds.values()})
        if missing := sorted(set(patients) - set(folds)):
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


def _stratified(
    frame: pd.DataFrame,
    stratum: str,
    shares: Sequence[float],
    names: Sequence[Any],
    seed: int,
    protocol: str,
    unit: str = "patient_id",
) -> Names:
    """The split of every row: whole patients or recordings, stratified by a column."""
    groups = _patients(frame, protocol) if unit == "patient_id" else frame[unit].to_numpy(dtype=object)
    count = len(set(groups))
    if count < len(shares):
        word = unit.removesuffix("_id")
        raise InputError(f"protocol {protocol!r} needs at least {len(shares)} {word}s, but the corpus has {count}")
    strata = frame[stratum].fillna(_UNKNOWN).tolist()
    assigned = assign_groups(groups.tolist(), strata, shares, seed=seed, purpose=protocol)
    return np.array([names[assigned[group]] for group in groups], dtype=object)


def _draw_cycles(frame: pd.DataFrame, among: Rows, share: float, seed: int, purpose: str) -> Rows:
    """The given share of these rows, drawn by the rank of each cycle's hash."""
    wanted = max(1, round(share * len(among)))
    if wanted >= len(among):
        raise InputError(f"protocol 'random-80-20' has only {len(among)} cycles to draw from; use a larger corpus")
    ranked = sorted(among.tolist(), key=lambda row: _draw(seed, purpose, frame["cycle_id"].iat[row]))
    return np.sort(np.array(ranked[:wanted], dtype=np.int64))


def _validation_rows(
    frame: pd.DataFrame, split_of: Names, protocol: Protocol, share: float, seed: int, fold: int | str | None
) -> Rows:
    """Rows of train that become validation: whole patients, stratified by label; a draw, or one of several folds.

    Patients of a test split are left out, unless the protocol shares them with train by design: leaving them out would
    then prevent no leak, and bias validation (the patients of SPRSound's test_intra are the ill ones).
    """
    train = split_of == "train"
    if protocol.name == "random-80-20":
        return _draw_cycles(frame, np.flatnonzero(train), share, seed, "validation")
    if protocol.name in BY_RECORDING:
        groups = frame["patient_id"].where(frame["patient_id"].notna(), frame["recording_id"]).to_numpy(dtype=object)
    else:
        groups = _patients(frame, protocol.name)
    published = protocol.name.startswith("published-")
    apart = [name for name in set(split_of[~train]) if published or protocol.promise("validation", name) == "patient"]
    eligible = train & ~np.isin(groups, groups[np.isin(split_of, apart)])
    if len(set(groups[eligible])) < 2 and published:  # all groups are in test too: none can be kept apart
        eligible = train
    count = len(set(groups[eligible]))
    if count < 2:
        raise InputError(
            f"protocol {protocol.name!r}: validation is carved from train patients who are in no test split, and there "
            f"are {count}, fewer than 2; use a larger corpus or validation_fraction 0"
        )
    strata = frame["label"].fillna(_UNKNOWN).to_numpy(dtype=object)[eligible].tolist()
    among = groups[eligible].tolist()
    if fold is not None:
        folds = max(2, round(1 / share))
        if not isinstance(fold, int) or not 0 <= fold < folds or count < folds:
            raise InputError(
                f"validation_fold is {fold}; validation_fraction {share:g} makes {folds} folds of {count} patients: "
                f"give 0 to {folds - 1}, or all"
            )
        assigned = assign_groups(among, strata, (1 / folds,) * folds, seed=seed, purpose="validation folds")
        return np.flatnonzero(eligible & np.array([assigned.get(group) == fold for group in groups], dtype=bool))
    # the share is of all of train, including the patients who are in test too and stay in train
    wanted = share * train.sum() / eligible.sum()
    if wanted >= 1:
        return np.flatnonzero(eligible)
    assigned = assign_groups(among, strata, (1 - wanted, wanted), seed=seed, purpose="validation")
    return np.flatnonzero(eligible & np.array([assigned.get(group) == 1 for group in groups], dtype=bool))


def _stamp(protocol: Protocol, leaks: LeakReport) -> str | None:
    """The protocol's own stamp, and what is known of patients in several splits."""
    stamps = [protocol.stamp] if protocol.stamp else []
    if protocol.name == "official" and (both := leaks.between("train", "test").patients):
        who = f"patients {' and '.join(both)}" if len(both) == 2 else f"{len(both)} of the patients ({some(both)})"
        stamps.append(f"official split: {who} are in train and test")
    if protocol.name in BY_RECORDING and leaks.cycles_without_patient:
        stamps.append("patients unknown: splits share no recording but may share patients")
    shared = sorted({group for pair in leaks.pairs if "test" in pair.splits for group in pair.patients})
    if shared and protocol.name.startswith("published-"):
        who = f"{len(shared)} groups of test ({some(shared)}) are"
        one = f"group {shared[0]} of test is"
        stamps.append(f"{protocol.name}: {who if len(shared) > 1 else one} in train or validation too")
    return "; ".join(stamps) or None


def _patients(frame: pd.DataFrame, protocol: str) -> Names:
    unknown = int(frame["patient_id"].isna().sum())
    if unknown:
        raise InputError(
            f"{unknown} cycles have no patient_id, so protocol {protocol!r} cannot keep patients apart; "
            "fill patient_id in, or use protocol random-80-20, which may split a patient's cycles"
        )
    return frame["patient_id"].to_numpy(dtype=object)


def _draw(seed: int, purpose: str, name: str) -> str:
    """A sortable random draw that depends on nothing but its arguments."""
    return hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).hexdigest()
