"""`laennec recipes`: list the recipes that come with the package, and copy one."""

import argparse
import json
from pathlib import Path

from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.terminal import say

_SCHEMA = "https://laennec-audio.github.io/laennec/recipe.schema.json"  # where editors find it


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec recipes`."""
    parser.add_argument(
        "copy",
        nargs="*",
        metavar="copy NAME [DEST]",
        help="copy a recipe to a file or folder (default: the working directory)",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--settings", action="store_true", help="list all settings of a recipe with their values and defaults"
    )
    shown.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe")


def run(options: argparse.Namespace) -> int:
    """List the recipes, copy one, or list the settings."""
    from laennec.training.recipe import Recipe, find_recipe, recipe_names, settings_help

    if options.schema:
        say(*json.dumps(Recipe.model_json_schema(), indent=2).splitlines())
    elif options.settings:
        say(*settings_help().splitlines())
    elif options.copy:
        _copy(options.copy)
    else:
        names = list(recipe_names())
        for name in names:
            say(f"{name:<{max(map(len, names))}}  {Recipe.from_yaml(find_recipe(name)).description}")
    return 0


def _copy(words: list[str]) -> None:
    from laennec.training.recipe import find_recipe

    if words[0] != "copy" or len(words) not in (2, 3):
        raise InputError("recipes: write `laennec recipes`, or `laennec recipes copy NAME [DEST]`")
    source, target = find_recipe(words[1]), Path(words[2] if len(words) == 3 else ".")
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise InputError(f"{target}: exists already; give another DEST")
    text = source.read_text(encoding="utf-8").replace("../../docs/recipe.schema.json", _SCHEMA)
    with atomic_write(target) as file:
        file.write(text)
    say(f"recipe: {target}")
    say(f"next: laennec train {target}")
