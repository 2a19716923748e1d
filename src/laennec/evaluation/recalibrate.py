"""A run's operating point fitted anew, without training it again.

Decisions: what is fitted on are the validation predictions that training stored, so nothing can be fitted on a test
part; the model's weights stay as they are. What was fitted before stays in the run record, with how often the run had
been scored by then, because a rule that is chosen after a look at test scores was chosen on them. Evaluations made
before keep their own thresholds, and are no longer those of the model.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.evaluation.smoothed import VALIDATION, fitted_head, read_validation
from laennec.files import atomic_write
from laennec.training.recipe import HeadSettings, Recipe
from laennec.training.record import read_run, write_record
from laennec.training.tables import check_rule, fit_operating_point, operating_point_of
from laennec.untrusted import read_json

RULES = ("youden", "f1", "icbhi", "sensitivity", "none")


def recalibrate(
    run: str | Path,
    calibration: str | None = None,
    threshold_rule: str | None = None,
    sensitivity: float | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Fit calibration and thresholds of a run on its stored validation predictions, and store them in its model.

    Args:
        run: The folder of a finished run.
        calibration: "none", "temperature" or "platt"; None: as it was fitted before.
        threshold_rule: "youden", "f1", "icbhi", "sensitivity", or "none" for probability 0.5; None: as before.
        sensitivity: What the rule "sensitivity" must find, 0 to 1; None: as before.
        command: The literal command, for the record.

    Returns:
        What was fitted, as in the run record's `operating_points`.

    Raises:
        InputError: No finished run with validation predictions, or settings that its head cannot have.
    """
    folder = Path(run)
    record, config = read_run(folder / "run.json"), _model_config(folder)
    predictions = read_validation(folder / VALIDATION)
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    multi_label = config.get("problem_type") == "multi_label_classification"
    recipe = Recipe.from_record(record["config"], str(folder / "run.json"))
    settings = _settings(recipe, fitted_head(record), calibration, threshold_rule, sensitivity)
    check_rule(settings, names, multi_label)
    fitted = fit_operating_point(predictions, names, multi_label, settings)
    record.setdefault("calibrations", []).append(
        {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "scored_before": [entry["split"] for entry in record.get("evaluations", [])],
            "before": record.get("operating_points"),
        }
    )
    record["operating_points"] = fitted
    with atomic_write(folder / "model" / "config.json") as file:
        json.dump(config | operating_point_of(fitted), file, indent=2, sort_keys=True)
        file.write("\n")
    write_record(folder / "run.json", record)
    return fitted


def _settings(
    recipe: Recipe, before: HeadSettings, calibration: str | None, rule: str | None, sensitivity: float | None
) -> HeadSettings:
    """What was given, and for the rest what was before, checked like a recipe's."""
    if calibration not in (None, "none", "temperature", "platt"):
        raise InputError(f"--calibration {calibration}: it can be none, temperature or platt")
    if rule not in (None, *RULES):
        raise InputError(f"--threshold-rule {rule}: it can be {', '.join(RULES)}")
    chosen: dict[str, Any] = {
        "head.calibration": calibration or before.calibration,
        "head.threshold_rule": before.threshold_rule if rule is None else None if rule == "none" else rule,
        "head.sensitivity": before.sensitivity if sensitivity is None else sensitivity,
    }
    if sensitivity is not None and chosen["head.threshold_rule"] != "sensitivity":
        raise InputError(f"--sensitivity {sensitivity:g} is for --threshold-rule sensitivity; give both")
    return recipe.with_overrides(chosen).head


def _model_config(folder: Path) -> dict[str, Any]:
    path = folder / "model" / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the model's configuration; give the folder of a finished run") from error
    if not isinstance(config, dict) or "id2label" not in config:
        raise InputError(f"{path}: names no labels; give the folder of a finished run")
    return config


def format_fitted(fitted: dict[str, Any]) -> str:
    """What was fitted, a line a label."""
    on = fitted["fitted_on"]
    rule = fitted["rule"] or "none (probability 0.5)"
    if fitted.get("sensitivity") is not None:
        rule += f" {fitted['sensitivity']:g}"
    lines = [
        f"calibration {fitted['calibration']}, threshold rule {rule}, fitted on {on['split'] or 'validation'}: "
        f"{on['cycles']} cycles of {on['patients']} patients"
    ]
    for name, p in fitted["threshold_probabilities"].items():
        t, b = fitted["temperatures"][name], fitted["intercepts"][name]
        lines.append(f"  {name}: probability = sigmoid(logit / {t:.3f} {b:+.3f}), threshold {p:.3f}")
    if fitted["thresholds"] is None:
        lines.append(
            f"  one temperature: {next(iter(fitted['temperatures'].values())):.3f}; the likeliest class answers"
        )
    for figure in ("ece", "brier"):
        for name, before in fitted[f"{figure}_before"].items():
            after = fitted[f"{figure}_after"][name]
            said = " -> ".join("undefined" if v is None else f"{v:.4f}" for v in (before, after))
            lines.append(f"  {name}, {'ECE' if figure == 'ece' else 'Brier score'}: {said}")
    return "\n".join([*lines, *(f"note: {note}" for note in fitted["notes"])])
