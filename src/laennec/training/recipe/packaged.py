"""Recipes by name: those that come with the package.

Decisions: `recipes/` of the repository is `laennec/recipes` of the package (a link in a checkout, files in a wheel), so
that one copy exists. A path that exists wins over a name.
"""

import difflib
from pathlib import Path

import laennec
from laennec.errors import InputError

# folders of recipes/ that hold other files than recipes
_OTHERS = ("accelerate", "searches", "studies")


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    return Path(laennec.__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as "sprsound/bce_mobilenet"."""
    paths = (path.relative_to(recipe_folder()) for path in recipe_folder().glob("*/*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] not in _OTHERS)


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe.

    Args:
        name: A path, or one of `recipe_names`.

    Raises:
        InputError: Neither; names the nearest recipe.
    """
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    names = recipe_names()
    if str(name) in names:
        return recipe_folder() / f"{name}.yaml"
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name}: no such file, and no recipe of this name{hint} `laennec recipes` lists them")
