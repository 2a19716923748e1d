"""Positive pairs and pair sampling of pre-training.

Decisions: the second cycle of a pair is drawn anew in each epoch, uniformly from all that fit, as a pure function of
(seed, epoch, cycle). The relation is symmetric, so leaving out cycles without a pair never removes the pair of another.
Unknown metadata is never guessed: `drop` leaves such cycles out of pre-training, `own_group` makes "unknown" a value,
so that unknown locations pair with one another. A group with fewer cycles than a batch, or of one patient, is left out
of matched batches, because a cycle would be its own negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laennec.audio.augmentation import counter_generator
from laennec.errors import InputError
from laennec.training.data.targets import Codes, GroupTable, group_codes
from laennec.training.recipe import PretrainSettings
from laennec.training.samplers import CounterSampler, EpochSampler, MetadataMatchedSampler

# mode -> (columns that both cycles of a pair share, column in which they differ)
_SHARED: dict[str, tuple[list[str], str | None]] = {
    "same_recording": (["recording"], None),
    "same_patient_same_location": (["patient", "chest_location"], None),
    "same_patient_other_location": (["patient"], "chest_location"),
    "same_location_across_patients": (["chest_location"], "patient"),
}


class PositivePairs:
    """Draws the second cycle of a positive pair: it shares one group and differs in another.

    Args:
        shared: (cycles,) group that both share.
        apart: (cycles,) group in which they differ; None: any other cycle of the shared group.

    Attributes:
        counts: (cycles,) number of cycles that each may be paired with.
    """

    def __init__(self, shared: Codes, apart: Codes | None = None) -> None:
        apart = np.arange(len(shared)) if apart is None else apart
        self._order = np.lexsort((apart, shared))
        self._shared, self._apart = shared[self._order], apart[self._order]
        self._groups = np.stack([shared, apart])
        _, group, sizes = np.unique(shared, return_inverse=True, return_counts=True)
        _, inner, alike = np.unique(self._groups, axis=1, return_inverse=True, return_counts=True)
        self.counts: Codes = sizes[group] - alike[inner.reshape(-1)]

    def draw(self, row: int, seed: int, epoch: int, number: int) -> int | None:
        """The row that a cycle is paired with in an epoch, or None."""
        count = int(self.counts[row])
        if not count:
            return None
        shared, apart = self._groups[:, row]
        fitting = self._order[(self._shared == shared) & (self._apart != apart)]
        return int(fitting[counter_generator(seed, epoch, number, "positive pairs").integers(count)])


@dataclass
class PairSampling:
    """The cycles of pre-training, their positive pairs and their groups."""

    kept: Codes  # int64 rows of the table that are used
    positives: PositivePairs | None = None  # pairs of the kept rows; None where both views are of one cycle
    age_groups: Codes | None = None  # (kept,) age band of each, for the pair mode `age_band`; else None
    match_groups: Codes | None = None  # (kept,) group that a batch is drawn from; None where batches are not matched
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> number of cycles left out
    notes: list[str] = field(default_factory=list)  # one line each, for the console

    @property
    def paired_with_themselves(self) -> int:
        """Number of cycles without a second cycle, which are paired with themselves."""
        return 0 if self.positives is None else int((self.positives.counts == 0).sum())

    def leave_out(self, rows: Any, reason: str, note: str) -> None:
        """Leave out some of the kept cycles, (kept,) bool."""
        if rows.any():
            self.left_out[reason] = self.left_out.get(reason, 0) + int(rows.sum())
            self.notes.append(note)
            self.kept = self.kept[~rows]


def pair_sampling(settings: PretrainSettings, groups: GroupTable) -> PairSampling:
    """Choose the cycles that a pair mode and matched batches can use."""
    sampling = PairSampling(np.arange(groups.rows))
    shared, apart = _SHARED.get(settings.pairs, (["age_band"] if settings.pairs == "age_band" else [], None))
    # cycles with an unknown column first: they cannot be the second cycle of a pair either
    for name in dict.fromkeys([*shared, *([apart] if apart else []), *settings.match]):
        where = "pretrain.match" if name in settings.match else f"pretrain.pairs: {settings.pairs}"
        codes = groups.codes([name], settings.missing, where)
        note = f"{where}: {name} is {groups.describe_ungrouped(codes)}; left out (pretrain.missing: drop)"
        reason = f"cycles whose {name} is unknown"
        sampling.leave_out(np.isin(sampling.kept, np.flatnonzero(codes < 0)), reason, note)
    before = -1
    while len(sampling.kept) and before != len(sampling.kept):  # one rule can change what another rule leaves out
        before = len(sampling.kept)
        if settings.match:
            _leave_out_small_groups(settings, groups, sampling)
        if settings.pairs in _SHARED and len(sampling.kept):
            _pair(settings, groups, sampling)
    if len(sampling.kept) < 2:
        listed = ", ".join(f"{count} {reason}" for reason, count in sampling.left_out.items())
        remedy = f"left out are {listed}" if listed else "use a larger corpus"
        raise InputError(f"pretrain: {len(sampling.kept)} cycles are left, fewer than 2; {remedy}")
    if settings.match:
        sampling.match_groups = codes = _codes(groups, settings.match, sampling.kept)
        patients = _codes(groups, ["patient"], sampling.kept)
        counts = [len(np.unique(patients[codes == group])) for group in np.unique(codes)]
        if few := sum(count < settings.batch_size for count in counts):
            sampling.notes.append(
                f"pretrain.match: {few} groups have fewer than {settings.batch_size} patients, so their batches hold "
                "a patient more than once"
            )
    if settings.pairs == "age_band":
        sampling.age_groups = _codes(groups, ["age_band"], sampling.kept)
        if sampling.age_groups.max() < 1:
            raise InputError(
                "pretrain.pairs is age_band, but all cycles are of one band, so there are no negatives; set "
                "metadata.age_edges_years, or choose another mode"
            )
    return sampling


def make_pretrain_sampler(
    settings: PretrainSettings, sampling: PairSampling, patients: Sequence[Any], seed: int
) -> CounterSampler:
    """Shuffled batches, or batches of one group with as many patients as possible."""
    if sampling.match_groups is None:
        return EpochSampler(len(sampling.kept), seed)
    codes = group_codes([sampling.match_groups.tolist()])  # sorted as text, on which draws depend
    return MetadataMatchedSampler(codes, settings.batch_size, patients, seed)


def _codes(groups: GroupTable, names: list[str], rows: Codes) -> Codes:
    """Groups of some rows; unknown values are a group of their own."""
    columns = [groups.column(name, "pretrain") for name in names]
    return group_codes([[column[row] for row in rows.tolist()] for column in columns], "own_group")


def _leave_out_small_groups(settings: PretrainSettings, groups: GroupTable, sampling: PairSampling) -> None:
    codes = _codes(groups, settings.match, sampling.kept)
    patients = _codes(groups, ["patient"], sampling.kept)
    small = np.zeros(len(codes), dtype=bool)
    for group in range(int(codes.max()) + 1):
        member = codes == group
        small |= member & (len(np.unique(patients[member])) < 2 or int(member.sum()) < settings.batch_size)
    named = " + ".join(settings.match)
    sampling.leave_out(
        small,
        f"cycles of groups by {named} that fill no batch",
        f"pretrain.match: {len(np.unique(codes[small]))} of {int(codes.max()) + 1} groups by {named} have fewer "
        f"than 2 patients or {settings.batch_size} cycles and are left out ({int(small.sum())} cycles)",
    )


def _pair(settings: PretrainSettings, groups: GroupTable, sampling: PairSampling) -> None:
    """Make the pairs of the kept cycles, and leave out the cycles without one where the settings say so."""
    shared, apart = _SHARED[settings.pairs]

    def positives() -> PositivePairs:
        differ = None if apart is None else _codes(groups, [apart], sampling.kept)
        return PositivePairs(_codes(groups, shared, sampling.kept), differ)

    sampling.positives = positives()
    unpaired = sampling.positives.counts == 0
    if not unpaired.any():
        return
    share = f"{int(unpaired.sum())} of {len(unpaired)} cycles have no positive pair"
    if unpaired.all():
        raise InputError(f"pretrain.pairs is {settings.pairs}, but {share}; choose another mode, or pairs: self")
    note = f"pretrain.pairs: {share} under {settings.pairs} and are"
    if settings.unpaired == "drop":
        sampling.leave_out(unpaired, "cycles without a positive pair", f"{note} left out")
        sampling.positives = positives()
    else:
        sampling.notes.append(f"{note} paired with themselves")
