"""`laennec train`: run a recipe."""

import argparse
import os
from typing import Any

from laennec import DEFAULT_MODEL
from laennec.cli.common import overrides, refuse_missing_files, refuse_missing_model
from laennec.terminal import say
from laennec.training.record import read_record


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec train`."""
    parser.add_argument("recipe", help="a recipe: a YAML file, or a name listed by `laennec recipes`")
    parser.add_argument(
        "--search",
        metavar="SPACE.yaml",
        help="search settings on validation patients with Optuna and write the best recipe",
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        nargs="?",
        const=DEFAULT_MODEL,
        help="start from a model (folder of a run or an exported model, or Hub id; without one the model in the "
        "package): its encoder, and its head where the labels agree",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the output folder")


def run(options: argparse.Namespace) -> int:
    """Train, or resume a training."""
    from laennec.training.recipe import Recipe

    given = overrides(options.overrides)
    if options.init is not None:
        refuse_missing_model(options.init)
        given["initial_model"] = options.init
    recipe = Recipe.from_yaml(options.recipe, **given)
    refuse_missing_files(recipe)
    if options.search is not None:
        return _search(recipe, options)
    from laennec.training.run import train

    out = train(recipe, command=options.line, overwrite=options.overwrite)
    if int(os.environ.get("RANK", "0")) != 0:  # the first of several processes writes the record
        return 0
    record = read_record(out / "run.json")
    if record.get("best_epoch") is not None:
        reached = f"{record['selection_metric']} on validation {record['best_metric']:.4g}"
        say(f"kept: epoch {record['best_epoch']:g} ({reached})")
    own = "recordings" if record.get("span") == "recording" else "events"
    for spans, fitted in {own: record["operating_points"], **(record.get("window_points") or {})}.items():
        if fitted and fitted["thresholds"] is not None:
            bounds = ", ".join(f"{name} {p:.3f}" for name, p in fitted["threshold_probabilities"].items())
            rule = f"threshold rule {fitted['rule'] or 'none'}"
            say(f"thresholds for {spans}: {bounds} (probability; calibration {fitted['calibration']}, {rule})")
        if fitted and "smoothing_rule" in fitted:
            say(f"smoothing of {spans}: weight {fitted['smoothing']:g} of the recording's mean, chosen on validation")
    say(f"run: {out}")
    held_out = record.get("held_out") or ["test"]
    say(f"next: laennec evaluate {out}" + ("" if "test" in held_out else f" --split {held_out[0]}"))
    return 0


def _search(recipe: Any, options: argparse.Namespace) -> int:
    from laennec.study.search import Space, search

    found = search(recipe, Space.read(options.search, "settings to search"), options.line, options.overwrite, say)
    say(f"search: {found.folder} ({found.finished} trials finished, {found.stopped} stopped early)")
    say(f"best: {', '.join(f'{key} {value}' for key, value in found.best.items())} ({found.value:.4f} on validation)")
    say(f"next: laennec train {found.folder / 'best.yaml'}")
    return 0
