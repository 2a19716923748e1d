"""Load a corpus as split cycle tables.

Decisions: the provenance of a split is stored in it. Corpus, fingerprints, protocol, seed, validation rule, leaks and
stamp are written into the description of every split, the only place that survives select, map and saving; `provenance`
reads them. A published split of an incomplete folder is refused, or stamped incomplete where the user allows it. The
same audio in two splits that promise disjoint patients is refused if the cycles are the same too; other duplicates may
be a mix-up of files, and are reported and stamped on every number.
"""

import dataclasses
import difflib
import inspect
import itertools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import datasets
from pydantic import ConfigDict, Field, ValidationError, create_model

from laennec.corpora.base import TABLE_VERSION, Corpus, CorpusOptions, column_of
from laennec.corpora.copies import files_of, find_duplicates
from laennec.corpora.folder.corpus import Folder
from laennec.corpora.hub.corpus import Hub
from laennec.corpora.hub.exported import original_folder
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.corpora.physionet2016 import PhysioNet2016
from laennec.corpora.recordings import named
from laennec.corpora.splits import BY_RECORDING, PROTOCOLS, SplitResult, protocol_named, split_rank, split_table
from laennec.corpora.sprsound import SprSound
from laennec.corpora.synthetic import Synthetic
from laennec.errors import InputError
from laennec.extension import is_dotted_name, load_object
from laennec.files import json_text
from laennec.model_settings import settings_error

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
    validation_fold: int | str | None = None,
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
        protocol: A name in `laennec.corpora.splits.PROTOCOLS`, or "none" for one split called "all". None: the
            default protocol of the corpus.
        fold: The test fold, under a protocol with folds.
        validation_fraction: Share of train to carve out as validation.
        validation_fold: Which of the 1 / validation_fraction folds of patients to carve out, in place of a draw; "all"
            carves out none.
        seed: Seed of every draw of the split.
        cache_dir: Root of the caches; see `laennec.cache.cache_root`.
        **options: The attributes of the corpus' `options_class`: tables_dir (where the patient and split tables are),
            level (what a row is), allow_missing (accept a corpus that lacks recordings; results are stamped
            incomplete), and those of one corpus alone. An export was made with some; they apply where none is given.

    Returns:
        The splits in the order train, validation, test (SPRSound: test_intra, test_inter). Columns as in
        `laennec.corpora.base.CYCLE_FEATURES`.

    Raises:
        InputError: What is wrong with the corpus, the options or the split, and what to do.
    """
    protocol = protocol_of(corpus, protocol)
    opened = open_corpus(corpus, data_dir, cache_dir, **options)
    share = {"validation_fraction": validation_fraction, "validation_fold": validation_fold}
    return split_corpus(opened, protocol, fold=fold, seed=seed, **share)  # type: ignore[arg-type]


def corpus_class(corpus: str | type[Corpus], where: str = "corpus") -> type[Corpus]:
    """The class of a corpus, with its facts; of "sprsound+icbhi2017" the facts of both."""
    if isinstance(corpus, str) and "+" in corpus:
        return _several([corpus_class(name, where) for name in corpus.split("+")])
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


def _several(kinds: list[type[Corpus]]) -> type[Corpus]:
    """The combined facts of corpora that are concatenated."""

    def locate(*_: Any) -> Any:
        raise InputError(
            f"{' and '.join(kind.name for kind in kinds)} are several corpora; load each with load_corpus and give all "
            "to laennec.concatenate_corpora, or list them in a recipe (corpus: [{name: ...}, ...])"
        )

    def each(fact: str) -> str:
        return "; ".join(f"{kind.title or kind.name}: {getattr(kind, fact)}" for kind in kinds)

    facts = {
        "title": " and ".join(kind.title or kind.name for kind in kinds),
        "licence": each("licence"),
        "redistribution": each("redistribution"),
        "citation": "\n\n".join(filter(None, (kind.citation for kind in kinds))),
        "origin": " ".join(kind.origin for kind in kinds).strip(),
        "reference_standard": each("reference_standard"),
        "limitations": tuple(f"{kind.title or kind.name}: {line}" for kind in kinds for line in kind.limitations),
        "locate": locate,
    }
    return type("Corpora", (Corpus,), {"name": "+".join(kind.name for kind in kinds), **facts})


def find_corpus(name: str) -> type[Corpus] | None:
    """The class of a corpus by the name a run recorded, or None if it cannot be found here."""
    try:
        return corpus_class(name)
    except InputError:
        return None


def protocol_of(corpus: str | type[Corpus], protocol: str | None) -> str:
    """The protocol that is given, or else the default protocol of the corpus."""
    kind = corpus_class(corpus)
    if protocol is None:
        return kind.default_protocol
    if protocol != "none":
        protocol_named(protocol)
        if protocol not in (*kind.protocols, "corpus-out"):
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
    """The class of a corpus, where its data are, and its options; arguments as for `load_corpus`."""
    kind = corpus_class(corpus)
    valid = [field.name for field in dataclasses.fields(kind.options_class)]
    if wrong := sorted(set(options) - set(valid)):
        own = valid[len(dataclasses.fields(CorpusOptions)) :]
        raise InputError(f"{kind.name} has no option {named(wrong)}; valid: {', '.join(own) or 'none'}")
    if data_dir is not None and kind.can_be_exported:
        data_dir, made_with = original_folder(kind.name, data_dir, cache_dir)
        recorded = {name: made_with[name] for name in portable_options(kind) if name in made_with}
        # a recipe passes None for what is not set
        options = recorded | {n: value for n, value in options.items() if value is not None or n not in recorded}
    return kind, *kind.locate(data_dir, cache_dir, _checked(kind, options))


def portable_options(kind: type[Corpus]) -> list[str]:
    """Names of the options that an export records, and that are read from one: those that are no paths."""
    return [name for name, given in _types(kind).items() if "Path" not in str(given)]


def _checked(kind: type[Corpus], options: dict[str, Any]) -> dict[str, Any]:
    """The options as the types that the corpus declares; an InputError names the first that is of another one."""
    types, names = _types(kind), {f"option_{number}": name for number, name in enumerate(options)}
    fields: dict[str, Any] = {field: (types[name], Field(alias=name)) for field, name in names.items()}
    model = create_model("Options", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        said = str(settings_error(error, options, f"correct this option of corpus {kind.name}"))
        raise InputError(said.replace("Input is not a valid path for <class 'pathlib.Path'>", "path")) from error
    return {name: getattr(checked, field) for field, name in names.items()}


def _types(kind: type[Corpus]) -> dict[str, Any]:
    try:
        return get_type_hints(kind.options_class)
    except NameError:  # names that an own corpus imports for type checkers alone; any of them may be a path
        return {field.name: Path | Any for field in dataclasses.fields(kind.options_class)}


def split_corpus(
    corpus: Corpus,
    protocol: str,
    *,
    fold: int = 0,
    validation_fraction: float = 0.2,
    validation_fold: int | str | None = None,
    seed: int = 0,
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
        return datasets.DatasetDict(all=described(table, {**facts, "stamp": missing[1]}))
    rules: dict[str, Any] = {"fold": fold, "validation_fraction": validation_fraction, "seed": seed}
    if validation_fold is not None:
        rules["validation_fold"] = validation_fold
    split = split_table(table, protocol, **rules, **published, class_column=corpus.class_column)
    facts |= rules | {
        "split_fingerprint": split.fingerprint,
        "part_fingerprints": split.fingerprints,
        "validation": _validation_rule(corpus, protocol, split, validation_fraction),
        "published_folds": "folds" in published,
        "leaks": split.leaks.shared,
        "shared_patients": [[*pair.splits, len(pair.patients)] for pair in split.leaks.pairs if pair.patients],
        "missing_recordings": missing[0],
        "stamp": "; ".join(stamp for stamp in (split.stamp, missing[1]) if stamp) or None,
    }
    for name, rows in split.splits.items():
        if len(rows) == 0 and name != "validation":
            warnings.warn(f"{corpus.name}: split {name} of protocol {protocol} has no cycles", stacklevel=3)
    return datasets.DatasetDict({name: described(table.select(rows), facts) for name, rows in split.splits.items()})


def _missing(corpus: Corpus, protocol: str, published: bool) -> tuple[int, str | None]:
    """How many recordings of the published database are missing, and the stamp that says so."""
    missing, total, which = corpus.missing_recordings()
    if not missing:
        return 0, None
    lacking = f"{corpus.root}: {missing} of the {total} recordings of {corpus.title} are missing{which}"
    if published and not corpus.options.allow_missing:
        remedy = "add them, or pass allow_missing=True (--allow-missing; in training --corpus.allow_missing true)"
        raise InputError(f"{lacking}, and protocol {protocol} is defined on all; {remedy}")
    warnings.warn(f"{lacking}; its results are stamped incomplete", stacklevel=4)
    return missing, f"incomplete: {total - missing} of the {total} recordings"


def provenance(splits: datasets.DatasetDict | datasets.Dataset) -> dict[str, Any]:
    """The provenance of splits (corpus, protocol, fingerprints, ...), as `load_corpus` wrote it into them."""
    for table in splits.values() if isinstance(splits, dict) else [splits]:
        try:
            return dict(json.loads(table.info.description)[_KEY])
        except (ValueError, KeyError, TypeError):
            continue
    return {}


def check_duplicates(splits: datasets.DatasetDict, cache_dir: str | Path | None = None, jobs: int = 1) -> list[str]:
    """Find duplicated audio in a split corpus, in `jobs` processes; its provenance then holds the same lines."""
    lines, between = [], []
    spans = _spans(splits)
    facts = provenance(splits)
    each = facts.get("corpora") or {None: facts}
    protocols = {corpus: PROTOCOLS.get(str(own.get("protocol"))) for corpus, own in each.items()}
    for group in find_duplicates(files_of(splits.values()), cache_dir, jobs):
        members = sorted((m for m in spans if m[1] in map(str, group)), key=lambda m: (split_rank(m[0]), m[1]))
        files = ", ".join(f"{path} ({split})" for split, path, _ in members)
        line = f"the same sound under {len(members)} names: {files}"
        lines.append(line)
        for one, other in itertools.combinations(members, 2):
            protocol, across = protocols[one[2]], one[2] != other[2]
            apart = across or (protocol is not None and protocol.promise(one[0], other[0]) == "patient")
            if one[0] == other[0] or not apart:
                continue
            if spans[one] == spans[other]:
                rule = "a list of corpora" if across else f"protocol {each[one[2]]['protocol']!r}"
                raise InputError(
                    f"{rule} promises that no patient is shared, but {line}; "
                    "drop one of them, or correct the patient ids"
                )
            between.append(f"{Path(one[1]).stem} of {one[0]} = {Path(other[1]).stem} of {other[0]}")
    if lines:
        facts["same_sounds"] = lines
        if between:
            stamp = f"the same sound is in two splits whose patients should differ: {named(between)}"
            facts["stamp"] = "; ".join(s for s in (facts.get("stamp"), stamp) if s)
        for table in splits.values():
            described(table, facts)
    return lines


def _spans(splits: Mapping[str, Any]) -> dict[tuple[str, str, str | None], list[tuple[float, float]]]:
    """The cycles of each (split, recording, corpus); the corpus is None where there is one alone."""
    found: dict[tuple[str, str, str | None], list[tuple[float, float]]] = {}
    for name, table in splits.items():
        corpora = column_of(table, "corpus") if "corpus" in table.column_names else [None] * len(table)
        columns = (table["recording_path"][:], corpora, table["start_s"][:], table["end_s"][:])
        for path, corpus, start_s, end_s in zip(*columns, strict=True):
            found.setdefault((name, path, corpus), []).append((start_s, end_s))
    return {recording: sorted(times) for recording, times in found.items()}


def described(table: datasets.Dataset, facts: dict[str, Any]) -> datasets.Dataset:
    """The table with these facts in its description, where `provenance` finds them."""
    table.info.description = json_text({_KEY: facts}, ensure_ascii=False)
    return table


def _validation_rule(corpus: Corpus, protocol: str, split: SplitResult, fraction: float) -> str:
    """How the validation split was made, in words."""
    if protocol == "published-parts" and any(recording.split == "validation" for recording in corpus.recordings):
        return "the validation split of the dataset itself"
    if "validation" not in split.splits:
        return "none"
    if protocol == "patient-60-20-20":
        return "20 % of the corpus, whole patients, stratified by chest location"
    if protocol == "random-80-20":
        return f"{fraction:.0%} of the train cycles, drawn at random"
    unknown = protocol in BY_RECORDING and split.leaks.cycles_without_patient
    who = "recordings (patients are not known)" if unknown else "patients"
    return f"about {fraction:.0%} of the train cycles, whole {who} in no test split, stratified by label"
