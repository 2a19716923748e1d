"""From the name of a corpus to its split cycle tables.

Decisions: what a split is worth travels with it. Corpus, fingerprints, protocol, seed, validation rule, leaks and
stamp are written into the description of every part, the only place that survives select, map and saving; `provenance`
reads it back. A published partition is refused on a folder that lacks recordings, and stamped where that was overruled.
"""

import difflib
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets

from laennec.corpora import icbhi2017
from laennec.corpora.base import TABLE_VERSION, CycleTableBuilder
from laennec.corpora.exported import original_folder
from laennec.corpora.files import named
from laennec.corpora.folder import Folder
from laennec.corpora.hub import OPTIONS, Hub
from laennec.corpora.icbhi2017 import Icbhi2017, Synthetic
from laennec.corpora.physionet2016 import LEVELS, PhysioNet2016
from laennec.corpora.protocols import BY_RECORDING, protocol_named
from laennec.corpora.splits import SplitResult, split_table
from laennec.corpora.sprsound import SprSound
from laennec.errors import InputError
from laennec.files import cache_root
from laennec.untrusted import read_json

CORPORA: dict[str, type[CycleTableBuilder]] = {
    "icbhi2017": Icbhi2017,
    "sprsound": SprSound,
    "physionet2016": PhysioNet2016,
    "folder": Folder,
    "hub": Hub,
    "synthetic": Synthetic,
}
_DEFAULT_PROTOCOLS = {
    "icbhi2017": "official",
    "sprsound": "sprsound-official",
    "physionet2016": "database-out",
    "hub": "published-parts",
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": ("annotations", "unlabelled"),
    "physionet2016": ("window_s", "hop_s", "quality", "validation_folder"),
    "hub": OPTIONS,
}
_LEVELS: dict[str, tuple[str, ...]] = {"sprsound": ("event", "record"), "physionet2016": LEVELS}  # the default first
_KEY = "laennec"


def load_corpus(
    name: str,
    data_dir: str | Path | None = None,
    *,
    protocol: str | None = None,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    tables_dir: str | Path | None = None,
    allow_missing: bool = False,
    level: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> datasets.DatasetDict:
    """Load a corpus as cycle tables, split by a protocol.

    Args:
        name: "icbhi2017", "sprsound", "physionet2016", "folder", "hub" or "synthetic".
        data_dir: Its folder or zip archive; or what `laennec prepare --export` made of it: that folder, or
            hf://datasets/OWNER/NAME (with @REVISION where it shall never change), which stand for the corpus' own
            folder with every byte of its files. A synthetic corpus is written there if nothing is there yet; None: in
            the cache.
        protocol: A name in `laennec.corpora.splits.PROTOCOLS`, or "none" for one part called "all". None takes the
            corpus' own: official, sprsound-official, database-out, published-parts, or patient-60-20-20.
        fold: The test fold, under a protocol with folds.
        validation_fraction: Share of train to carve out as validation.
        seed: Seed of every draw of the split.
        tables_dir: Where the patient and split tables are, if not beside the recordings.
        allow_missing: Accept a corpus that lacks recordings; every number made on it says so.
        level: SPRSound: "event" or "record"; physionet2016: "recording" or "window". None: the first of these.
        cache_dir: Root of the caches; see `laennec.corpora.files.cache_root`.
        **options: annotations (folder: the CSV), unlabelled (folder: take what has no label too, recordings that nobody
            annotated as one row each); the attributes of `PhysioNet2016Config` or `HubConfig`;
            for a synthetic corpus that is written patients,
            recordings_per_patient, cycles_per_recording, max_rate_hz and corpus_seed.

    Returns:
        Parts in the order train, validation, test (SPRSound: test_intra, test_inter). Columns as in
        `laennec.corpora.base.CYCLE_FEATURES`.

    Raises:
        InputError: What is wrong with the corpus, the options or the split, and what to do.
    """
    protocol = protocol_of(name, protocol)
    builder = open_corpus(name, data_dir, tables_dir, allow_missing, level, cache_dir, **options)
    return split_corpus(
        builder,
        builder.table,
        protocol,
        fold=fold,
        validation_fraction=validation_fraction,
        seed=seed,
        tables_dir=tables_dir,
        allow_missing=allow_missing,
    )


def protocol_of(name: str, protocol: str | None) -> str:
    """The protocol that is meant: the one given, or the corpus' own.

    Raises:
        InputError: There is none of this name.
    """
    if protocol is None:
        protocol = _DEFAULT_PROTOCOLS.get(name, "patient-60-20-20")
    if protocol != "none":
        protocol_named(protocol)  # a wrong name should not wait for the corpus to be read
    return protocol


def split_corpus(
    builder: CycleTableBuilder,
    made: Callable[[], datasets.Dataset],
    protocol: str,
    *,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    tables_dir: str | Path | None = None,
    allow_missing: bool = False,
) -> datasets.DatasetDict:
    """The cycle tables of an opened corpus, split by a protocol.

    Args:
        builder: What `open_corpus` returned.
        made: Gives its table; called once it is known that the protocol has what it needs.
        protocol: As for `load_corpus`, and not None.
        fold: As for `load_corpus`; so are the other arguments.
        validation_fraction: Likewise.
        seed: Likewise.
        tables_dir: Likewise.
        allow_missing: Likewise.

    Raises:
        InputError: As `load_corpus`.
    """
    name = builder.NAME
    facts = {
        "corpus": name,
        "corpus_fingerprint": builder.manifest.corpus_fingerprint,
        "table_version": TABLE_VERSION,
        "level": builder.config.level,
        "protocol": protocol,
    }
    published, missing = _published(builder, protocol, tables_dir, allow_missing)
    table = made()
    if protocol == "none":
        stamps = [_incomplete(missing)] if missing else []
        return datasets.DatasetDict(all=_described(table, {**facts, "stamp": "; ".join(stamps) or None}))
    published["class_column"] = builder.corpus.class_column
    split = split_table(table, protocol, fold=fold, validation_fraction=validation_fraction, seed=seed, **published)
    facts |= _split_facts(split, validation_fraction, "folds" in published, missing)
    if protocol == "published-parts" and any(entry.part == "validation" for entry in builder.corpus.entries):
        facts["validation"] = "the validation part of the dataset itself"
    parts = {}
    for part, rows in split.parts.items():
        if len(rows) == 0 and part != "validation":
            warnings.warn(f"{name}: part {part} of protocol {protocol} has no cycles", stacklevel=3)
        parts[part] = _described(table.select(rows), facts)
    return datasets.DatasetDict(parts)


def open_corpus(
    name: str,
    data_dir: str | Path | None,
    tables_dir: str | Path | None = None,
    allow_missing: bool = False,
    level: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> CycleTableBuilder:
    """The builder of a corpus, with what it found on disk; arguments as for `load_corpus`."""
    kind, folder, settings = locate_corpus(name, data_dir, tables_dir, allow_missing, level, cache_dir, **options)
    return kind(folder, cache_dir, **settings)


def locate_corpus(
    name: str,
    data_dir: str | Path | None,
    tables_dir: str | Path | None = None,
    allow_missing: bool = False,
    level: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> tuple[type[CycleTableBuilder], Path, dict[str, Any]]:
    """The builder class of a corpus, its folder and the builder's settings; arguments as for `load_corpus`.

    Raises:
        InputError: No such corpus, no folder, or an option it does not have.
    """
    if name not in CORPORA:
        nearest = difflib.get_close_matches(str(name), CORPORA, n=1, cutoff=0.0)[0]
        raise InputError(f"no corpus is called {name!r}; did you mean {nearest!r}? Valid: {', '.join(CORPORA)}")
    levels = _LEVELS.get(name, ("event",))
    if level is not None and level not in levels:
        raise InputError(f"{name} has no level {level!r}; valid: {', '.join(levels)}")
    settings: dict[str, Any] = {"tables_dir": tables_dir, "allow_missing": allow_missing, "level": level or levels[0]}
    if data_dir is not None and name != "hub":  # which reads anybody's Parquet, an export's too
        data_dir = original_folder(name, data_dir, cache_dir)
    if name == "synthetic" and (data_dir is None or not Path(data_dir).exists()):
        return CORPORA[name], _synthetic_folder(data_dir, cache_dir, options), settings
    if data_dir is None and name == "hub" and options.get("repo"):
        data_dir = str(options["repo"])
    if data_dir is None:
        raise InputError(f"{name}: no data_dir given; name the folder or archive with the recordings (--data-dir)")
    if name == "synthetic":
        _refuse_other_options(Path(data_dir), options)
        return CORPORA[name], Path(data_dir), settings
    _refuse_unknown(name, options, _OPTIONS.get(name, ()))
    return CORPORA[name], Path(data_dir), settings | options


def provenance(parts: datasets.DatasetDict | datasets.Dataset) -> dict[str, Any]:
    """What a corpus and its split are, as `load_corpus` wrote it into them.

    Args:
        parts: What `load_corpus` returned, or one of its parts, also after select, map, or saving and loading.

    Returns:
        corpus, corpus_fingerprint, table_version, level, protocol, stamp, and for a split fold, seed,
        split_fingerprint, part_fingerprints, validation, validation_fraction, published_folds, leaks (lines) and
        missing_recordings. Empty for tables from elsewhere.
    """
    for part in parts.values() if isinstance(parts, dict) else [parts]:
        try:
            return dict(json.loads(part.info.description)[_KEY])
        except (ValueError, KeyError, TypeError):
            continue
    return {}


def _described(table: datasets.Dataset, facts: dict[str, Any]) -> datasets.Dataset:
    table.info.description = json.dumps({_KEY: facts}, ensure_ascii=False)
    return table


def _split_facts(split: SplitResult, validation_fraction: float, published_folds: bool, missing: int) -> dict[str, Any]:
    unknown = split.protocol in BY_RECORDING and split.leaks.cycles_without_patient
    who = "recordings (patients are not known)" if unknown else "patients"
    if "validation" not in split.parts:
        rule = "none"
    elif split.protocol == "patient-60-20-20":
        rule = "20 % of the corpus, whole patients, stratified by chest location"
    elif split.protocol == "random-80-20":
        rule = f"{validation_fraction:.0%} of the train cycles, drawn at random"
    else:
        rule = f"about {validation_fraction:.0%} of the train cycles, whole {who} in no test part, stratified by label"
    stamps = [stamp for stamp in (split.stamp, _incomplete(missing) if missing else None) if stamp]
    return {
        "fold": split.fold,
        "seed": split.seed,
        "split_fingerprint": split.fingerprint,
        "part_fingerprints": split.part_fingerprints,
        "validation": rule,
        "validation_fraction": validation_fraction,
        "published_folds": published_folds,
        "leaks": split.leaks.shared,
        "missing_recordings": missing,
        "stamp": "; ".join(stamps) or None,
    }


def _incomplete(missing: int) -> str:
    total = icbhi2017.OFFICIAL_RECORDINGS
    return f"incomplete: {total - missing} of the {total} recordings"


def _published(
    builder: CycleTableBuilder, protocol: str, tables_dir: str | Path | None, allow_missing: bool
) -> tuple[dict[str, Any], int]:
    """The published split or folds that a protocol needs, and how many recordings of the database are missing."""
    corpus = builder.corpus
    if not isinstance(builder, Icbhi2017):
        return {}, 0
    places = [corpus.root, Path(str(builder.config.data_dir)).expanduser().absolute()]
    split_path = icbhi2017.find_in(places, "split", tables_dir)
    folds_path = icbhi2017.find_in(places, "folds", tables_dir) if protocol == "patient-5fold" else None
    split = icbhi2017.read_official_split(split_path) if split_path else None
    published: dict[str, Any] = {}
    if protocol in ("official", "official-strict"):
        if split is None:
            names = " or ".join(icbhi2017.TABLE_NAMES["split"])
            remedy = "put it beside the folder or name its folder (--tables-dir)"
            raise InputError(f"{corpus.root}: protocol {protocol} needs {names}; {remedy}")
        published["official_split"] = split
    if folds_path is not None:
        published["folds"] = icbhi2017.read_folds(folds_path)
    if isinstance(builder, Synthetic):
        return published, 0
    missing, which = icbhi2017.missing_recordings({entry.recording_id for entry in corpus.entries}, split)
    lacking = (
        f"{corpus.root}: {missing} of the {icbhi2017.OFFICIAL_RECORDINGS} recordings of ICBHI 2017 are missing{which}"
    )
    if missing and published and not allow_missing:
        remedy = "add them, or pass allow_missing=True (--allow-missing)"
        raise InputError(f"{lacking}, and protocol {protocol} is defined on all; {remedy}")
    if missing:
        warnings.warn(f"{lacking}; what is measured on it is stamped incomplete", stacklevel=4)
    return published, missing


def _refuse_unknown(name: str, options: dict[str, Any], valid: tuple[str, ...]) -> None:
    wrong = sorted(set(options) - set(valid))
    if wrong:
        raise InputError(f"{name} has no option {named(wrong)}; valid: {', '.join(valid) or 'none'}")


def _synthetic_folder(data_dir: str | Path | None, cache_dir: str | Path | None, options: dict[str, Any]) -> Path:
    """A synthetic corpus, written on first use: in the given folder, or in the cache."""
    from laennec.corpora import synthetic

    settings = {"seed": 0, **_synthetic_settings(options)}
    if data_dir is not None:
        # another process may be writing it at this moment
        return synthetic.write_corpus(data_dir, **settings, reuse=True)
    made_of = json.dumps([version("laennec"), settings], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    folder = cache_root(cache_dir) / "synthetic" / digest
    if not folder.is_dir():
        synthetic.write_corpus(folder, **settings, reuse=True)
    return folder


def _synthetic_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a synthetic corpus as `write_corpus` calls them."""
    from laennec.corpora import synthetic

    own = set(inspect.signature(synthetic.write_corpus).parameters) - {"folder", "seed", "reuse"}
    _refuse_unknown("synthetic", options, (*sorted(own), "corpus_seed"))
    return {"seed" if key == "corpus_seed" else key: value for key, value in options.items()}


def _refuse_other_options(folder: Path, options: dict[str, Any]) -> None:
    """Refuse options that an existing synthetic corpus was not written with."""
    from laennec.corpora.synthetic import MARK

    wanted = _synthetic_settings(options)
    if not wanted:
        return
    try:
        written = read_json(folder / MARK)["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "leave the options out, or choose another folder"
        raise InputError(f"{folder}: no {MARK} that says how this corpus was written; {remedy}") from error
    for key, value in wanted.items():
        if written.get(key) != value:
            said = f"{key} {written.get(key)!r}, not {value!r}"
            raise InputError(f"{folder}: a synthetic corpus with {said}; choose another folder or remove this one")
