import importlib
import subprocess
import sys

import pytest

import laennec


@pytest.mark.parametrize("name", [n for n in laennec.__all__ if n not in ("__version__", "DEFAULT_MODEL")])
def test_every_public_name_is_there_and_says_what_it_does(name):
    thing = getattr(laennec, name)
    assert thing.__doc__ and thing.__module__.startswith("laennec.")
    assert name in dir(laennec)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        laennec.nothing  # noqa: B018


def test_importing_laennec_imports_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "numpy", "librosa", "evaluate", "scipy")
    code = f"import sys, laennec; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package():
    assert laennec.__version__ == importlib.metadata.version("laennec")
