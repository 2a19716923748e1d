"""From a corpus to its split cycle tables.

Decisions: what is known of a split travels with it. Corpus, fingerprints, protocol, seed, validation rule, leaks and
stamp are written into the description of every split, the only place that survives select, map and saving; `provenance`
reads it back. A published split is refused on a folder that lacks recordings, and stamped where the user accepts that.
"""

import dataclasses
import difflib
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import datasets

from laennec.corpora.base import TABLE_VERSION, Corpus, CorpusOptions
from laennec.corpora.exported import original_folder
from laennec.corpora.folder import Folder
from laennec.corpora.hub import Hub
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.corpora.physionet2016 import PhysioNet2016
from laennec.corpora.protocols import BY_RECORDING, protocol_named
from laennec.corpora.sources import named
from laennec.corpora.splits import SplitResult, split_table
from laennec.corpora.sprsound import SprSound
from laennec.corpora.synthetic import Synthetic
from laennec.errors import InputError
from laennec.extension import is_dotted_name, load_object

CORPORA: dict[str, type[Corpus]] = {
    corpus.name: corpus for corpus in (Icbhi2017, SprSound, PhysioNet2016, Folder, Hub, Synthetic)
}
_KEY = "laennec"


def load_corpus(
    corpus: str | type[Corpus],
    data_dir: str | Path | None = None,
    *,
    protocol: str | None = None,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> datasets.DatasetDict:
    """Load a corpus as cycle tables, split by a protocol.

    Args:
        corpus: "icbhi2017", "sprsound", "physionet2016", "folder", "hub" or "synthetic"; a subclass of `Corpus`; or the
            dotted name of one, "package.module:Name".
        data_dir: Its folder or zip archive; or what `laennec prepare --export` made of it: that folder, or
            hf://datasets/OWNER/NAME (with @REVISION to fix its version). A synthetic corpus is written there if nothing
            is there yet; None: in the cache.
        protocol: A name in `laennec.corpora.protocols.PROTOCOLS`, or "none" for one split called "all". None: the
            default protocol of the corpus.
        fold: The test fold, under a protocol with folds.
        validation_fraction: Share of train to carve out as validation.
        seed: Seed of every draw of the split.
        cache_dir: Root of the caches; see `laennec.files.cache_root`.
        **options: The attributes of the corpus' `options_class`: tables_dir (where the patient and split tables are),
            level (what a row is), allow_missing (accept a corpus that lacks recordings; every number made on it says
            so), and those of one corpus alone.

    Returns:
        The splits in the order train, validation, test (SPRSound: test_intra, test_inter). Columns as in
        `laennec.corpora.base.CYCLE_FEATURES`.

    Raises:
        InputError: What is wrong with the corpus, the options or the split, and what to do.
    """
    protocol = protocol_of(corpus, protocol)
    opened = open_corpus(corpus, data_dir, cache_dir, **options)
    return split_corpus(opened, protocol, fold=fold, validation_fraction=validation_fraction, seed=seed)


def corpus_class(corpus: str | type[Corpus], where: str = "corpus") -> type[Corpus]:
    """The class of a corpus, with its facts.

    Args:
        corpus: A registered name, a dotted name "package.module:Name", or a class.
        where: What named it, for errors, e.g. "recipe.yaml: corpus.name".

    Raises:
        InputError: There is no such corpus.
    """
    if isinstance(corpus, str) and is_dotted_name(corpus):
        corpus = load_object(corpus, where)
    if isinstance(corpus, type) and issubclass(corpus, Corpus) and not inspect.isabstract(corpus):
        return corpus
    if not isinstance(corpus, str):
        raise InputError(f"{where}: {corpus!r} is no corpus; give a class that subclasses laennec.Corpus")
    if corpus not in CORPORA:
        nearest = difflib.get_close_matches(corpus, CORPORA, n=1, cutoff=0.0)[0]
        raise InputError(
            f"no corpus is called {corpus!r}; did you mean {nearest!r}? Valid: {', '.join(CORPORA)}, or "
            "package.module:Name"
        )
    return CORPORA[corpus]


def find_corpus(name: str) -> type[Corpus] | None:
    """The class of a corpus by the name a run recorded, or None if it cannot be found here."""
    try:
        return corpus_class(name)
    except InputError:
        return None


def protocol_of(corpus: str | type[Corpus], protocol: str | None) -> str:
    """The protocol that is given, or else the default protocol of the corpus.

    Raises:
        InputError: The corpus has no protocol of this name.
    """
    kind = corpus_class(corpus)
    if protocol is None:
        return kind.default_protocol
    if protocol != "none":
        protocol_named(protocol)
        if protocol not in kind.protocols:
            raise InputError(f"{kind.name} has no protocol {protocol!r}; valid: {', '.join(kind.protocols)}, or none")
    return protocol


def open_corpus(
    corpus: str | type[Corpus], data_dir: str | Path | None, cache_dir: str | Path | None = None, **options: Any
) -> Corpus:
    """A corpus with what was found on disk; arguments and errors as for `load_corpus`."""
    kind, folder, options = locate_corpus(corpus, data_dir, cache_dir, **options)
    return kind(folder, cache_dir, **options)


def locate_corpus(
    corpus: str | type[Corpus], data_dir: str | Path | None, cache_dir: str | Path | None = None, **options: Any
) -> tuple[type[Corpus], str | Path, dict[str, Any]]:
    """The class of a corpus, where its data are, and its options; arguments as for `load_corpus`.

    Raises:
        InputError: No such corpus, no folder, or an option it does not have.
    """
    kind = corpus_class(corpus)
    valid = [field.name for field in dataclasses.fields(kind.options_class)]
    if wrong := sorted(set(options) - set(valid)):
        own = valid[len(dataclasses.fields(CorpusOptions)) :]
        raise InputError(f"{kind.name} has no option {named(wrong)}; valid: {', '.join(own) or 'none'}")
    if data_dir is not None and kind.can_be_exported:
        data_dir = original_folder(kind.name, data_dir, cache_dir)
    return kind, *kind.locate(data_dir, cache_dir, options)


def split_corpus(
    corpus: Corpus, protocol: str, *, fold: int = 0, validation_fraction: float = 0.2, seed: int = 0
) -> datasets.DatasetDict:
    """The cycle tables of an opened corpus, split by a protocol; arguments and errors as for `load_corpus`."""
    corpus.check_usable()
    published = corpus.published_split(protocol) if protocol != "none" else {}
    missing = _missing(corpus, protocol, bool(published))
    table = corpus.table()
    facts = {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.manifest.corpus_fingerprint,
        "table_version": TABLE_VERSION,
        "level": corpus.level,
        "protocol": protocol,
    }
    if protocol == "none":
        return datasets.DatasetDict(all=_described(table, {**facts, "stamp": missing[1]}))
    rules: dict[str, Any] = {"fold": fold, "validation_fraction": validation_fraction, "seed": seed}
    split = split_table(table, protocol, **rules, **published, class_column=corpus.class_column)
    facts |= _split_facts(split, validation_fraction, "folds" in published, *missing)
    if protocol == "published-parts" and any(recording.split == "validation" for recording in corpus.recordings):
        facts["validation"] = "the validation part of the dataset itself"
    parts = {}
    for part, rows in split.parts.items():
        if len(rows) == 0 and part != "validation":
            warnings.warn(f"{corpus.name}: part {part} of protocol {protocol} has no cycles", stacklevel=3)
        parts[part] = _described(table.select(rows), facts)
    return datasets.DatasetDict(parts)


def _missing(corpus: Corpus, protocol: str, published: bool) -> tuple[int, str | None]:
    """How many recordings of the published database are missing, and the stamp that says so.

    Raises:
        InputError: Some are missing, and the protocol is defined on all.
    """
    missing, total, which = corpus.missing_recordings()
    if not missing:
        return 0, None
    lacking = f"{corpus.root}: {missing} of the {total} recordings of {corpus.title} are missing{which}"
    if published and not corpus.options.allow_missing:
        remedy = "add them, or pass allow_missing=True (--allow-missing)"
        raise InputError(f"{lacking}, and protocol {protocol} is defined on all; {remedy}")
    warnings.warn(f"{lacking}; what is measured on it is stamped incomplete", stacklevel=4)
    return missing, f"incomplete: {total - missing} of the {total} recordings"


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


def _split_facts(
    split: SplitResult, validation_fraction: float, published_folds: bool, missing: int, incomplete: str | None
) -> dict[str, Any]:
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
    stamps = [stamp for stamp in (split.stamp, incomplete) if stamp]
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
