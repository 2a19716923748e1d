"""The folder of a run while it is being written.

Decisions: an unfinished run is continued if its recipe is the same, and a finished or other one is never overwritten
unasked; nothing of an earlier run is deleted before data and weights were checked.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from laennec.errors import InputError
from laennec.files import lock_of, lock_or_refuse, remove_stale_lock
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, write_record

RECORDS = ("run.json", "pretrain.json")  # of training and of pre-training, written last
_SETTINGS = "recipe.json"
# what a kill can leave of a run that had written nothing
_PASSING = (lock_of(RECORDS[0]).name, f".{_SETTINGS}.part")


def refuse_taken(out: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuse an output folder unless it is new, or holds an unfinished run of the same recipe.

    Raises:
        InputError: It holds other files, a finished run, or a run of another recipe.
    """
    earlier = out / _SETTINGS
    others = out.exists() and (not out.is_dir() or any(path.name not in _PASSING for path in out.iterdir()))
    if overwrite:
        if others and not earlier.exists():
            raise InputError(f"{out}: holds no laennec run, so it is not overwritten; choose another output folder")
    elif any((out / record).exists() for record in RECORDS):
        for record in RECORDS:
            remove_stale_lock(out / record)
        raise InputError(f"{out}: holds a finished run; choose another output folder or pass --overwrite")
    elif earlier.exists():
        if Recipe.from_record(read_record(earlier), str(earlier)).to_dict() != recipe.to_dict():
            raise InputError(
                f"{out}: holds an unfinished run of another recipe; choose another output folder or pass --overwrite"
            )
    elif others:
        raise InputError(f"{out}: holds other files; choose another output folder")


def finished_before(out: Path, recipe: Recipe) -> bool:
    """Whether this run is finished and was killed while its checkpoints were removed; the remaining ones are removed.

    Raises:
        InputError: Another process writes to the folder.
    """
    checkpoints, earlier = out / "checkpoints", out / _SETTINGS
    alone_in_it = int(os.environ.get("WORLD_SIZE", "1")) == 1  # several processes would have to agree first
    if not (alone_in_it and checkpoints.is_dir() and earlier.exists()):
        return False
    if not any((out / record).exists() for record in RECORDS):
        return False
    if Recipe.from_record(read_record(earlier), str(earlier)).to_dict() != recipe.to_dict():
        return False
    with lock_or_refuse(out / RECORDS[0]):
        shutil.rmtree(checkpoints, ignore_errors=True)
    return True


@contextlib.contextmanager
def alone(out: Path, recipe: Recipe, overwrite: bool) -> Iterator[None]:
    """Lock the output folder for this process while the block runs.

    Raises:
        InputError: Another process trains into it, or has done so since `refuse_taken`.
    """
    with lock_or_refuse(out / RECORDS[0]):
        refuse_taken(out, recipe, overwrite)  # again: another one may have trained into it while data were read
        # the record first, for a run without it is not taken for finished; what says that the folder is ours stays
        kept = (lock_of(out / RECORDS[0]), out / _SETTINGS)
        for path in sorted(out.iterdir(), key=lambda p: p.name not in RECORDS) if overwrite else []:
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_record(out / _SETTINGS, recipe.to_dict())
        yield


@contextlib.contextmanager
def claimed(out: Path, recipe: Recipe, overwrite: bool) -> Iterator[Callable[[], None]]:
    """Lock an output folder while the block runs, from the moment that the block calls the function it is given.

    Earlier results are kept until then: the block calls it after data, weights and objective were checked. Of several
    processes only the first writes, so only the first locks.

    Raises:
        InputError: The folder holds other files, or another process trains into it.
    """
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process:
        refuse_taken(out, recipe, overwrite)
    with contextlib.ExitStack() as ours:

        def begin() -> None:
            if main_process:
                ours.enter_context(alone(out, recipe, overwrite))

        yield begin
