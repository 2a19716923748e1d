"""`laennec pretrain`: pre-train a recipe's encoder on pairs of views, without labels."""

import argparse

from laennec.cli.common import overrides, say


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec pretrain`."""
    parser.add_argument("recipe", help="a YAML recipe with a section pretrain")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that the output folder holds")


def run(options: argparse.Namespace) -> int:
    """Pre-train, or go on."""
    from laennec.training.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides(options.rest), section="pretrain")
    from laennec.training.pretraining.run import pretrain

    out = pretrain(recipe, command=options.line, overwrite=options.overwrite)
    say(f"encoder: {out / 'encoder'}")
    say(f"next: laennec train {options.recipe} --encoder.weights {out / 'encoder'}")
    return 0
