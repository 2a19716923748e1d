"""Checkpoints that are either whole or not there.

Decisions: a checkpoint is written beside its place, synced, given a manifest with the hash of each of its files,
and renamed; rotation happens after that, so there is always a whole one once there was one. Before a run goes on from
a checkpoint its manifest is checked to the last byte: a Trainer would take one without its optimizer, its schedule or
its random state for whole, and say nothing. One that is not whole is named and passed over for the one before it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.training.record import read_record

MANIFEST = "manifest.json"
WRITING = ".writing"  # checkpoints that are being written, beside those that are whole
_NAME = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger(__name__)


def seal(written: Path, place: Path, facts: dict[str, Any] | None = None) -> None:
    """Put a checkpoint that was written elsewhere in its place: hashed, synced, renamed.

    Args:
        written: The folder that holds it, on the same file system.
        place: Where it belongs; a folder of that name is replaced.
        facts: Kept in the manifest.
    """
    files = {}
    for path in sorted(p for p in written.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(written).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    with atomic_write(written / MANIFEST) as manifest:
        json.dump({**(facts or {}), "files": files}, manifest, indent=1)
    _sync_folder(written)
    if place.exists():  # a torn one of the same step, passed over when the run went on
        shutil.rmtree(place)
    os.replace(written, place)
    _sync_folder(place.parent)


def manifest_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says."""
    return read_record(checkpoint / MANIFEST)


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used: a file is missing, shorter or other than when written; None if it is whole."""
    try:
        files = manifest_of(checkpoint)["files"]
        wanted = {name: (int(said["bytes"]), str(said["sha256"])) for name, said in files.items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return f"{MANIFEST} is missing or damaged"
    for name, (size, digest) in wanted.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} is not what was written"
    return None


def last_whole(folder: Path, world_size: int = 1) -> Path | None:
    """The newest checkpoint to go on from, with the best one it refers to; None to begin anew.

    What is not whole is named in a warning and deleted, so that rotation never counts it.

    Raises:
        InputError: It was written by another number of processes: their random states would not be the same.
    """
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    found = {int(m.group(1)): p for p in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    for step in sorted(found, reverse=True):
        checkpoint = found[step]
        wrong = what_is_wrong(checkpoint)
        if wrong is None:
            wrong = _what_is_wrong_with_best(checkpoint)
        if wrong is None:
            wrote = manifest_of(checkpoint).get("processes", world_size)
            if wrote != world_size:
                raise InputError(
                    f"{checkpoint}: was written by {wrote} processes, and this is {world_size}; start as many, or "
                    "start anew with --overwrite"
                )
            return checkpoint
        _log.warning("%s: not whole (%s); going on from the one before it", checkpoint, wrong)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _what_is_wrong_with_best(checkpoint: Path) -> str | None:
    """Why the best epoch so far, which a checkpoint refers to, could not be restored in the end."""
    best = read_record(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    if not isinstance(best, str | None):
        return "trainer_state.json names no folder as the best epoch's"
    if best is None or Path(best).name == checkpoint.name:
        return None
    wrong = what_is_wrong(checkpoint.parent / Path(best).name)
    return None if wrong is None else f"the best epoch that it refers to, {Path(best).name}: {wrong}"


def rotate(folder: Path, keep: int | None, best: str | None) -> None:
    """Delete all but the newest checkpoints and the best one."""
    # by step number: times of files say nothing after a copy
    rotate_checkpoints(str(folder), save_total_limit=keep, best_model_checkpoint=best, use_mtime=False)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
