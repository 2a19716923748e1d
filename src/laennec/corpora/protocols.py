"""The named ways to split, and what each promises.

Decisions: a protocol promises something for every pair of its splits (the two share no patient, or at least no
recording, or only no cycle), so that a split can be checked against its name. The default promise is the strongest; a
protocol lists its exceptions.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laennec.errors import InputError

Unit = Literal["patient", "recording", "cycle"]
Pair = tuple[str, str]

PART_ORDER = ("train", "validation", "test", "test_other_devices", "test_intra", "test_inter")


@dataclass(frozen=True)
class Protocol:
    """A named way to split a corpus.

    Attributes:
        name: The word that recipes, reports and cards use.
        description: One sentence on who goes where.
        weaker: Pairs of parts that promise less than disjoint patients, and what it is that they do not share.
        stamp: What every number of this protocol has to carry, or None.
    """

    name: str
    description: str
    weaker: Mapping[Pair, Unit] = field(default_factory=dict)
    stamp: str | None = None

    def promise(self, one: str, other: str) -> Unit:
        """What the two parts never share: whole patients, whole recordings, or nothing larger than a cycle."""
        return self.weaker.get((one, other)) or self.weaker.get((other, one)) or "patient"


_ONLY_CYCLES: dict[Pair, Unit] = {
    ("train", "validation"): "cycle",
    ("train", "test"): "cycle",
    ("validation", "test"): "cycle",
}

_ONLY_RECORDINGS: dict[Pair, Unit] = {
    ("train", "validation"): "recording",
    ("train", "test"): "recording",
    ("validation", "test"): "recording",
}
WITH_FOLDS = ("patient-5fold", "device-out", "database-out", "published-folds")
OTHER_DEVICES = "test_other_devices"
# where a recording stands in for its patient if nobody knows the patient
BY_RECORDING = ("recording-80-20", "database-out", "validation-folder", "published-parts", "published-folds")

# what any corpus with patients can be split by
COMMON_PROTOCOLS = (
    *("patient-60-20-20", "patient-5fold", "random-80-20", "recording-80-20", "device-out"),
    *("published-parts", "published-folds"),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "official",
            "ICBHI 2017 as published, by recording (60/40); patients 156 and 218 are in train and test.",
            {("train", "test"): "recording"},
        ),
        Protocol(
            "official-strict",
            "The published ICBHI 2017 split, with every recording of a patient found in both parts moved to test.",
        ),
        Protocol(
            "patient-5fold",
            "Five folds of whole patients, the published ones where given; `fold` is the test fold.",
        ),
        Protocol(
            "patient-60-20-20",
            "60 % train, 20 % validation and 20 % test by whole patients, stratified by chest location.",
        ),
        Protocol(
            "random-80-20",
            "80 % train and 20 % test of randomly drawn cycles (Song et al. 2021); patients and recordings are shared.",
            _ONLY_CYCLES,
            "leaky: random cycles",
        ),
        Protocol(
            "recording-80-20",
            "80 % train and 20 % test of randomly drawn recordings; patients are shared.",
            {("train", "test"): "recording", ("validation", "test"): "recording"},
            "leaky: random recordings",
        ),
        Protocol(
            "sprsound-official",
            "SPRSound as published: test_intra holds other recordings of train patients, test_inter unseen patients.",
            {("train", "test_intra"): "recording", ("validation", "test_intra"): "recording"},
        ),
        Protocol(
            "device-out",
            "One stethoscope left out: device `fold`, in alphabetical order, is the test part. Recordings that its "
            "patients have of other devices are a test part of their own, test_other_devices.",
            {("test", OTHER_DEVICES): "recording"},
        ),
        Protocol(
            "database-out",
            "PhysioNet/CinC 2016: database `fold` (0 is a, 5 is f) is the test part. Patients are not published; "
            "databases come from different research groups.",
            {("train", "validation"): "recording"},
        ),
        Protocol(
            "validation-folder",
            "PhysioNet/CinC 2016: train on the training databases, test on the folder validation; refused where that "
            "folder holds copies of training recordings.",
            {("train", "validation"): "recording"},
        ),
        Protocol(
            "published-parts",
            "A dataset's own train, validation and test parts; what groups they share is reported.",
            _ONLY_RECORDINGS,
        ),
        Protocol(
            "published-folds",
            "A dataset's own folds; `fold` is the test fold. What groups the parts share is reported.",
            _ONLY_RECORDINGS,
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        InputError: There is none; names the nearest one.
    """
    if name not in PROTOCOLS:
        nearest = difflib.get_close_matches(str(name), PROTOCOLS, n=1, cutoff=0.0)
        raise InputError(f"no protocol is called {name!r}; did you mean {nearest[0]!r}? Valid: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def part_rank(name: str) -> tuple[int, str]:
    """Sorting key that puts parts in the order train, validation, test."""
    return (PART_ORDER.index(name) if name in PART_ORDER else len(PART_ORDER), name)
