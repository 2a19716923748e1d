"""Which other cycle a cycle is paired with, and who meets whom, in pre-training.

Decisions: a partner is drawn anew in each epoch, uniformly from all that fit, as a pure function of (seed, epoch,
cycle); being a partner is mutual, so leaving out cycles without one takes nobody's partner away. What is unknown is
never guessed: `drop` leaves such cycles out of pre-training, `own_group` makes the unknown a value like any other, so
that unknown locations pair with one another. A group of fewer cycles than a batch has rows, or of one patient, is left
out of matched batches: a cycle met as its own negative teaches nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laennec.audio.augmentation import counter_generator
from laennec.training.metadata_groups import Codes, GroupTable, group_codes
from laennec.training.recipe import ConfigError, PretrainSettings
from laennec.training.samplers import CounterSampler, EpochSampler, MetadataMatchedSampler

# mode -> (what both cycles share, what they must not share); a cycle is never its own partner
_SHARED: dict[str, tuple[str, str | None]] = {
    "same_patient_same_location": ("patient+chest_location", None),
    "same_patient_other_location": ("patient", "chest_location"),
    "same_location_across_patients": ("chest_location", "patient"),
}


class Partners:
    """Draws partners that share one group and not the other.

    Args:
        shared: (cycles,) group that both are of; below 0 where unknown, such cycles have no partner.
        apart: (cycles,) group that only one of them may be of; None where all but the cycle itself may be drawn.

    Attributes:
        counts: (cycles,) how many cycles each may be paired with.
    """

    def __init__(self, shared: Codes, apart: Codes | None = None) -> None:
        known = shared >= 0
        if apart is not None and not (known & (apart >= 0)).all():
            raise ValueError("cycles of an unknown group must be left out before")
        rows = np.arange(len(shared))
        inner = rows if apart is None else apart
        # rows in blocks of the shared group, and within them in blocks of what must differ
        self._order = np.lexsort((inner, shared))
        by_block = np.stack([shared[self._order], inner[self._order]])
        self._place = np.empty_like(rows)
        self._place[self._order] = rows
        self._outer = _blocks(by_block[:1])[:, self._place]  # (start and size, cycles)
        self._inner = _blocks(by_block)[:, self._place]
        self.counts: Codes = np.where(known, self._outer[1] - self._inner[1], 0)

    def draw(self, row: int, seed: int, epoch: int, number: int) -> int | None:
        """The partner of a cycle in an epoch, or None.

        Args:
            row: The cycle.
            seed: Of the run.
            epoch: Counted from 0.
            number: The cycle's own number, the counter of its draws.
        """
        count = int(self.counts[row])
        if not count:
            return None
        step = int(counter_generator(seed, epoch, number, "partners").integers(count))
        place = int(self._outer[0, row]) + step
        if place >= self._inner[0, row]:  # jump over the block that must not be drawn
            place += int(self._inner[1, row])
        return int(self._order[place])


def _blocks(keys: Codes) -> Codes:
    """Start and size of the run of equal columns that each place lies in: (keys, places) -> (2, places)."""
    places = keys.shape[1]
    begins = np.ones(places, dtype=bool)
    begins[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    starts = np.flatnonzero(begins)
    block = np.cumsum(begins) - 1
    return np.stack([starts[block], np.diff(np.append(starts, places))[block]])


@dataclass
class Meeting:
    """Who takes part and whom they meet.

    Attributes:
        kept: int64 rows of the table that take part.
        partners: Over the kept rows; None where both views are of one cycle.
        age_groups: (kept,) age band of each; None but under `age_band`.
        match_groups: (kept,) group that a batch is drawn from; None where batches are not matched.
        left_out: What was left out, and why, in numbers.
        notes: One line each, for a person.
    """

    kept: Codes
    partners: Partners | None = None
    age_groups: Codes | None = None
    match_groups: Codes | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def paired_with_themselves(self) -> int:
        """How many cycles found no partner and are paired with themselves."""
        return 0 if self.partners is None else int((self.partners.counts == 0).sum())


def meeting_of(settings: PretrainSettings, groups: GroupTable) -> Meeting:
    """Decide which cycles take part under a pair mode and matched batches.

    Args:
        settings: Pair mode, columns to match, and what happens to the unknown and the partnerless.
        groups: Metadata of all cycles at hand.

    Raises:
        ConfigError: A column does not exist or is unknown for all, or nobody is left.
    """
    meeting = Meeting(np.arange(groups.rows))
    # cycles with an unknown column go first: they may be nobody's partner either
    for name in _columns(settings):
        where = "pretrain.match" if name in settings.match else f"pretrain.pairs: {settings.pairs}"
        codes = groups.codes([name], settings.missing, where)
        unknown = np.flatnonzero(codes < 0)
        if len(unknown):
            meeting.left_out[f"cycles whose {name} is unknown"] = len(unknown)
            meeting.notes.append(f"{where}: {name} is {groups.whose(codes)}; left out (pretrain.missing: drop)")
        meeting.kept = np.setdiff1d(meeting.kept, unknown)
    before = -1
    while before != len(meeting.kept):  # whom one rule leaves out may be what another rule counted on
        before = len(meeting.kept)
        if settings.match:
            _leave_out_small_groups(settings, groups, meeting)
        if settings.pairs in _SHARED:
            _pair(settings, groups, meeting)
    if settings.match:
        _note_groups_of_few(settings, groups, meeting)
        meeting.match_groups = _codes(groups, settings.match, meeting.kept)
    if settings.pairs == "age_band" and len(meeting.kept):
        meeting.age_groups = _codes(groups, ["age_band"], meeting.kept)
        if meeting.age_groups.max(initial=-1) < 1:
            raise ConfigError(
                "pretrain.pairs is age_band, but all cycles that take part are of one band: there is nothing to tell "
                "apart; set metadata.age_edges_years, or choose another mode"
            )
    if len(meeting.kept) < 2:
        raise ConfigError(f"pretrain: {len(meeting.kept)} cycles can take part, fewer than 2; {_reasons(meeting)}")
    return meeting


def make_pretrain_sampler(
    settings: PretrainSettings, meeting: Meeting, patients: Sequence[Any], seed: int
) -> CounterSampler:
    """Batches of the cycles that take part: shuffled, or of one group with each patient once as far as possible.

    Args:
        settings: Batch size.
        meeting: Who takes part, and their groups.
        patients: Patient of each of them.
        seed: Of the run.
    """
    if meeting.match_groups is None:
        return EpochSampler(len(meeting.kept), seed)
    return MetadataMatchedSampler([meeting.match_groups.tolist()], settings.batch_size, patients, seed=seed)


def _columns(settings: PretrainSettings) -> list[str]:
    """The columns that a cycle's part in pre-training hangs on."""
    shared, apart = _SHARED.get(settings.pairs, ("age_band" if settings.pairs == "age_band" else "", None))
    names = [*shared.split("+"), apart, *settings.match]
    return list(dict.fromkeys(name for name in names if name))


def _codes(groups: GroupTable, names: list[str], rows: Codes) -> Codes:
    """Groups among some rows; none of their values is to be dropped any more."""
    columns = [groups.column(name, "pretrain") for name in names]
    return group_codes([[column[row] for row in rows.tolist()] for column in columns], "own_group")


def _leave_out_small_groups(settings: PretrainSettings, groups: GroupTable, meeting: Meeting) -> None:
    if not len(meeting.kept):
        return
    codes = _codes(groups, settings.match, meeting.kept)
    patients = _codes(groups, ["patient"], meeting.kept)
    small = np.zeros(len(codes), dtype=bool)
    for group in range(int(codes.max()) + 1):
        member = codes == group
        people = len(np.unique(patients[member]))
        small |= member & (people < 2 or int(member.sum()) < settings.batch_size)
    named = " + ".join(settings.match)
    if small.any():
        what = f"cycles of groups by {named} that fill no batch"
        meeting.left_out[what] = meeting.left_out.get(what, 0) + int(small.sum())
        meeting.notes.append(
            f"pretrain.match: {len(np.unique(codes[small]))} of {int(codes.max()) + 1} groups by {named} have fewer "
            f"than 2 patients or {settings.batch_size} cycles and are left out ({int(small.sum())} cycles)"
        )
    meeting.kept = meeting.kept[~small]


def _note_groups_of_few(settings: PretrainSettings, groups: GroupTable, meeting: Meeting) -> None:
    """Say how many of the groups that are left cannot fill a batch with different patients."""
    if not len(meeting.kept):
        return
    codes, patients = (_codes(groups, names, meeting.kept) for names in (settings.match, ["patient"]))
    people = [len(np.unique(patients[codes == group])) for group in np.unique(codes)]
    if few := sum(count < settings.batch_size for count in people):
        meeting.notes.append(
            f"pretrain.match: {few} groups have fewer than {settings.batch_size} patients, so their batches hold "
            "a patient more than once"
        )


def _pair(settings: PretrainSettings, groups: GroupTable, meeting: Meeting) -> None:
    if not len(meeting.kept):
        return
    shared, apart = _SHARED[settings.pairs]

    def partners() -> Partners:
        differ = None if apart is None else _codes(groups, [apart], meeting.kept)
        return Partners(_codes(groups, shared.split("+"), meeting.kept), differ)

    meeting.partners = partners()
    alone = meeting.partners.counts == 0
    if not alone.any():
        return
    share = f"{int(alone.sum())} of {len(alone)} cycles have no partner"
    if alone.all():
        raise ConfigError(f"pretrain.pairs is {settings.pairs}, but {share}; choose another mode, or pairs: self")
    if settings.unpaired == "drop":
        what = "cycles without a partner"
        meeting.left_out[what] = meeting.left_out.get(what, 0) + int(alone.sum())
        meeting.notes.append(f"pretrain.pairs: {share} under {settings.pairs} and are left out")
        meeting.kept = meeting.kept[~alone]
        meeting.partners = partners()
    else:
        meeting.notes.append(f"pretrain.pairs: {share} under {settings.pairs} and are paired with themselves")


def _reasons(meeting: Meeting) -> str:
    said = ", ".join(f"{count} {what}" for what, count in meeting.left_out.items())
    return f"left out are {said}" if said else "use a larger corpus"
