"""Folders of audio files with classes, in the layouts of published data sets.

Decisions: three layouts are known: class folders (also Speech Commands with its two lists), a table with a column of
files (ESC-50, `metadata.csv`), and the sessions of IEMOCAP. Rules of published file names (the speaker of a Speech
Commands file, the session and speaker of an IEMOCAP utterance) are read here, because those corpora state them nowhere
else. Nothing is decoded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import isfile  # False where the system refuses the name itself
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError
from laennec.corpora.recordings import is_recording, read_csv
from laennec.errors import InputError
from laennec.files import is_result
from laennec.untrusted import is_plain, parse_json, read_text

LAYOUTS = ("table", "folders", "iemocap")
_FILE_COLUMNS = ("file_name", "filename", "file", "path", "audio")
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_SPEAKER = re.compile(r"(?P<speaker>.+)_nohash_[0-9]+")
_UTTERANCE = re.compile(
    r"\[[0-9.]+ - [0-9.]+\]\t(?P<name>(?P<session>Ses[0-9]+)[^\t]*_(?P<who>[FM])[0-9]+)\t(?P<label>\w+)\t"
)


@dataclass(frozen=True)
class Clip:
    """A sound of a data set: its name there, its file, and the values of the data set's columns."""

    name: str
    path: Path
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Clips:
    """What was found of a data set."""

    clips: list[Clip]  # the sounds
    columns: tuple[str, ...]  # the columns that there are
    labels: tuple[str, ...] | None = None  # names of the classes in the data set's own order, where it has one
    tables: tuple[Path, ...] = ()  # files that were read besides the sounds
    problems: tuple[str, ...] = ()  # what is wrong, a line each
    unread: Mapping[str, int] = field(default_factory=dict)  # splits that are not used, and how many sounds each holds


def read_layout(root: Path, layout: str | None, split_names: Iterable[str]) -> Clips:
    """Read a folder of sounds in one of LAYOUTS (None: detected); folders named in `split_names` are no classes."""
    if layout == "iemocap" or (layout is None and (root / "Session1" / "dialog").is_dir()):
        return _read_iemocap(root)
    if layout == "table" or (layout is None and _tables(root)):
        return _read_tables(root, set(split_names))
    if layout is None and not any(is_recording(path) for path in root.rglob("*")):
        raise InputError(f"{root}: no Parquet files and no sounds in this folder; check data_dir (--data-dir)")
    return _read_folders(root, set(split_names))


def _read_folders(root: Path, split_names: set[str]) -> Clips:
    """Class folders, in folders of splits where there are some; `split`, `label` and `speaker` are the columns."""
    lists = {split: root / name for split, name in _LISTS.items() if (root / name).is_file()}
    listed = {line.strip(): split for split, path in lists.items() for line in _lines(path)}
    clips = []
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        # folders like _background_noise_ are no class
        if not is_recording(path) or any(part.startswith((".", "_")) for part in place.parts[:-1]):
            continue
        folders = place.parts[:-1]
        split = folders[0] if folders and folders[0] in split_names else None
        classes = folders[1:] if split else folders
        if not classes:
            raise InputError(f"{path}: not in the folder of a class; move it, or describe the sounds by a table")
        values: dict[str, Any] = {"split": split or "train", "label": "/".join(classes)}
        if lists:
            values["split"] = listed.pop(place.as_posix(), "train")
            spoken = _SPEAKER.fullmatch(path.stem)
            values["speaker"] = spoken["speaker"] if spoken else None
        clips.append(Clip(place.with_suffix("").as_posix(), path, values))
    problems = [
        f"{lists[split]}: {name} is not in the folder; download it again" for name, split in listed.items() if name
    ]
    columns = ("split", "label", *(("speaker",) if lists else ()))
    return Clips(clips, columns, None, tuple(lists.values()), tuple(problems))


def _tables(root: Path) -> list[Path]:
    """The tables that describe the sounds: ESC-50's, else metadata files, else the only CSV in the folder."""
    if esc := sorted((root / "meta").glob("*.csv")):
        return esc[:1] if len(esc) == 1 else []
    if found := sorted(path for name in ("metadata.csv", "metadata.jsonl") for path in root.rglob(name)):
        return found
    beside = sorted(path for path in root.glob("*.csv") if not path.name.startswith(".") and not is_result(path))
    return beside if len(beside) == 1 else []


def _read_tables(root: Path, split_names: set[str]) -> Clips:
    """Tables with a column of file names; a table in the folder of a split is about that split."""
    tables = _tables(root)
    if not tables:
        raise InputError(f"{root}: no table that describes the sounds (metadata.csv, or one CSV file); add it")
    clips, problems, columns = [], [], dict[str, None]()
    for table in tables:
        rows = _json_rows(table) if table.suffix == ".jsonl" else _csv_rows(table)
        places = (table.parent, root, root / "audio", root / "data")
        within = [part for part in table.relative_to(root).parts[:-1] if part in split_names]
        for line, row in rows:
            file_column = next((name for name in _FILE_COLUMNS if name in row), None)
            if file_column is None:
                raise AnnotationError(table, line, f"no column of file names ({', '.join(_FILE_COLUMNS)}); add one")
            name = str(row[file_column])
            path = next((place / name for place in places if is_plain(name) and isfile(place / name)), None)
            if path is None:
                problems.append(str(AnnotationError(table, line, f"{name!r} is not in the folder; add it")))
                continue
            values = {"split": within[0]} | row if within else dict(row)
            columns |= dict.fromkeys(values)
            clips.append(Clip(Path(name).with_suffix("").as_posix(), path, values))
    return Clips(clips, tuple(columns), None, tuple(tables), tuple(problems))


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    (_, header), *rows = read_csv(path) or [(1, [])]
    return [(line, dict(zip(header, (v or None for v in values), strict=True))) for line, values in rows]


def _json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = parse_json(line) if line.strip() else None
        except ValueError as error:
            raise AnnotationError(path, number, f"not JSON ({error}); correct the line") from error
        if isinstance(row, dict):
            rows.append((number, row))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(path, None, f"cannot be read ({error}); download it again") from error


def _read_iemocap(root: Path) -> Clips:
    """IEMOCAP as released: sessions of two speakers, the emotion of each utterance in the evaluation files."""
    clips, tables, problems = [], [], []
    for session in sorted(root.glob("Session[0-9]*")):
        for table in sorted((session / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            tables.append(table)
            for number, line in enumerate(_lines(table), start=1):
                said = _UTTERANCE.match(line)
                if said is None:  # other lines hold the votes of each rater
                    continue
                path = session / "sentences" / "wav" / said["name"].rsplit("_", 1)[0] / f"{said['name']}.wav"
                if not path.is_file():
                    problems.append(str(AnnotationError(table, number, f"{path}: no such recording; add it")))
                    continue
                speaker = said["session"] + said["who"]
                values = {"label": said["label"], "session": session.name, "speaker": speaker, "split": "train"}
                clips.append(Clip(said["name"], path, values))
    if not tables:
        raise InputError(
            f"{root}: no Session1/dialog/EmoEvaluation/Ses*.txt, so not IEMOCAP as released; check the folder"
        )
    return Clips(clips, ("label", "session", "speaker", "split"), None, tuple(tables), tuple(problems))
