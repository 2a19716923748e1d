"""Any audio classification data set, from the Hub or a local folder, by the names of its columns.

Decisions: `datasets` reads Parquet (of the Hub or local) without decoding; the audio files are cached under their own
hash and decoded like every other recording. Folders of audio are read in their published layouts (see
`laennec.corpora.hub.layouts`). Code of a data set is never run. The class is the column `category`. A listing of names,
classes, splits, folds and groups is written to the cache as the annotation, so that the corpus fingerprint covers the
classes and does not depend on where the data lie.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet as pq

from laennec.cache import cache_root, sha256_of
from laennec.corpora.base import Corpus, CorpusOptions
from laennec.corpora.hub.exported import refuse_large_table
from laennec.corpora.hub.layouts import LAYOUTS, Clip, Clips, read_layout
from laennec.corpora.recordings import AnnotatedRecording, Event, named, refuse_large
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError
from laennec.files import atomic_write, is_result, json_text, scratch_folder
from laennec.untrusted import is_plain, leads_outside, read_json

_LISTING_VERSION = 1
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_AUDIO_STRUCT = {"bytes", "path"}


@dataclass
class HubOptions(CorpusOptions):
    """Options of `Hub`.

    Attributes:
        repo: A data set's Hub id, where there is no local folder.
        config: Its configuration, where it has several.
        revision: Its revision; refs/convert/parquet is the Hub's own Parquet of any data set.
        layout: "datasets" (Parquet), "table", "folders" or "iemocap"; None: detected from the folder.
        audio_column: The column of the sounds; None: the only one that holds sounds.
        label_column: The column of the classes.
        patient_column: The column that a split keeps together: speaker, patient, source file.
        fold_column: The column of the folds: numbers, or names that end in one (Session3).
        part_column: A column that names the split of each row, where splits are not folders or files.
        train: The name of the train split.
        validation: Of the validation split; None: validation, valid, val or dev if present, else carved out of train.
        test: Of the test split.
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
    label_map: dict[str | int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take classes that are numbers by their text."""
        self.label_map = {str(name): new for name, new in self.label_map.items()}

    @property
    def split_names(self) -> dict[str, str]:
        """Name of a split in the data set -> train, validation or test."""
        validation = (self.validation,) if self.validation else _VALIDATION_NAMES
        return {self.train: "train", self.test: "test"} | dict.fromkeys(validation, "validation")


class Hub(Corpus):
    """Any audio classification data set, one row a sound.

    Example: `Hub(repo="ashraq/esc50", label_column="category", fold_column="fold").table()`, or the same with a local
    folder. Its own columns: category (the class) and fold. See `Corpus` for the arguments.
    """

    name = "hub"
    title = "A data set of the Hub"
    protocols = ("published-parts", "published-folds", *(p for p in COMMON_PROTOCOLS if p != "device-out"))
    default_protocol = "published-parts"
    label_columns = ("category",)
    class_column = "category"
    can_be_exported = False
    options_class = HubOptions
    options: HubOptions

    @classmethod
    def locate(
        cls, data_dir: str | Path | None, cache_dir: str | Path | None, options: dict[str, Any]
    ) -> tuple[str | Path, dict[str, Any]]:
        """The local folder if one is given, else the Hub id of the option `repo`."""
        if not (data_dir or options.get("repo")):
            raise InputError(
                f"{cls.name}: no data_dir given; name a data set of https://huggingface.co/datasets, whose page states "
                "its licence (repo='OWNER/NAME', or --option repo=OWNER/NAME), or a folder (data_dir, or --data-dir)"
            )
        return data_dir or options["repo"], options

    def open_folder(self, data_dir: str | Path) -> Path:
        """The folder of the data set; for a Hub id, a path that is not used."""
        return Path(data_dir).expanduser().absolute()

    def find_recordings(self, folder: Path) -> list[AnnotatedRecording]:
        """Find the sounds, locally or on the Hub, and their columns."""
        options = self.options
        found = _found(self.data_dir, self.cache_dir, options)
        for setting in ("label_column", "patient_column", "fold_column", "part_column"):
            name = getattr(options, setting)
            if name is not None and found.clips and name not in found.columns:
                columns = ", ".join(found.columns)
                raise InputError(f"{self.data_dir}: {setting} is {name!r}; the columns are {columns}")
        rows = self._used(found)
        self.tables += found.tables
        self._classes = self._class_names(found, {row.label for row in rows if row.label is not None})
        self.extra_columns = {"category": datasets.ClassLabel(names=self._classes), "fold": datasets.Value("int32")}
        if not options.allow_missing:
            self.problems += found.problems
        elif found.problems:
            self.notes.append(f"{self.data_dir}: left out: {named(found.problems)}")
        if not rows and not self.problems:
            self.problems.append(
                f"{self.data_dir}: no sounds of split {options.train} or {options.test}; name the splits (train, test)"
            )
        if options.patient_column is None and rows:
            self.notes.append(
                f"{self.data_dir}: no patient_column, so a split keeps recordings apart, not speakers or patients"
            )
        listing = _listing(rows, self.cache_dir)
        return [self._recording(row, listing) for row in rows]

    def _used(self, found: Clips) -> list["_Row"]:
        """The rows of the chosen splits and classes; a note counts what is left out."""
        options = self.options
        rows: dict[str, _Row] = {}
        other_splits, other_labels = Counter(found.unread), Counter[str]()
        several = len({clip.values.get("split") for clip in found.clips}) > 1
        for clip in found.clips:
            written = clip.values.get(options.part_column or "split", options.train)
            split = options.split_names.get(str(written))
            if split is None:
                other_splits[str(written)] += 1
                continue
            label = self._label(clip, found)
            if options.labels is not None and label is not None and label not in options.labels:
                other_labels[label] += 1
                continue
            name = f"{clip.values['split']}/{clip.name}" if several and clip.name in rows else clip.name
            if name in rows:
                raise InputError(f"{self.data_dir}: two sounds are called {name!r}; give each its own name")
            group = clip.values.get(options.patient_column or "") if options.patient_column else None
            rows[name] = _Row(name, label, split, self._fold(clip), None if group is None else str(group), clip.path)
        for what, left in (("splits", other_splits), ("classes", other_labels)):
            if left:
                counted = ", ".join(f"{name} ({n})" for name, n in sorted(left.items()))
                self.notes.append(f"{self.data_dir}: left out, other {what}: {counted}")
        return list(rows.values())

    def _label(self, clip: Clip, found: Clips) -> str | None:
        """The class of a sound, by its name in `label_map`; -1 is the Hub's number for unlabelled."""
        value = clip.values.get(self.options.label_column)
        if found.labels is not None and isinstance(value, int):
            value = found.labels[value] if 0 <= value < len(found.labels) else None
        return None if value in (None, "") else self.options.label_map.get(str(value), str(value))

    def _fold(self, clip: Clip) -> int | None:
        if self.options.fold_column is None:
            return None
        value = str(clip.values.get(self.options.fold_column))
        number = re.search(r"([0-9]+)([.]0*)?$", value)  # a column with gaps comes back as floating point
        if number is None:
            column = self.options.fold_column
            raise InputError(
                f"{self.data_dir}: {column} of {clip.name} is {value!r}, which ends in no number; correct it"
            )
        return int(number[1])

    def _class_names(self, found: Clips, there: set[str]) -> list[str]:
        """Names of the classes: as asked for, else in the data set's own order, else sorted."""
        wanted = self.options.labels
        if wanted is None and found.labels is not None:
            return list(dict.fromkeys(self.options.label_map.get(name, name) for name in found.labels))
        if wanted is None:
            return sorted(there, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        if absent := [label for label in wanted if label not in there]:
            known = sorted({label for clip in found.clips if (label := self._label(clip, found)) is not None})
            raise InputError(
                f"{self.data_dir}: no sound is labelled {named(absent)}; the classes are {named(known, 60)}"
            )
        return list(wanted)

    def _recording(self, row: "_Row", listing: Path) -> AnnotatedRecording:
        category = None if row.label is None else self._classes.index(row.label)
        return AnnotatedRecording(
            recording_id=row.name,
            patient_id=row.group,
            audio_path=row.path,
            annotation_path=listing,
            whole=True,
            split=row.split,
            extra=(("category", category), ("fold", row.fold)),
        )

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """The sound as a whole; its class is the name of the event."""
        assert duration_s is not None  # every recording here has its audio
        category = dict(recording.extra)["category"]
        return [Event(0.0, duration_s, names=None if category is None else (self._classes[category],))]


class _Row(NamedTuple):
    """A sound with its values for the cycle table."""

    name: str
    label: str | None
    split: str
    fold: int | None
    group: str | None
    path: Path


def _listing(rows: list[_Row], cache_dir: str | Path | None) -> Path:
    """A file with the data set's values for its sounds, named by the hash of its content."""
    said = [_LISTING_VERSION, sorted(list(row[:5]) for row in rows)]
    content = json_text(said, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
    return _stored(content, cache_root(cache_dir) / "hub" / "listings", ".json", depth=0)


def _stored(content: bytes, folder: Path, suffix: str, depth: int = 2) -> Path:
    """A cache file named by the hash of its content; written unless it is there and intact."""
    digest = hashlib.sha256(content).hexdigest()
    path = folder / digest[:depth] / f"{digest}{suffix}"
    if not (path.is_file() and sha256_of(path) == digest):
        with atomic_write(path, "wb", sync=False) as file:
            file.write(content)
    return path


def _found(data_dir: str | Path, cache_dir: str | Path | None, options: HubOptions) -> Clips:
    """What the folder, file or Hub id holds."""
    if options.layout not in (None, "datasets", *LAYOUTS):
        raise InputError(f"layout is {options.layout!r}; it can be {', '.join(('datasets', *LAYOUTS))}")
    folder = Path(data_dir).expanduser().absolute()
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data_dir)) is None:
            raise InputError(f"{data_dir}: no such folder, and no Hub id (owner/name); check data_dir (--data-dir)")
        return _read_datasets(str(data_dir), cache_dir, options)
    if (
        folder.is_file()
        or options.layout == "datasets"
        or (options.layout is None and any(not is_result(path) for path in folder.rglob("*.parquet")))
    ):
        return _read_datasets(str(folder), cache_dir, options)
    return read_layout(folder, options.layout, options.split_names)


def _read_datasets(origin: str, cache_dir: str | Path | None, options: HubOptions) -> Clips:
    """Read a data set with `datasets`; its sounds are written to the cache under their own hash.

    For local files, the cache of `datasets` is deleted after this call: it identifies files by name and time, and could
    reuse an old copy.
    """
    cache = cache_root(cache_dir) / "hub" / "datasets"
    if not Path(origin).exists():
        return _sounds(_load(origin, cache, options), origin, cache_dir, options)
    with scratch_folder(cache) as scratch:
        return _sounds(_load(origin, scratch, options), origin, cache_dir, options)


def _sounds(parts: Any, origin: str, cache_dir: str | Path | None, options: HubOptions) -> Clips:
    first = next(iter(parts.values()))
    audio = _audio_column(origin, first.features, options)
    label = first.features.get(options.label_column)
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    clips: list[Clip] = []
    unread: dict[str, int] = {}
    for split, table in parts.items():
        if options.part_column is None and str(split) not in options.split_names:
            unread[str(split)] = len(table)
            continue
        clips += _extracted(origin, split, table, audio, cache_dir)
    columns = ("split", *(name for name in first.column_names if name != audio))
    return Clips(clips, columns, names, unread=unread)


def _load(origin: str, folder: Path, options: HubOptions) -> Any:
    """The splits of a data set, without decoding it or running its code; `datasets` uses the cache `folder`."""
    place, cache = Path(origin), str(folder)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        _refuse_large(place)
        if place.is_file():
            return datasets.load_dataset("parquet", data_files=origin, cache_dir=cache)
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            _refuse_files_elsewhere(place)
            loaded = datasets.load_from_disk(origin)
            return loaded if isinstance(loaded, dict) else {options.train: loaded}
        return datasets.load_dataset(origin, options.config, revision=options.revision, cache_dir=cache)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if place.exists():
            remedy = "give Parquet files, or a folder of sounds with layout table or folders"
            raise InputError(f"{origin}: cannot be read as a data set ({reason}); {remedy}") from error
        if "script" in reason.lower():
            remedy = "its code is not run; give revision refs/convert/parquet, or a folder as data_dir (--data-dir)"
        else:
            remedy = (
                "download it and give the local folder as data_dir (--data-dir); if it is private or gated, ask its "
                "owners for access and log in first (hf auth login)"
            )
        raise InputError(f"{origin}: cannot be downloaded from the Hub ({reason}); {remedy}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _refuse_large(place: Path) -> None:
    """Refuse Parquet files that unpack to more than sound and text of their size can (repeated rows pack as one)."""
    tables = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    packed, unpacked = sum(path.stat().st_size for path in tables), 0
    for path in tables:
        refuse_large_table(place, path, packed)
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(16):
                refuse_large(place, packed, unpacked := unpacked + batch.nbytes)


def _refuse_files_elsewhere(folder: Path) -> None:
    """Refuse a data set of `save_to_disk` whose state.json names files outside of its folder."""
    for state in folder.rglob("state.json"):
        try:
            names = [str(said["filename"]) for said in read_json(state)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{state}: cannot be read as the state of a data set; download it again") from error
        if wrong := [n for n in names if not is_plain(n) or leads_outside(state.parent / n, folder)]:
            raise InputError(f"{state}: names {wrong[0][:120]!r}, which is no file beside it; do not use this data set")


def _audio_column(origin: str, features: Any, options: HubOptions) -> str:
    """The column that holds sounds as encoded bytes or paths."""
    fitting = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Audio) or (isinstance(feature, dict) and set(feature) == _AUDIO_STRUCT)
    ]
    wanted = options.audio_column
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
            suffix = re.fullmatch(r"[.][A-Za-z0-9]{1,5}", Path(str(path or "")).suffix)
            kept = _stored(content, store, suffix[0] if suffix else "")
        known = {name: None if value != value else value for name, value in row.items()}  # NaN is unknown
        yield Clip(name, kept, {**known, "split": split})


def _beside(origin: str, name: str) -> Path | None:
    """The sound of this name in a data set's own folder; files elsewhere on this machine are never read."""
    folder = Path(origin) if Path(origin).is_dir() else Path(origin).parent
    path = folder / name
    if not name or not Path(origin).exists() or not path.is_file() or leads_outside(path, folder):
        return None
    return path
