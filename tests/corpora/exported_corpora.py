"""Small corpora of every kind, of real recordings where they are at hand, and what an export of one is held against."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import audio_twins


@dataclass(frozen=True)
class Small:
    """A corpus and how it is loaded: `load_corpus(name, folder, **settings)`."""

    name: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)


def icbhi2017(folder: Path, data: Path, recordings: int = 12) -> Small:
    """Real recordings of several devices and rates, the database's tables beside them."""
    place = folder / "audio_and_txt"
    place.mkdir(parents=True)
    found = sorted((data / "icbhi2017_subset").glob("*.flac"), key=lambda path: path.stat().st_size)
    for path in found[:: len(found) // recordings]:
        for source in (path, path.with_suffix(".txt")):
            shutil.copy(source, place)
    shutil.copytree(data / "icbhi2017_tables", folder / "tables")
    return Small("icbhi2017", place, {"allow_missing": True})


def sprsound(folder: Path, data: Path, step: int = 160) -> Small:
    """Some real recordings of each split."""
    for part in ("train", "test_intra"):
        for source in sorted((data / "sprsound" / part / "json").iterdir())[:: step if part == "train" else step // 4]:
            for kind, path in (("json", source), ("wav", data / "sprsound" / part / "wav" / f"{source.stem}.flac")):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / part / kind)
    return Small("sprsound", folder)


def physionet2016(folder: Path, recordings: Sequence[Path]) -> Small:
    return Small("physionet2016", audio_twins.physionet2016(folder / "challenge-2016", recordings))


def own_recordings(folder: Path, recordings: Sequence[Path]) -> Small:
    """WAV of several sample formats, in folders, with a CSV that lies elsewhere; one that nobody annotated."""
    sounds = audio_twins.excerpts(recordings, 7, 2.0, 4000)
    kinds = [
        ("ward/one.wav", "PCM_16", 1), ("ward/two.WAV", "PCM_24", 1), ("ward/three #1, links.wav", "PCM_U8", 2),
        ("home/four.wav", "FLOAT", 1), ("home/fünf.ogg", "VORBIS", 1), ("home/six.flac", "PCM_24", 2),
        ("home/nobody.wav", "PCM_16", 1),
    ]  # fmt: skip
    lines = ["recording;start_s;end_s;label;patient_id;sex;age"]
    for number, ((name, subtype, channels), sound) in enumerate(zip(kinds, sounds, strict=True)):
        path = folder / "recordings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        both = np.stack([sound, sound[::-1] / 3][:channels], axis=1)
        format = {".ogg": "OGG", ".flac": "FLAC"}.get(path.suffix, "WAV")
        soundfile.write(path, both, 4000, subtype=subtype, format=format)
        if number < 6:
            who = f"p{number % 5};{'FM'[number % 2]};{40 + number % 5}"
            lines += [f"{name};0.1;0.9;crackle;{who}", f"{name};0.91;1.7003;{'normal' if number % 2 else 'both'};{who}"]
    (folder / "cycles of mine.csv").write_text("\n".join(lines) + "\n")
    settings = {"annotations": str(folder / "cycles of mine.csv"), "unlabelled": True}
    return Small("folder", folder / "recordings", settings)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_paths(table: Any) -> list[dict[str, Any]]:
    """The rows of a cycle table, less where its recordings lie."""
    return list(table.remove_columns("recording_path").to_list())
