"""The operating point of a finished run, fitted again or fitted on smoothed predictions.

Decisions: it is fitted on the validation predictions that training stored, never on a test split; the weights of the
model do not change. The run record keeps the earlier operating point with the evaluations made until then, because a
rule that is chosen after seeing test scores is fitted to the test split. Earlier evaluations keep their own thresholds.
A model without its run has no validation predictions: its strength of smoothing must be given, and it keeps its
thresholds. Slow modules are imported after the arguments are checked.
"""

import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import (
    ICBHI_RULES,
    Calibration,
    FittingRule,
    ThresholdRule,
    decision_settings,
    fit_operating_point,
    fit_windows,
    operating_point_of,
    set_operating_point,
    window_points_of,
)
from laennec.evaluation.calibration.probabilities import (
    calibration_caution,
    calibration_name,
    smoothing_text,
    thresholds_text,
)
from laennec.evaluation.calibration.smoothing import (
    Smoothing,
    choose_smoothing,
    compare_smoothing,
    parse_smoothing,
    smooth_predictions,
)
from laennec.files import atomic_write, json_text
from laennec.training.record import read_record, read_run, write_record
from laennec.untrusted import read_json

if TYPE_CHECKING:
    import pandas as pd

VALIDATION = "predictions-validation.parquet"
WINDOWS = "windows-validation.parquet"
RULES = (*get_args(ThresholdRule), "none")


def fitted_rule(run: Mapping[str, Any]) -> FittingRule:
    """How a run's operating point was fitted last; the settings of its recipe where none was fitted."""
    head, fitted = run["config"]["head"], run.get("operating_points") or {}
    return FittingRule(
        # records of early versions have no calibration: with a rule they had temperatures
        calibration=fitted.get("calibration") or head.get("calibration", "temperature"),
        threshold_rule=fitted["rule"] if "rule" in fitted else head.get("threshold_rule"),
        sensitivity=fitted.get("sensitivity") or head.get("sensitivity", 0.9),
        smoothing=fitted.get("smoothing_rule", fitted.get("smoothing", 0.0)) if fitted else head.get("smoothing", 0.0),
    )


def recalibrate(
    run: str | Path,
    calibration: str | None = None,
    threshold_rule: str | None = None,
    sensitivity: float | None = None,
    command: str = "",
    spans: str = "events",
    data_dir: str | None = None,
    smoothing: str | float | None = None,
) -> dict[str, Any]:
    """Fit calibration and thresholds of a run on its stored validation predictions, and store them in its model.

    The operating points of windows and recordings are fitted again with those of events where the run has validation
    windows.

    Args:
        run: The folder of a finished run.
        calibration: "none", "temperature" or "platt"; None: as it was fitted before.
        threshold_rule: "youden", "f1", "icbhi", "icbhi_likeliest", "sensitivity", or "none" for probability 0.5;
            None: as before.
        sensitivity: The sensitivity of rule "sensitivity", 0 to 1; None: as before.
        command: The literal command, for the record.
        spans: "windows" predicts the validation windows first where the run does not have them.
        data_dir: Folder of the corpus, to predict windows; None: as in the run.
        smoothing: Weight of the recording's mean in predictions of annotated events, "auto" for the weight that ranks
            validation best, or "none"; None: as before.

    Returns:
        The fitted operating points of "events" and, where there are any, of "windows" and "recordings", as in the run
        record's `operating_points` and `window_points`.
    """
    folder = Path(run)
    record, config = read_run(folder / "run.json"), _model_config(folder)
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    multi_label = config.get("problem_type") == "multi_label_classification"
    rule = _new_rule(fitted_rule(record), names, multi_label, calibration, threshold_rule, sensitivity)
    if smoothing is not None:
        rule = replace(rule, smoothing=parse_smoothing(smoothing) or 0.0)
    fitted = fit_operating_point(read_validation(folder / VALIDATION), names, multi_label, rule)
    before = (record.get("window_points") or {}).get("windows")
    lengths = (before["window_s"], before["hop_s"]) if before else None
    if lengths is None and spans == "windows":
        lengths = predict_validation_windows(folder, record, data_dir)
    points = None
    if lengths is not None:
        points = fit_windows(read_validation(folder / WINDOWS), names, multi_label, rule, *lengths)
    record.setdefault("calibrations", []).append(
        {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "scored_before": [entry["split"] for entry in record.get("evaluations", [])],
            "before": record.get("operating_points"),
            "windows_before": record.get("window_points"),
        }
    )
    record["operating_points"], record["window_points"] = fitted, points
    with atomic_write(folder / "model" / "config.json") as file:
        stored = operating_point_of(fitted) | {"operating_points": window_points_of(points)}
        file.write(json_text(config | stored, indent=2, sort_keys=True) + "\n")
    write_record(folder / "run.json", record)
    return {"events": fitted, **(points or {})}


def predict_validation_windows(folder: Path, record: dict[str, Any], data_dir: str | None) -> tuple[float, float]:
    """Predict the validation windows of a run, store them in its folder, and return their length and hop."""
    from laennec.audio.cycles import window_lengths
    from laennec.corpora.load import provenance
    from laennec.evaluation.evaluate import load_model
    from laennec.evaluation.scored_data import check_split, recipe_of
    from laennec.training.data.split_data import load_splits
    from laennec.training.data.windows import predict_windows, refuse_shared_recordings

    model, extractor = load_model(folder)
    recipe = recipe_of(folder, record, {"data_dir": data_dir})
    splits = load_splits(recipe)
    origin = provenance(splits)
    check_split(record, recipe, origin)
    refuse_shared_recordings(splits, "validation", str(origin.get("protocol")))
    lengths = window_lengths(extractor)
    table = predict_windows(model, extractor, splits["validation"], "validation", recipe, *lengths)
    with atomic_write(folder / WINDOWS, "wb") as file:
        table.to_parquet(file, write_page_checksum=True)
    return lengths


def _new_rule(
    before: FittingRule,
    names: list[str],
    multi_label: bool,
    calibration: str | None,
    rule: str | None,
    sensitivity: float | None,
) -> FittingRule:
    """The given settings, with the earlier ones where none is given, checked against the labels."""
    if calibration is not None and calibration not in get_args(Calibration):
        raise InputError(f"calibration {calibration}: it can be none, temperature or platt")
    if calibration == "platt" and not multi_label:
        raise InputError("calibration platt: only for binary (yes/no) labels; single-label models take temperature")
    if rule not in (None, *RULES):
        raise InputError(f"threshold_rule {rule} (--threshold-rule): it can be {', '.join(RULES)}")
    wanted = before.threshold_rule if rule is None else None if rule == "none" else rule
    if multi_label and wanted in ICBHI_RULES and set(names) != {"crackle", "wheeze"}:
        raise InputError(
            f"threshold rule {wanted}: for crackle and wheeze, but the labels are {', '.join(names)}; take youden, f1 "
            "or sensitivity"
        )
    if sensitivity is not None and wanted != "sensitivity":
        raise InputError(f"sensitivity {sensitivity:g} is for threshold rule sensitivity; give both")
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise InputError(f"sensitivity {sensitivity:g}: it must be above 0 and at most 1")
    chosen = before.sensitivity if sensitivity is None else sensitivity
    return FittingRule(calibration or before.calibration, wanted, chosen, before.smoothing)


def _model_config(folder: Path) -> dict[str, Any]:
    path = folder / "model" / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the model's configuration; give the folder of a finished run") from error
    if not isinstance(config, dict) or "id2label" not in config:
        raise InputError(f"{path}: names no labels; give the folder of a finished run")
    return config


def read_validation(path: Path) -> "pd.DataFrame":
    """A run's stored validation predictions."""
    from laennec.evaluation.predictions import stored_predictions

    return stored_predictions(path, "train the run again")


def format_fitted(fitted: Mapping[str, Any], spans: str = "events") -> str:
    """A fitted operating point as text, one line per label."""
    on = fitted["fitted_on"]
    rule = fitted["rule"] or "none (probability 0.5)"
    if fitted.get("sensitivity") is not None:
        rule += f" {fitted['sensitivity']:g}"
    lines = [
        f"{spans}: calibration {fitted['calibration']}, threshold rule {rule}, fitted on "
        f"{on['split'] or 'validation'}: {on['cycles']} {'cycles' if spans == 'events' else spans} of {on['patients']} "
        "patients"
    ]
    for name, p in fitted["threshold_probabilities"].items():
        t, b = fitted["temperatures"][name], fitted["intercepts"][name]
        logit = f"logit / {t:.3f} {'-' if b < 0 else '+'} {abs(b):.3f}"
        lines.append(f"  {name}: probability = sigmoid({logit}), threshold {p:.3f}")
    if second := thresholds_text(fitted.get("second_thresholds") or {}, None):
        lines.append(f"  where another label is likelier: {second}")
    if smoothed := smoothing_text(fitted.get("smoothing")):
        lines.append(f"  {smoothed}")
    if fitted["thresholds"] is None:
        temperature = next(iter(fitted["temperatures"].values()))
        lines.append(f"  one temperature: {temperature:.3f}; the most probable class is predicted")
    for figure, title in (("ece", "ECE"), ("brier", "Brier score")):
        for name, before in fitted[f"{figure}_before"].items():
            values = (before, fitted[f"{figure}_after"][name])
            shown = " -> ".join("undefined" if value is None else f"{value:.4f}" for value in values)
            lines.append(f"  {calibration_name(name)}, {title}: {shown}")
    cautions = [calibration_caution(name, ece) for name, ece in fitted["ece_after"].items()]
    remedy = "; --calibration platt also fits an intercept" if fitted["calibration"] == "temperature" else ""
    notes = [
        *fitted["notes"],
        *(f"{caution}{remedy if fitted['thresholds'] else ''}" for caution in cautions if caution),
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def resolve_smoothing(
    wanted: str | float | None, source: str | Path, model: Any, neighbours: int = 0, spans: str = "events"
) -> Smoothing | None:
    """Strength and operating point of smoothed predictions, for a run or a model; None where nothing is smoothed.

    Args:
        wanted: "auto", "none", a strength, or None for none.
        source: The folder of the run or model.
        model: The model.
        neighbours: Number of cycles on either side in the mean; 0 for the whole recording.
        spans: "windows" takes the run's validation windows, where it has them, in place of its annotated events.
    """
    wanted = parse_smoothing(wanted)
    if wanted is None:
        return None
    record = Path(source) / "run.json"
    run = read_record(record) if record.exists() else {}
    points = (run.get("window_points") or {}) if spans == "windows" else {}
    path = Path(source) / (WINDOWS if points else VALIDATION)
    if not path.exists():
        if wanted == "auto":
            raise InputError(
                f"{source}: no {path.name} in this folder, which smoothing auto needs; give the folder of a "
                "finished run, or a strength such as 0.5"
            )
        return Smoothing(float(wanted))
    config = model.config
    validation, names = read_validation(path), config.label_names
    chosen = None
    if wanted == "auto":
        kind: Any = "multi_label" if config.is_multi_label else "single_label"
        chosen = choose_smoothing(validation, problem_type=kind, label_names=names, neighbours=neighbours)
    strength = chosen["strength"] if chosen else float(wanted)
    rule = replace(fitted_rule(run), smoothing=0.0) if run else None
    if rule is None or rule.threshold_rule is None or not config.is_multi_label:
        return Smoothing(strength, chosen)
    smoothed = smooth_predictions(validation, names, strength, neighbours)
    if points:
        lengths = [points["windows"][name] for name in ("window_s", "hop_s")]
        return Smoothing(strength, chosen, fit_windows(smoothed, names, True, rule, *lengths))
    return Smoothing(strength, chosen, fit_operating_point(smoothed, names, True, rule))


def smooth_model(
    wanted: str | float | None, source: str | Path, model: Any, neighbours: int = 0, spans: str = "events"
) -> tuple[float, str | None]:
    """Store the thresholds of smoothed predictions in a model; the strength (0: none), and a line about its origin."""
    smoothing = resolve_smoothing(wanted, source, model, neighbours, spans)
    if smoothing is None:
        return 0.0, None
    origin = "chosen on validation" if smoothing.chosen else "as given"
    thresholds = "the model's own thresholds, not fitted on smoothed predictions"
    if smoothing.fitted:
        if "windows" in smoothing.fitted:
            model.config.operating_points = window_points_of(smoothing.fitted)
        else:
            set_operating_point(model.config, smoothing.fitted)
        thresholds = "thresholds fitted on smoothed validation predictions"
    over = f"{neighbours} cycle{'s' if neighbours > 1 else ''} on either side" if neighbours else "recordings"
    return smoothing.strength, f"smoothing over {over}: strength {smoothing.strength:g}, {origin}; {thresholds}"


def smoothing_section(smoothing: Smoothing, config: Any, table: "pd.DataFrame") -> dict[str, Any]:
    """`compare_smoothing` with the thresholds of both sides, and where they come from."""
    own, fitted = decision_settings(config), smoothing.fitted
    labels = {name: own.pop(name) for name in ("problem_type", "label_names")}
    of_smoothed = {name: fitted[name] for name in own} if fitted else own
    section = compare_smoothing(table, smoothing.strength, **labels, decisions=(own, of_smoothed))
    origin = "the model's own thresholds on both sides"
    if fitted:
        origin = "thresholds of each side fitted on its own validation predictions"
    return section | {"chosen": smoothing.chosen, "fitted": fitted, "operating_points": origin}
