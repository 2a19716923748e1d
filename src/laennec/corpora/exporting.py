"""A corpus as Parquet that plain `datasets.load_dataset` reads, and that laennec reads back exactly.

Decisions: three configurations. `cycles` (the default) is for everybody: a row a cycle with its own sound, in named
splits of the chosen protocol, every other protocol as a column. A cycle cut from a stored file is not what laennec
trains on, for it filters and resamples whole recordings and cuts then; so `recordings` holds each recording once, and
`annotations` every file that says something about them, both from which the corpus' folder is made again byte for byte
(`laennec.corpora.exported`). Twice the sound is the price of a result that can be quoted. A part without cycles is left
out, because `load_dataset` cannot read one. Nothing that is written names a place on this machine or the time.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from laennec.corpora.base import Corpus, column_of
from laennec.corpora.dataset_card import dataset_card
from laennec.corpora.export_rows import RowWriter, split_name
from laennec.corpora.exported import CARD, FORMAT, MARK, safe_name
from laennec.corpora.load import corpus_class, open_corpus, protocol_of, provenance, split_corpus
from laennec.corpora.protocols import PROTOCOLS, WITH_FOLDS
from laennec.corpora.recordings import AnnotatedRecording
from laennec.errors import InputError
from laennec.files import atomic_folder, refuse_other_files, scratch_folder, wait_for_lock
from laennec.untrusted import leads_outside

SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        folder: Where it is.
        parts: The corpus as it was split, as `load_corpus` gives it.
        facts: What its mark says.
    """

    folder: Path
    parts: datasets.DatasetDict
    facts: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """The size of its Parquet files."""
        return sum(int(said["bytes"]) for said in self.facts["files"].values())


def export_corpus(
    name: str,
    data_dir: str | Path | None,
    out: str | Path,
    *,
    protocol: str | None = None,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    sampling_rate: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Exported:
    """Write a corpus as a Parquet data set with a card; the folder is whole or as it was before.

    Args:
        name: The corpus; all others as for `load_corpus`, and:
        data_dir: Where it is.
        out: The folder to write; an export that is there is replaced, anything else is refused.
        protocol: Gives the named splits; "none": one split called "corpus".
        fold: Its fold.
        validation_fraction: Of the chosen protocol and of the columns of all others.
        seed: Likewise.
        cache_dir: Root of the caches.
        sampling_rate: The rate in Hz at which the audio columns are declared, to which `datasets` resamples when it
            decodes; the sounds keep their own. None: the corpus' rate if it has one, else 16000.
        shard_bytes: A Parquet file ends once it is as large as this.
        progress: Called with (sounds written, sounds in all).
        **options: Of the corpus.

    Raises:
        InputError: The corpus or the folder cannot be used, or the disk is full.
    """
    if not corpus_class(name).can_be_exported:
        raise InputError(f"{name}: its data are Parquet of the Hub already; export another corpus")
    if options.get("quality") == "good":
        raise InputError(f"{name}: an export holds all recordings; leave quality out, and ask for it in reading")
    out = Path(out).expanduser().absolute()
    _refuse_target(out)
    chosen = protocol_of(name, protocol)
    builder = open_corpus(name, data_dir, cache_dir, **options).check_usable()
    sources = source_files(builder)
    _rehearse(builder, sources)
    rules = {"validation_fraction": validation_fraction, "seed": seed}
    table = builder.table()
    if len(table) == 0:
        raise InputError(f"{builder.root}: nothing is annotated, so there is no row to export; annotate it")
    parts = split_corpus(builder, chosen, fold=fold, **rules)  # type: ignore[arg-type]
    columns, protocols = _split_columns(builder, table, rules)
    writer = RowWriter(builder, table, parts, columns, sampling_rate, shard_bytes, progress)
    with wait_for_lock(out), atomic_folder(out) as aside:
        _refuse_target(out)  # again, now that nobody else makes it
        writer.write(aside, sources)
        facts = _facts_of(builder, parts, protocols, writer.files, rules)
        (aside / MARK).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        card = dataset_card(facts, parts, writer.infos, builder)
        (aside / CARD).write_text(card, encoding="utf-8")
    return Exported(out, parts, facts)


def source_files(builder: Corpus) -> dict[str, Path]:
    """Every file that a corpus was read from: relative path in its folder -> the file.

    Raises:
        InputError: There is no sound, or a name that would not mean the same file elsewhere.
    """
    corpus = builder
    if any(entry.audio_path is None for entry in corpus.recordings):
        raise InputError(f"{corpus.root}: annotations without any audio; an export needs the recordings")
    paths = [path for entry in corpus.recordings for path in (entry.audio_path, entry.annotation_path) if path]
    paths += corpus.tables
    paths += corpus.further_files()
    found: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        name = _name_of(corpus, path)
        if path.is_relative_to(corpus.root) and leads_outside(path, corpus.root):
            raise InputError(
                f"{path}: is a link to a file elsewhere ({path.resolve()}), which is not published; put the file "
                "itself there"
            )
        if not safe_name(name):
            raise InputError(f"{str(path)!r}: a name that other systems do not know as one file's; rename it")
        if found.setdefault(name, path) != path:
            raise InputError(f"{path}: would be called {name} like {found[name]}; rename one of them")
    return found


def _name_of(corpus: Corpus, path: Path) -> str:
    """Where a file goes in the corpus' folder: where it is, or on top if it is elsewhere."""
    if corpus.name == "folder" and path in corpus.tables:
        return f"{path.stem}.csv"  # the one CSV on top is found without being named
    return path.relative_to(corpus.root).as_posix() if path.is_relative_to(corpus.root) else path.name


def _rehearse(builder: Corpus, sources: Mapping[str, Path]) -> None:
    """Read the corpus from a folder of links laid out as it will be restored: it must be the same corpus.

    A CSV that names recordings by where they lie on this machine fails here, before anything is written.

    Raises:
        InputError: It is another.
    """
    corpus = builder
    name = hashlib.sha256(str(corpus.root).encode()).hexdigest()[:16]
    with scratch_folder(Path(tempfile.gettempdir()) / f"laennec-{name}") as place:
        folder = place / "content"
        for name, path in sources.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        options = {k: v for k, v in vars(builder.options).items() if k not in ("tables_dir", "annotations")}
        try:
            again = type(builder)(folder, place / "cache", **options)
        except InputError as error:
            raise _not_the_same(corpus, str(error).replace(f"{folder}/", "")) from error
        if again.problems:
            raise _not_the_same(corpus, again.problems[0].replace(f"{folder}/", ""))
        here, there = ([_bare(entry, c) for entry in c.recordings] for c in (corpus, again))
        if different := [a[0].recording_id for a, b in zip(here, there, strict=False) if a != b]:
            raise _not_the_same(corpus, f"recording {different[0]} differs")
        if len(here) != len(there):
            raise _not_the_same(corpus, f"{len(there)} of its {len(here)} recordings are found")


def _bare(entry: AnnotatedRecording, corpus: Corpus) -> tuple[AnnotatedRecording, str, str]:
    """An entry with its paths as they will be in the export."""
    assert entry.audio_path is not None and entry.annotation_path is not None
    sound, annotation = (_name_of(corpus, path) for path in (entry.audio_path, entry.annotation_path))
    return replace(entry, audio_path=None, annotation_path=Path()), sound, annotation


def _not_the_same(corpus: Corpus, reason: str) -> InputError:
    remedy = "have its tables name recordings by their place in the folder"
    return InputError(f"{corpus.root}: cannot be read again from an export: {reason}; {remedy}")


def _refuse_target(out: Path) -> None:
    """Only nothing, an empty folder, or an export is replaced."""
    if out.is_symlink():
        raise InputError(f"{out}: is a link; name the folder itself (--export)")
    ours = (MARK, CARD, "cycles", "recordings", "annotations") if (out / MARK).is_file() else ()
    refuse_other_files(out, ours, "choose an empty folder (--export)")


def _split_columns(
    builder: Corpus, table: datasets.Dataset, rules: Mapping[str, Any]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """For every protocol that the corpus supports a column over the table's rows, and what it is."""
    columns: dict[str, list[Any]] = {}
    said: dict[str, Any] = {}
    row_of = {cycle: row for row, cycle in enumerate(column_of(table, "cycle_id"))}
    for protocol in PROTOCOLS:
        if protocol.startswith("published-"):  # of data sets that are on the Hub already
            continue
        folds = list(_folds(builder, table, protocol, rules))
        if not folds:
            continue
        name = f"{'fold' if protocol in WITH_FOLDS else 'split'}_{protocol.replace('-', '_')}"
        values: list[Any] = [None] * len(table)
        for fold, parts in enumerate(folds):
            for part, rows in parts.items():
                for cycle in rows["cycle_id"] if protocol not in WITH_FOLDS or part == "test" else ():
                    values[row_of[cycle]] = fold if protocol in WITH_FOLDS else part
        origins = [provenance(parts) for parts in folds]
        columns[name] = values
        said[protocol] = {
            "column": name,
            "split_fingerprints": [origin["split_fingerprint"] for origin in origins],
            "stamp": origins[0]["stamp"],
            "leaks": origins[0]["leaks"],
            "validation": origins[0]["validation"],
            "published_folds": origins[0]["published_folds"],
        }
    return columns, said


def _folds(
    builder: Corpus, table: datasets.Dataset, protocol: str, rules: Mapping[str, Any]
) -> Iterator[datasets.DatasetDict]:
    """The split of every fold of a protocol, or its only one; none where the corpus does not support it."""
    fold = 0
    while fold == 0 or protocol in WITH_FOLDS:
        try:
            with warnings.catch_warnings(action="ignore"):  # said of the chosen protocol
                parts = split_corpus(builder, protocol, fold=fold, **rules)
        except InputError:
            return
        yield parts
        fold += 1


def _facts_of(
    builder: Corpus,
    parts: datasets.DatasetDict,
    protocols: Mapping[str, Any],
    files: Mapping[str, Any],
    rules: Mapping[str, Any],
) -> dict[str, Any]:
    """What the mark says."""
    own = {"window_s", "hop_s", "validation_folder", "unlabelled"} & set(vars(builder.options))
    return {
        "format": FORMAT,
        **provenance(parts),
        **rules,
        "options": {name: getattr(builder.options, name) for name in sorted(own)},
        "recordings": len(builder.recordings),
        "cycles": {split_name(part): len(rows) for part, rows in parts.items()},
        "protocols": protocols,
        "files": files,
    }
