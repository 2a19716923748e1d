"""Write the reference pages that follow from the code: `python -m docs.generate`.

`reference/recipe.md` comes from the field descriptions of `laennec.Recipe`, `reference/commands.md` from the argument
parsers, `reference/python.md` lists the public names, whose docstrings mkdocstrings renders.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ["COLUMNS"] = "100"  # argparse wraps at the width of the terminal

from laennec import _MODULES
from laennec.cli.main import COMMANDS, make_parser
from laennec.rendering import plain_table
from laennec.training.recipe import Recipe, TaskSettings
from laennec.training.recipe.reading import settings_of

REFERENCE = Path(__file__).parent / "reference"


def recipe_page() -> str:
    """A table of settings for each section of a recipe."""
    sections: dict[str, list[list[str]]] = {}
    of_task = [replace(setting, key=f"tasks.NAME.{setting.key}") for setting in settings_of(TaskSettings).values()]
    for setting in (*settings_of(Recipe).values(), *of_task):
        section = setting.key.rpartition(".")[0]
        default = "" if setting.default in (None, "", [], {}) else f"`{setting.default}`"
        cells = [f"`{setting.key}`", setting.values, default, setting.description]
        sections.setdefault(section, []).append([cell.replace("|", "\\|") for cell in cells])
    lines = [
        "# Recipe settings",
        "",
        "Every setting of a recipe, by section. In YAML `train.epochs` is the key `epochs` below `train`; on the",
        'command line it is `--train.epochs 3`; in Python `Recipe(train={"epochs": 3})`. A dotted name such as',
        "`my_code:MyLoss` is resolved from the folder of the recipe, the working directory and the installed packages.",
    ]
    for section, rows in sections.items():
        table = plain_table(("setting", "values", "default", "meaning"), rows)
        lines += ["", f"## {section or 'Top level'}", *(["", what] if (what := _what_sets(section)) else []), "", table]
    return "\n".join(lines) + "\n"


def _what_sets(section: str) -> str:
    """The first paragraph about a section of a recipe, from the docstring of its class."""
    if section == "tasks.NAME":
        return str(TaskSettings.__doc__)
    schema = group = Recipe.model_json_schema()
    for name in filter(None, section.split(".")):
        field = group["properties"][name]
        named = next(option["$ref"] for option in field.get("anyOf", [field]) if "$ref" in option)
        group = schema["$defs"][named.rsplit("/", 1)[-1]]
    return "" if group is schema else str(group["description"]).split("\n\n")[0]


def commands_page() -> str:
    """The help of every command."""
    parser = make_parser()
    actions = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    lines = [
        "# Commands",
        "",
        "`laennec COMMAND --help` prints the same. Errors that a user can fix are one line, exit code 2.",
    ]
    for name, help in COMMANDS.items():
        text = actions.choices[name].format_help().strip()
        lines += ["", f"## laennec {name}", "", f"{help[0].upper()}{help[1:]}.", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """The public names in the order of the flow."""
    lines = ["# Python", "", "`import laennec` is instant: a name is imported when it is first used."]
    for name, home in _MODULES.items():
        lines += ["", f"::: laennec.{home}.{name}", "    options:", f"      heading: laennec.{name}"]
    return "\n".join(lines) + "\n"


PAGES = {"python.md": python_page, "recipe.md": recipe_page, "commands.md": commands_page}


def main() -> None:
    """Write the pages, and the schema that editors read."""
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
    schema = json.dumps(Recipe.model_json_schema(), indent=2)
    (REFERENCE.parent / "recipe.schema.json").write_text(f"{schema}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
