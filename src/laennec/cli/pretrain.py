"""`laennec pretrain`: pre-train a recipe's encoder on pairs of views, without labels."""

import argparse

from laennec.cli.common import overrides, refuse_missing_files
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec pretrain`."""
    parser.add_argument(
        "recipe", help="a recipe with a section `pretrain`: a YAML file, or a name listed by `laennec recipes`"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the output folder")


def run(options: argparse.Namespace) -> int:
    """Pre-train, or resume a pre-training."""
    from laennec.training.recipe import Recipe, full_key

    given = {full_key(Recipe, key, step="pretrain"): value for key, value in overrides(options.overrides).items()}
    recipe = Recipe.from_yaml(options.recipe, **given)
    refuse_missing_files(recipe)
    from laennec.training.pretraining.run import pretrain

    out = pretrain(recipe, command=options.line, overwrite=options.overwrite)
    say(f"encoder: {out / 'encoder'}")
    say(f"next: laennec train {options.recipe} --encoder.weights {out / 'encoder'}")
    return 0
