"""Any audio classification data set, from the Hub or a local folder, by the names of its columns.

Decisions: Parquet (of the Hub or local) is read by `datasets` without decoding, its sounds are kept in the cache
under their own hash and are decoded like every other recording. Folders of sounds are read as they were published (see
`laennec.corpora.layouts`). Code of a data set is never run. The answer is the column `category`; a listing of names,
classes, parts, folds and groups is written to the cache and stands for the annotation, so that the corpus fingerprint
covers the classes too and does not hang on where the data lies.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from laennec.corpora.base import Corpus, CorpusConfig, CycleTableBuilder, Event, RecordingEntry
from laennec.corpora.files import named
from laennec.corpora.layouts import LAYOUTS, Clip, Clips, guess_layout, read_layout
from laennec.errors import InputError
from laennec.files import atomic_write, cache_root
from laennec.untrusted import is_plain, leads_outside, read_json

NAME = "hub"
HUB_VERSION = 1
PARTS = ("train", "validation", "test")
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
OPTIONS = (
    *("repo", "config", "revision", "layout", "audio_column", "label_column", "patient_column", "fold_column"),
    *("part_column", "train", "validation", "test", "labels", "label_map"),
)
_AUDIO_STRUCT = {"bytes", "path"}


@dataclass
class HubConfig(CorpusConfig):
    """Settings of `Hub`.

    Attributes:
        repo: A data set's Hub id, where there is no local folder.
        config: Its configuration, where it has several.
        revision: Its revision; refs/convert/parquet is the Hub's own Parquet of any data set.
        layout: "datasets" (Parquet), "table", "folders" or "iemocap"; None: told from the folder.
        audio_column: The column of the sounds; None: the only one that holds sounds.
        label_column: The column of the classes.
        patient_column: The column that a split keeps together: speaker, patient, source file.
        fold_column: The column of the folds: numbers, or names that end in one (Session3).
        part_column: A column that names the part of each row, where parts are not laid out as splits.
        train: The name of the train part.
        validation: Of the validation part; None: validation, valid, val or dev if there, else carved out of train.
        test: Of the test part.
        labels: Classes to keep, in this order; None: all.
        label_map: Classes renamed, {"exc": "hap"}, before `labels` is applied.
    """

    repo: str | None = None
    config: str | None = None
    revision: str | None = None
    layout: str | None = None
    audio_column: str | None = None
    label_column: str = "label"
    patient_column: str | None = None
    fold_column: str | None = None
    part_column: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    labels: list[str] | None = None
    label_map: dict[str, str] = field(default_factory=dict)

    def part_of(self, split: str | None) -> str | None:
        """The part that a split's name stands for, or None where it is not used."""
        validation = (self.validation,) if self.validation else _VALIDATION_NAMES
        names = {self.train: "train", self.test: "test"} | dict.fromkeys(validation, "validation")
        return names.get(str(split))


class Hub(CycleTableBuilder):
    """The table of any audio classification data set, one row a sound.

    Example: `Hub("ashraq/esc50", label_column="category", fold_column="fold").table()`, or the same with a local
    folder. Columns of its own: category (the class) and fold. See `CycleTableBuilder` for the arguments.
    """

    NAME = NAME
    BUILDER_CONFIG_CLASS = HubConfig

    @classmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the sounds, locally or on the Hub, and what is said of them."""
        assert isinstance(config, HubConfig)
        found = _found(data_dir, cache_dir, config)
        _check_columns(data_dir, found, config)
        rows, notes = _chosen(data_dir, found, config)
        classes = _classes(data_dir, rows, found, config)
        problems = [] if config.allow_missing else list(found.problems)
        if config.allow_missing and found.problems:
            notes.append(f"{data_dir}: left out: {named(found.problems)}")
        if not rows and not problems:
            problems.append(
                f"{data_dir}: no sounds of part {config.train} or {config.test}; name the parts (train, test)"
            )
        if config.patient_column is None and rows:
            notes.append(f"{data_dir}: no patient_column, so a split keeps recordings apart, not speakers or patients")
        listing = _listing(rows, cache_dir)
        entries = tuple(_entry(row, classes, listing) for row in rows)
        read = partial(_read_events, {row.name: row.label for row in rows})
        own = {"category": datasets.ClassLabel(names=classes), "fold": datasets.Value("int32")}
        return Corpus(
            NAME, Path(data_dir).absolute(), entries, read, _no_check, found.tables, tuple(problems), tuple(notes),
            datasets.Features(own), "category",
        )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """A sound in the words of the cycle table."""

    name: str
    path: Path
    label: str | None
    part: str
    fold: int | None
    group: str | None


def _found(data_dir: str | Path, cache_dir: str | Path | None, config: HubConfig) -> Clips:
    """What the folder, file or Hub id holds."""
    layouts = ("datasets", *LAYOUTS)
    if config.layout not in (None, *layouts):
        raise InputError(f"layout is {config.layout!r}; it can be {', '.join(layouts)}")
    folder = Path(data_dir).expanduser().absolute()
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data_dir)) is None:
            raise InputError(f"{data_dir}: no such folder, and no Hub id (owner/name); check --data-dir")
        return _read_datasets(str(data_dir), cache_dir, config)
    if folder.is_file() or config.layout == "datasets" or (config.layout is None and any(folder.rglob("*.parquet"))):
        return _read_datasets(str(folder), cache_dir, config)
    layout = config.layout or guess_layout(folder)
    if layout is None:
        raise InputError(f"{folder}: neither Parquet nor sounds in this folder; check --data-dir")
    names = {config.train, config.test, *((config.validation,) if config.validation else _VALIDATION_NAMES)}
    return read_layout(folder, layout, names)


def _read_datasets(origin: str, cache_dir: str | Path | None, config: HubConfig) -> Clips:
    """A data set that `datasets` can read, its sounds written to the cache under their own hash."""
    parts = _load(origin, cache_dir, config)
    first = next(iter(parts.values()))
    audio = _audio_column(origin, first.features, config)
    label = first.features.get(config.label_column)
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    clips: list[Clip] = []
    unread: dict[str, int] = {}
    for split, table in parts.items():
        if config.part_column is None and config.part_of(split) is None:
            unread[str(split)] = len(table)
            continue
        clips += _extracted(origin, split, table, audio, cache_dir)
    columns = ("split", *(name for name in first.column_names if name != audio))
    return Clips(clips, columns, names, unread=unread)


def _load(origin: str, cache_dir: str | Path | None, config: HubConfig) -> Any:
    """The splits of a data set, nothing decoded and no code of it run."""
    local = Path(origin).exists()
    cache = str(cache_root(cache_dir) / "hub" / "datasets")
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if Path(origin).is_file():
            return datasets.load_dataset("parquet", data_files=origin, cache_dir=cache)
        if local and ((Path(origin) / "dataset_dict.json").is_file() or (Path(origin) / "state.json").is_file()):
            _refuse_files_elsewhere(Path(origin))
            loaded = datasets.load_from_disk(origin)
            return loaded if isinstance(loaded, dict) else {config.train: loaded}
        return datasets.load_dataset(origin, config.config, revision=config.revision, cache_dir=cache)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if local:
            remedy = "give Parquet files, or a folder of sounds with layout table or folders"
            raise InputError(f"{origin}: cannot be read as a data set ({reason}); {remedy}") from error
        if "script" in reason.lower():
            remedy = "its code is not run; give revision refs/convert/parquet, or a local folder (--data-dir)"
        else:
            remedy = (
                "download it and give the local folder (--data-dir); if it is private or gated, ask its owners for "
                "access and log in first (hf auth login)"
            )
        raise InputError(f"{origin}: not to be had from the Hub ({reason}); {remedy}") from error
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _refuse_files_elsewhere(folder: Path) -> None:
    """Refuse a data set as `save_to_disk` wrote it whose states name files that are not beside them."""
    for state in folder.rglob("state.json"):
        try:
            names = [str(said["filename"]) for said in read_json(state)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{state}: cannot be read as the state of a data set; download it again") from error
        if wrong := [n for n in names if not is_plain(n) or leads_outside(state.parent / n, folder)]:
            raise InputError(f"{state}: names {wrong[0][:120]!r}, which is no file beside it; do not use this data set")


def _audio_column(origin: str, features: Any, config: HubConfig) -> str:
    """The column that holds sounds as encoded bytes or paths."""
    fitting = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Audio) or (isinstance(feature, dict) and set(feature) == _AUDIO_STRUCT)
    ]
    wanted = config.audio_column
    if wanted in fitting or (wanted is None and len(fitting) == 1):
        return wanted or fitting[0]
    have = f"the columns with encoded sounds are {', '.join(fitting) or 'none'}"
    raise InputError(f"{origin}: audio_column is {wanted!r}, but {have}; name one of them")


def _extracted(origin: str, split: str, table: Any, audio: str, cache_dir: str | Path | None) -> Iterator[Clip]:
    """The rows of one split, each with the file of its sound."""
    if isinstance(table.features[audio], datasets.Audio):
        table = table.cast_column(audio, datasets.Audio(decode=False))
    store = cache_root(cache_dir) / "hub" / "sounds"
    names: set[str] = set()
    for number, row in enumerate(table):
        sound = row.pop(audio) or {}
        content, path = sound.get("bytes"), sound.get("path")
        name = Path(str(path)).with_suffix("").as_posix() if path and is_plain(str(path)) and Path(path).name else None
        if name is None or name in names:
            stem = re.sub(r"[^\w. -]", "_", Path(str(path)).stem) if path else ""
            name = f"{number:06d}" + (f"_{stem}" if stem else "")
        names.add(name)
        if content is None:
            kept = _beside(origin, str(path or ""))
            if kept is None:
                raise InputError(
                    f"{origin}: row {number} of {split} holds no sound, and none of that name lies in the data set's "
                    f"folder ({str(path)[:120]!r}); download it with its sounds, or put them there"
                )
        else:
            kept = _kept(content, Path(str(path or "")).suffix, store)
        yield Clip(name, kept, {**row, "split": split})


def _beside(origin: str, name: str) -> Path | None:
    """The sound of this name in a data set's own folder; a table may name no other file of this machine."""
    folder = Path(origin) if Path(origin).is_dir() else Path(origin).parent
    path = folder / name
    if not name or not Path(origin).exists() or not path.is_file() or leads_outside(path, folder):
        return None
    return path


def _kept(content: bytes, suffix: str, store: Path) -> Path:
    """The file of a sound in the cache, written if it is not there whole."""
    digest = hashlib.sha256(content).hexdigest()
    path = store / digest[:2] / f"{digest}{suffix if re.fullmatch(r'[.][A-Za-z0-9]{1,5}', suffix) else ''}"
    if not (path.is_file() and path.stat().st_size == len(content)):
        with atomic_write(path, "wb", sync=False) as file:
            file.write(content)  # type: ignore[call-overload]
    return path


def _check_columns(data_dir: str | Path, found: Clips, config: HubConfig) -> None:
    """Every named column must be there."""
    for setting in ("label_column", "patient_column", "fold_column", "part_column"):
        name = getattr(config, setting)
        if name is not None and found.clips and name not in found.columns:
            raise InputError(f"{data_dir}: {setting} is {name!r}; the columns are {', '.join(found.columns)}")


def _chosen(data_dir: str | Path, found: Clips, config: HubConfig) -> tuple[list[_Row], list[str]]:
    """The rows of the parts and classes that are wanted, and what was left out."""
    rows: list[_Row] = []
    other_parts = dict(found.unread)
    other_labels: dict[str, int] = {}
    taken: set[str] = set()
    several = len({clip.values.get("split") for clip in found.clips}) > 1
    for clip in found.clips:
        split = clip.values.get(config.part_column or "split", config.train)
        part, label = config.part_of(split), _label(clip.values.get(config.label_column), found.labels)
        if part is None:
            other_parts[str(split)] = other_parts.get(str(split), 0) + 1
            continue
        label = None if label is None else config.label_map.get(label, label)
        if config.labels is not None and label is not None and label not in config.labels:
            other_labels[label] = other_labels.get(label, 0) + 1
            continue
        name = f"{clip.values['split']}/{clip.name}" if several and clip.name in taken else clip.name
        if name in taken:
            raise InputError(f"{data_dir}: two sounds are called {name!r}; give each its own name")
        taken.add(name)
        group = clip.values.get(config.patient_column) if config.patient_column else None
        fold = _fold(data_dir, clip, config) if config.fold_column else None
        rows.append(_Row(name, clip.path, label, part, fold, None if group is None else str(group)))
    notes = [
        f"{data_dir}: left out, {what} {', '.join(f'{name} ({n})' for name, n in sorted(left.items()))}"
        for what, left in (("other parts:", other_parts), ("other classes:", other_labels))
        if left
    ]
    return rows, notes


def _label(value: Any, names: tuple[str, ...] | None) -> str | None:
    if value is None or value == "":
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None  # -1 is the Hub's word for unlabelled
    return str(value)


def _fold(data_dir: str | Path, clip: Clip, config: HubConfig) -> int:
    value = str(clip.values.get(config.fold_column or ""))
    number = re.search(r"[0-9]+$", value)
    if number is None:
        raise InputError(
            f"{data_dir}: {config.fold_column} of {clip.name} is {value!r}, which ends in no number; correct it"
        )
    return int(number[0])


def _classes(data_dir: str | Path, rows: list[_Row], found: Clips, config: HubConfig) -> list[str]:
    """Names of the classes: as asked for, else in the data set's own order, else sorted."""
    there = {row.label for row in rows if row.label is not None}
    if config.labels is not None:
        said = (_label(clip.values.get(config.label_column), found.labels) for clip in found.clips)
        all_labels = {config.label_map.get(label, label) for label in said if label is not None}
        if absent := [label for label in config.labels if label not in there]:
            raise InputError(
                f"{data_dir}: no sound is labelled {named(absent)}; the classes are {named(sorted(all_labels), 60)}"
            )
        return list(config.labels)
    if found.labels is not None:
        return list(dict.fromkeys(config.label_map.get(name, name) for name in found.labels))
    return sorted(there, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _listing(rows: list[_Row], cache_dir: str | Path | None) -> Path:
    """A file that says what the data set says of its sounds, named by its content."""
    said = json.dumps(
        [HUB_VERSION, sorted([row.name, row.label, row.part, row.fold, row.group] for row in rows)],
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    path = cache_root(cache_dir) / "hub" / "listings" / f"{hashlib.sha256(said).hexdigest()}.json"
    if not (path.is_file() and path.stat().st_size == len(said)):
        with atomic_write(path, "wb", sync=False) as file:
            file.write(said)  # type: ignore[call-overload]
    return path


def _entry(row: _Row, classes: list[str], listing: Path) -> RecordingEntry:
    category = None if row.label is None else classes.index(row.label)
    return RecordingEntry(
        recording_id=row.name,
        patient_id=row.group,
        audio_path=row.path,
        annotation_path=listing,
        whole=True,
        part=row.part,
        own=(("category", category), ("fold", row.fold)),
    )


def _read_events(labels: dict[str, str | None], entry: RecordingEntry, duration_s: float | None) -> list[Event]:
    """The sound as a whole; its class stands for an event's name."""
    assert duration_s is not None  # every entry has its sound
    label = labels[entry.recording_id]
    return [Event(0.0, duration_s, None, None, None if label is None else (label,))]


def _no_check(entry: RecordingEntry, duration_s: float | None) -> tuple[InputError, ...]:
    """There are no times that could be wrong."""
    return ()
