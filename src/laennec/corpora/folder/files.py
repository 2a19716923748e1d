"""The files of a folder of own recordings: sounds, label files, tables."""

from pathlib import Path

from laennec.corpora.recordings import is_recording, named
from laennec.errors import InputError
from laennec.files import is_result

_LABEL_FILES = (".txt", ".selections.txt", ".Table.1.selections.txt")
_RARE = (".au", ".caf", ".oga", ".opus", ".rf64", ".w64")  # beside a WAV or FLAC file of the same name: not read


def find_sounds(root: Path) -> dict[str, Path]:
    """Recordings below the folder by their path without extension."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*"), key=lambda path: (path.suffix.lower() in _RARE, path)):
        if not is_recording(path) or any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        rare = path.suffix.lower() in _RARE
        if rare and any(part.endswith("_data") for part in path.relative_to(root).parts):  # blocks of Audacity
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found and rare:
            continue  # another form of the same recording
        if name in found:
            raise InputError(f"{path}: a second recording of this name beside {found[name].name}; remove or rename one")
        found[name] = path
    if not found:
        kinds = "WAV, FLAC, Ogg, Opus, MP3, AIFF, AU, CAF"
        raise InputError(f"{root}: no recordings ({kinds}) in this folder; check data_dir (--data-dir)")
    return found


def label_files(sound: Path) -> list[Path]:
    """The label files beside a recording."""
    return [path for end in _LABEL_FILES if (path := sound.with_name(f"{sound.stem}{end}")).is_file()]


def find_tables(root: Path) -> list[Path]:
    """The CSV files in a folder that are not results."""
    return sorted(path for path in root.glob("*.csv") if not path.name.startswith(".") and not is_result(path))


def table_path(root: Path, given: str | Path | None) -> Path | None:
    """The annotation table: the given one, or the only CSV in the folder; None where there is none."""
    if given is not None:
        for path in (Path(given).expanduser(), root / given):
            if path.is_file():
                return path.absolute()
        raise InputError(f"{given}: no such annotation table; give its path, or its name in {root}")
    tables = find_tables(root)
    if len(tables) > 1:
        raise InputError(
            f"{root}: several CSV files ({named(p.name for p in tables)}); name one by corpus.options.annotations "
            f"(laennec prepare: --option annotations={tables[0].name})"
        )
    return tables[0] if tables else None
