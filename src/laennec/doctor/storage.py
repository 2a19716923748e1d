"""Every stage, doctor: the folders that are written to, and the room there.

Decisions: a folder is judged by a file that was written there, synced and taken away again, as laennec writes
(permissions, quotas, full disks and lost network shares look alike to a mode bit). Measuring a cache stops after two
seconds: one page must not take minutes.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

from laennec.doctor.finding import Finding, Verdict, finding, gigabytes, note, ok, problem
from laennec.errors import InputError
from laennec.files import atomic_write, cache_root

_ROOM = "Storage"
_PROBE_BYTES = 1 << 20
_LITTLE_BYTES = 5e9
_PATIENCE_S = 2.0


def examine() -> list[Finding]:
    """Write where laennec writes."""
    return [
        finding(_ROOM, "cache", _cache, "set LAENNEC_CACHE to a folder that can be written to"),
        finding(_ROOM, "working folder", _working_folder, "change to a folder that exists"),
        finding(_ROOM, "temporary files", _temporary, "set TMPDIR to a folder that can be written to"),
        finding(_ROOM, "Hub's cache", _hub_cache, "set HF_HOME to a folder that can be written to"),
    ]


def _cache() -> Verdict:
    folder = cache_root()
    refused = _refuses(folder)
    if refused:
        return problem(refused, "set LAENNEC_CACHE to a folder with room that can be written to")
    return _room_in(folder, f"{folder}, {_size(folder)}", "features and embeddings are kept there; set LAENNEC_CACHE")


def _working_folder() -> Verdict:
    folder = Path.cwd()
    refused = _refuses(folder)
    if refused:
        return note(refused, "runs are written below it by default: change folder, or set output_dir")
    return _room_in(folder, str(folder), "runs are written below it by default: change folder, or set output_dir")


def _temporary() -> Verdict:
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # none of the places it knows can be written to
        return problem(str(error), "set TMPDIR to a folder that can be written to")
    refused = _refuses(folder)
    return problem(refused, "set TMPDIR to a folder with room that can be written to") if refused else ok(str(folder))


def _hub_cache() -> Verdict:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    refused = _refuses(folder)
    if refused:
        return note(refused, "only what is there already can be loaded from it: set HF_HOME to another folder")
    return ok(str(folder))


def _refuses(folder: Path) -> str:
    """Why nothing can be written there, or "" where a megabyte could be; leaves nothing behind."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    probe = folder / ".laennec-doctor"
    try:
        with atomic_write(probe, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
        probe.unlink()
    except (OSError, InputError) as error:
        return " ".join(str(error).replace("/.laennec-doctor", "").split())
    finally:
        for place in made:  # from the innermost on
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
    return ""


def _room_in(folder: Path, found: str, remedy: str) -> Verdict:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{found}, {gigabytes(free)} free"
    return note(found, remedy) if free < _LITTLE_BYTES else ok(found)


def _size(folder: Path) -> str:
    """How much lies there."""
    if not folder.is_dir():
        return "not there yet"
    until, total = time.monotonic() + _PATIENCE_S, 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).lstat().st_size
            except OSError:  # gone in the meantime
                continue
        if time.monotonic() > until:
            return f"more than {gigabytes(total)} in it"
    return f"{gigabytes(total)} in it" if total else "empty"
