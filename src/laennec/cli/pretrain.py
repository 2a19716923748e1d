"""`laennec pretrain`: pre-train a recipe's encoder on pairs of views, without labels."""

import argparse

from laennec.cli.common import overrides, say


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec pretrain`."""
    parser.add_argument("recipe", help="a YAML recipe with a section pretrain, or the name of one")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that the output folder holds")


def run(options: argparse.Namespace) -> int:
    """Pre-train, or go on."""
    from laennec.training.recipe import Recipe, full_key

    given = {full_key(Recipe, key, step="pretrain"): value for key, value in overrides(options.rest).items()}
    recipe = Recipe.from_yaml(options.recipe, **given)
    from laennec.training.pretraining.run import pretrain

    out = pretrain(recipe, command=options.line, overwrite=options.overwrite)
    say(f"encoder: {out / 'encoder'}")
    say(f"next: laennec train {options.recipe} --encoder.weights {out / 'encoder'}")
    return 0
