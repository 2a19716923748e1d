"""Several corpora as one: each split in one table, with a column that names the corpus of a cycle.

Decisions: each corpus is loaded and split by itself, so the promise of its protocol holds. Ids begin with the name of
the corpus ("icbhi2017:101"), so that no patient, recording or cycle of two corpora has the same id. The labels are
crackle and wheeze, which every corpus must have; columns that only one corpus has are left out. Names of devices are
kept, because corpora may share a stethoscope. The provenance contains that of each corpus (key "corpora").
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from laennec.audio.cycles import LABELS
from laennec.corpora.base import CYCLE_FEATURES, class_names, column_of
from laennec.corpora.copies import files_of
from laennec.corpora.labels import NORMAL
from laennec.corpora.load import described, provenance
from laennec.corpora.splits import WITH_FOLDS, fingerprint, split_rank
from laennec.errors import InputError
from laennec.files import digest

_FEATURES = datasets.Features({**CYCLE_FEATURES, "corpus": datasets.Value("string")})
_IDS = ("cycle_id", "recording_id", "patient_id")
_FLAGS = ("crackle", "wheeze")
_WHOLE = ("record", "recording")  # levels whose rows are whole recordings
Splits = Mapping[str, Any]


def concatenate_corpora(corpora: Sequence[Splits]) -> datasets.DatasetDict:
    """Concatenate corpora split by split.

    Args:
        corpora: What `load_corpus` returned for each.

    Returns:
        The splits of all corpora; a split that only one corpus has holds the rows of that one. Columns as in
        `laennec.corpora.base.CYCLE_FEATURES`, and `corpus`; cycle, recording and patient ids are "CORPUS:ID".

    Raises:
        InputError: A corpus comes twice, is the only one without splits or has no crackle or wheeze labels, rows are
            events in one and whole recordings in another, or a device that one corpus holds out is in the training
            split of another.
    """
    if not corpora:
        raise InputError("no corpora given; give what load_corpus returned for each")
    named: dict[str, Splits] = {}
    for splits in corpora:
        if (name := str(provenance(splits).get("corpus"))) in named:  # type: ignore[arg-type]
            raise InputError(f"the corpus {name} is given twice; give each corpus once")
        named[name] = splits
    whole = [name for name, splits in named.items() if "all" in splits]
    if whole and len(whole) < len(named):
        raise InputError(
            f"{whole[0]}: with the protocol none its cycles are in no train or test split; choose corpus-out to test "
            "on all of them, or another protocol"
        )
    facts = {name: provenance(splits) for name, splits in named.items()}  # type: ignore[arg-type]
    levels = {name: str(own.get("level")) for name, own in facts.items()}
    if len({level in _WHOLE for level in levels.values()}) > 1:
        said = ", ".join(f"{name} {level}" for name, level in levels.items())
        raise InputError(
            f"rows of these corpora are not alike ({said}); choose levels that are all events or recordings"
        )
    for name, splits in named.items():
        for label in _FLAGS:
            if not any(
                set(column_of(table, label)) - {None} for table in splits.values() if label in table.column_names
            ):
                raise InputError(
                    f"{name}: no cycle has a known {label}, and several corpora are joined by their labels crackle and "
                    "wheeze; leave this corpus out"
                )
    _refuse_shared_recordings(named)
    _refuse_trained_devices(named, facts)
    tables: dict[str, list[datasets.Dataset]] = {}
    for name, splits in named.items():
        for split, table in splits.items():
            tables.setdefault(split, []).append(_harmonised(table, name))
    joined = {split: datasets.concatenate_datasets(tables[split]) for split in sorted(tables, key=split_rank)}
    about = _provenance(facts, joined)
    return datasets.DatasetDict({split: described(table, about) for split, table in joined.items()})


def _harmonised(table: datasets.Dataset, corpus: str) -> datasets.Dataset:
    """The common columns of a cycle table, ids with the name of the corpus, labels of the four classes."""
    rows = table.select_columns(list(CYCLE_FEATURES)).with_format("arrow")[:]
    columns = {name: rows[name] for name in rows.column_names}
    for name in _IDS:
        columns[name] = pc.binary_join_element_wise(corpus, rows[name].cast(pa.string()), ":")
    if tuple(class_names(table, "label")) != LABELS:  # labels of a corpus' own
        label = pc.add(rows["crackle"], pc.multiply(rows["wheeze"], 2))
        # what has neither crackle nor wheeze, but another label, is not normal
        other = pa.array([bool(set(names or ()) - {NORMAL}) for names in rows["events"].to_pylist()])
        unknown = pc.and_(other, pc.equal(label, LABELS.index(NORMAL)))
        columns["label"] = pc.if_else(unknown, pa.scalar(None, label.type), label)
    columns["corpus"] = pa.array([corpus] * len(rows), pa.string())
    return datasets.Dataset(pa.table(columns).select(list(_FEATURES)).cast(_FEATURES.arrow_schema))


def _refuse_shared_recordings(named: Mapping[str, Splits]) -> None:
    """Refuse corpora with the same recordings: one could be trained on what another one holds out."""
    for (one, own), (other, others) in itertools.combinations(named.items(), 2):
        theirs = set(files_of(others.values()).values())
        if both := [path for path, sha256 in files_of(own.values()).items() if sha256 in theirs]:
            raise InputError(
                f"{one} and {other} have {len(both)} recordings in common ({both[0]}); leave one of them out"
            )


def _refuse_trained_devices(named: Mapping[str, Splits], facts: Mapping[str, Any]) -> None:
    """Refuse a device that one corpus holds out and another one trains on."""
    for name, splits in named.items():
        held_out = set(column_of(splits["test"], "device")) if facts[name].get("protocol") == "device-out" else set()
        for other in named.keys() - {name}:
            seen = [named[other][split] for split in ("train", "validation") if split in named[other]]
            if both := held_out & {device for table in seen for device in column_of(table, "device")}:
                raise InputError(
                    f"{name} holds {min(both)} out (protocol device-out), and {other} trains on it; hold it out of "
                    f"{other} too, or give that corpus the protocol corpus-out"
                )


def _provenance(facts: Mapping[str, dict[str, Any]], joined: Splits) -> dict[str, Any]:
    """The provenance of the concatenated corpus."""

    def each(key: str) -> str:
        return "; ".join(f"{name}: {own[key]}" for name, own in facts.items() if own.get(key))

    def fold(own: Mapping[str, Any]) -> str:
        return f" fold {own['fold']}" if own.get("protocol") in WITH_FOLDS else ""

    shared: dict[tuple[str, str], int] = {}
    for own in facts.values():
        for one, other, count in own.get("shared_patients") or []:
            shared[one, other] = shared.get((one, other), 0) + count
    seeds = {own.get("seed") for own in facts.values()}
    ids = {split: column_of(table, "cycle_id") for split, table in joined.items()}
    return {
        "corpus": "+".join(facts),
        "corpora": dict(facts),
        "corpus_fingerprint": digest([[name, own.get("corpus_fingerprint")] for name, own in facts.items()]),
        "level": next(iter(facts.values())).get("level"),
        "protocol": ", ".join(f"{name}: {own.get('protocol')}{fold(own)}" for name, own in facts.items()),
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "split_fingerprint": fingerprint(ids),
        "part_fingerprints": {split: fingerprint({split: names}) for split, names in ids.items()},
        "validation": each("validation"),
        "leaks": [f"{name}: {line}" for name, own in facts.items() for line in own.get("leaks") or []],
        "shared_patients": [[*pair, count] for pair, count in shared.items()],
        "missing_recordings": sum(own.get("missing_recordings") or 0 for own in facts.values()),
        "stamp": each("stamp") or None,
    }
