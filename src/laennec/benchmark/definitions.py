"""What each benchmark fixes: corpus, protocol, and the splits with their fingerprints.

Decisions: the fingerprints are of the complete published corpora. A corpus whose training split or whose test split
differs is refused, because baselines are fitted on the one and scores computed on the other. A test split that is
published separately may be absent; a result then says so. Changes that affect scores raise the version.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.corpora.base import class_names, column_of
from laennec.corpora.load import open_corpus, provenance, split_corpus
from laennec.errors import InputError
from laennec.files import digest


@dataclass(frozen=True)
class FixedSplit:
    """A split as it is published."""

    fingerprint: str  # of its cycle ids, see `laennec.corpora.splits.fingerprint`
    cycles: int  # their number
    classes: Mapping[str, int] | None = None  # cycles of each class; None where that is not known here
    patients: int | None = None  # their number; None likewise
    effective_patients: Mapping[str, float] | None = None  # with each label
    # ICBHI Score of baselines; files have none of those that need recordings
    baselines: Mapping[str, float] | None = None
    annotations: str | None = None  # see `annotations_digest`


@dataclass(frozen=True)
class Benchmark:
    """Fixed splits that entries are scored on."""

    name: str  # its name on the command line
    version: int
    title: str  # what it measures
    corpus: str  # a name of `laennec.corpora.load.CORPORA`
    protocol: str  # a name of `laennec.corpora.splits.PROTOCOLS`
    train: FixedSplit  # the training split, without validation
    tests: Mapping[str, FixedSplit]  # the test splits by name
    trained_on: str | None = None  # the corpus that entries are trained on; None for any

    def refuse_training_on(self, data: str) -> None:
        """Refuse an entry that was trained on other data than the benchmark allows."""
        wanted, scored = self.trained_on, self.corpus.rstrip("0123456789")
        if wanted and (wanted not in data.casefold() or scored in data.casefold()):
            raise InputError(
                f"trained on {data}; {self.name} is for models trained on {wanted} alone (name it, and not {scored})"
            )


_SPRSOUND = FixedSplit(
    "dea6cd6d56cfb5514a63d8a0a36d4606c2b5d207666a602b68a19475db186d2b",
    5324,
    annotations="10a1ce6e61d03d50db893de8a6922dfae7a4648eb9470de332a4b9006f51d920",
)
_INTRA = FixedSplit(
    "5fe94e56152c8b2beab95923374137b5ea2b907eb26c117cc2f1cafba5b8ace0",
    1004,
    {"normal": 688, "crackle": 189, "wheeze": 124, "both": 3},
    160,
    {"crackle": 32.055652, "wheeze": 13.820908},
    {"always normal": 50.0, "majority class": 50.0, "event length": 67.57, "device": 50.0, "age, sex, location": 56.8}
    | {"level": 57.12, "bandwidth": 50.37},
    "d1612ade84b1f98d9487ec347ad6645813d13b0c1b949777afac0db1ddc19896",
)
# the events that a challenge entry predicts (github.com/HUJH511/BioCAS-2023-Grand_Challenge, models/12/out.json)
_INTER = FixedSplit("208ab41b06d85e6f5e39adb09f6273e42371e1487cd5dcd22284f86896a41042", 1429, patients=41)
_ICBHI = FixedSplit(
    "c7c9507d8b6c4cbe4b463bbc2d087897f1245dd3a05bca53e5d401fd8793c9b3",
    3312,
    annotations="1489c84acc436401033fc5b23acb4223d4a830a039c7e3a96017536ec7ee36ec",
)
_ICBHI_TEST = FixedSplit(
    "0aa055d2a61a9ebc3b4fd4b52e6b17dd8072d763dd5030d0894426c0c045a7dc",
    2756,
    {"normal": 1579, "crackle": 649, "wheeze": 385, "both": 143},
    49,
    {"crackle": 14.220449, "wheeze": 15.161192},
    # without that of age, sex and location: the table of patients may be absent
    {"always normal": 50.0, "majority class": 50.0, "event length": 41.2, "device": 37.13},
    "a8225fbb380b570b7520595f72ae7a81151fa7a6c4211e965b8e1f29691af367",
)
_OFFICIAL = ("icbhi2017", "official", _ICBHI, {"test": _ICBHI_TEST})
_SPLITS = ("sprsound", "sprsound-official", _SPRSOUND, {"test_intra": _INTRA, "test_inter": _INTER})
BENCHMARKS = {
    "sprsound": Benchmark(
        "sprsound", 1, "SPRSound: recordings of train patients (intra), new patients (inter)", *_SPLITS
    ),
    "icbhi": Benchmark(
        "icbhi", 1, "ICBHI 2017, official split; patients 156 and 218 are in train and test", *_OFFICIAL
    ),
    "cross": Benchmark("cross", 1, "trained on SPRSound, scored on ICBHI's official test", *_OFFICIAL, "sprsound"),
}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of this name."""
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def annotations_digest(cycles: Any) -> str:
    """SHA-256 over id, start and label of every cycle; ends are left out, for those of recordings may be earlier."""
    labels = class_names(cycles, "label")
    columns = (column_of(cycles, name) for name in ("cycle_id", "start_s", "label"))
    return digest(sorted([name, f"{start:.3f}", labels[k]] for name, start, k in zip(*columns, strict=True)))


def load_benchmark(benchmark: Benchmark, data_dir: str | Path, **options: Any) -> dict[str, Any]:
    """The cycle tables of a benchmark's splits, checked against the published ones; options as for `open_corpus`.

    Raises:
        InputError: Recordings are missing, or a split is not the published one.
    """
    corpus = open_corpus(benchmark.corpus, data_dir, **options)
    remedy = f"benchmark {benchmark.name} needs the complete corpus; get it from {corpus.homepage}"
    missing, total, which = corpus.missing_recordings()
    if missing:
        raise InputError(f"{corpus.root}: {missing} of the {total} recordings are missing{which}; {remedy}")
    splits = split_corpus(corpus, benchmark.protocol)
    if "train" not in splits or benchmark.tests.keys().isdisjoint(splits):
        raise InputError(f"{corpus.root}: no train or no {' or '.join(benchmark.tests)}; {remedy}")
    found = provenance(splits)["part_fingerprints"]
    for name, fixed in {"train": benchmark.train, **benchmark.tests}.items():
        if name not in splits:
            continue
        labels, counts = class_names(splits[name], "label"), Counter(column_of(splits[name], "label"))
        classes = {label: counts[k] for k, label in enumerate(labels)}
        if found[name] != fixed.fingerprint or fixed.classes not in (None, classes):
            raise InputError(
                f"{corpus.root}: {name} is not the published split: {len(splits[name])} cycles {classes}, fingerprint "
                f"{found[name][:12]}, instead of {fixed.cycles} cycles, fingerprint {fixed.fingerprint[:12]}; {remedy}"
            )
        if fixed.annotations not in (None, annotations_digest(splits[name])):
            raise InputError(
                f"{corpus.root}: labels or starts of cycles in {name} are not the published ones; get the annotations "
                f"again from {corpus.homepage}"
            )
    return dict(splits)
