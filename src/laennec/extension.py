"""Objects that users name by a dotted name, as in `my_code:MyLoss`.

Decisions: a dotted name runs code, so it is read only from recipes and the command line. A name in a model's
configuration is never imported here.
"""

import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laennec.errors import InputError


def is_dotted_name(name: Any) -> bool:
    """Whether a value has the form `package.module:Name`."""
    module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_object(name: str, where: str, folders: Sequence[str | Path] = ()) -> Any:
    """Import the object that a dotted name refers to."""
    if not is_dotted_name(name):
        raise InputError(f"{where}: {name!r} is not a dotted name; write package.module:Name")
    module_name, _, attribute = name.partition(":")
    with _importable([*folders, Path.cwd()]):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise InputError(
                f"{where}: {name}: cannot import {module_name} ({error}); install it, or run the command from the "
                f"folder of {module_name.partition('.')[0]}.py"
            ) from error
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (place[0], place[1])
            said = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
            raise InputError(f"{where}: {name}: {file}, line {line}: {said}; correct the module") from error
    if not hasattr(module, attribute):
        raise InputError(f"{where}: {name}: {module_name} has no {attribute}; correct the name")
    return getattr(module, attribute)


@contextmanager
def _importable(folders: Sequence[str | Path]) -> Iterator[None]:
    """Put folders first on the module search path within the block."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before
