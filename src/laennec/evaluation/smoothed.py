"""How strongly answers are smoothed over a recording, and the thresholds that go with it.

Decisions: a run's validation predictions are what strength, thresholds and temperatures come from, so evaluation and
prediction of one run agree. A model that came without its run has no validation predictions: it takes a strength by
hand and keeps its own thresholds, and says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.errors import InputError
from laennec.evaluation.smoothing import choose_smoothing, compare_smoothing, smooth_predictions
from laennec.modeling import LaennecForAudioClassification
from laennec.training.recipe import HeadSettings
from laennec.training.record import read_record
from laennec.training.tables import fit_operating_point, logit_thresholds, place_operating_point

VALIDATION = "predictions-validation.parquet"


@dataclass
class Smoothing:
    """A strength with what it came from.

    Attributes:
        strength: 0 to 1.
        chosen: What `choose_smoothing` returned; None where the strength was given.
        fitted: What `fit_on_validation` returned for the smoothed validation predictions; None where the model's own
            thresholds and temperatures stay.
    """

    strength: float
    chosen: dict[str, Any] | None = None
    fitted: dict[str, Any] | None = None

    def thresholds(self, model: LaennecForAudioClassification) -> dict[str, float] | None:
        """In logits, for smoothed answers; None for a single_label model."""
        return self.fitted["thresholds"] if self.fitted else logit_thresholds(model)


def parse_smoothing(text: str | float | None) -> str | float | None:
    """What `--smoothing` says: "auto", a strength, or None for none.

    Raises:
        InputError: It says something else.
    """
    if text is None or text == "none":
        return None
    if text == "auto":
        return "auto"
    try:
        strength = float(text)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise InputError(f"--smoothing {text}: it can be auto, none or a strength from 0 to 1")
    return strength


def resolve_smoothing(
    wanted: str | float | None, source: str | Path, model: LaennecForAudioClassification, neighbours: int = 0
) -> Smoothing | None:
    """Strength and operating points for a run or a model.

    Args:
        wanted: "auto", "none", a strength, or None for none.
        source: The run's (or model's) folder.
        model: The model.
        neighbours: How many cycles on either side the mean goes over; 0 for the whole recording.

    Returns:
        None where nothing is to be smoothed.

    Raises:
        InputError: "auto" without a run's validation predictions, or a value that is none of these.
    """
    wanted = parse_smoothing(wanted)
    if wanted is None:
        return None
    path = Path(source) / VALIDATION
    if not path.exists():
        if wanted == "auto":
            raise InputError(
                f"{source}: no {VALIDATION} there, on which the strength could be chosen; give the folder of a "
                "finished run, or a strength: --smoothing 0.5"
            )
        return Smoothing(float(wanted))
    validation = read_validation(path)
    names, problem = model.config.label_names, "multi_label" if model.config.is_multi_label else "single_label"
    chosen = None
    if wanted == "auto":
        chosen = choose_smoothing(validation, problem_type=problem, label_names=names, neighbours=neighbours)  # type: ignore[arg-type]
    strength = chosen["strength"] if chosen else float(wanted)
    record = Path(source) / "run.json"
    head = fitted_head(read_record(record)) if record.exists() else HeadSettings()
    if head.threshold_rule is None or not model.config.is_multi_label:
        return Smoothing(strength, chosen)
    smoothed = smooth_predictions(validation, names, strength, neighbours)
    return Smoothing(strength, chosen, fit_operating_point(smoothed, names, True, head))


def fitted_head(run: dict[str, Any]) -> HeadSettings:
    """The settings by which a run's operating point was fitted last; those of its recipe where it had none.

    Args:
        run: The run record.
    """
    of_recipe, fitted = run["config"]["head"], run.get("operating_points") or {}
    return HeadSettings(
        # records of earlier versions name no calibration: with a rule they had temperatures
        calibration=fitted.get("calibration") or of_recipe.get("calibration", "temperature"),
        threshold_rule=fitted["rule"] if "rule" in fitted else of_recipe.get("threshold_rule"),
        sensitivity=fitted.get("sensitivity") or of_recipe.get("sensitivity", HeadSettings().sensitivity),
    )


def smooth_model(
    wanted: str | float | None, source: str | Path, model: LaennecForAudioClassification, neighbours: int = 0
) -> tuple[float, str | None]:
    """Have a model decide by the thresholds and temperatures of smoothed answers.

    Args:
        wanted: See `resolve_smoothing`.
        source: The run's (or model's) folder.
        model: The model, changed in place.
        neighbours: See `resolve_smoothing`.

    Returns:
        The strength, and a line about where it and the thresholds come from; 0 and None for no smoothing.

    Raises:
        InputError: As `resolve_smoothing`.
    """
    smoothing = resolve_smoothing(wanted, source, model, neighbours)
    if smoothing is None:
        return 0.0, None
    of = "chosen on validation" if smoothing.chosen else "given"
    if smoothing.fitted:
        place_operating_point(model, smoothing.fitted)
        rest = "thresholds fitted on smoothed validation answers"
    else:
        rest = "the thresholds are the model's own, not those of smoothed answers"
    over = f"{neighbours} cycle{'s' if neighbours > 1 else ''} on either side" if neighbours else "recordings"
    return smoothing.strength, f"smoothing over {over}: strength {smoothing.strength:g}, {of}; {rest}"


def compare(
    smoothing: Smoothing, model: LaennecForAudioClassification, predictions: pd.DataFrame, draws: int
) -> dict[str, Any]:
    """A predictions table without and with smoothing, each by thresholds of its own, as `compare_smoothing` says."""
    section = compare_smoothing(
        predictions,
        smoothing.strength,
        problem_type="multi_label" if model.config.is_multi_label else "single_label",
        label_names=model.config.label_names,
        thresholds=(logit_thresholds(model), smoothing.thresholds(model)),
        n_draws=draws,
    )
    refitted = "thresholds of each side fitted on its own validation predictions"
    kept = "the model's own thresholds on both sides"
    said = refitted if smoothing.fitted else kept
    return section | {"chosen": smoothing.chosen, "fitted": smoothing.fitted, "operating_points": said}


def read_validation(path: Path) -> pd.DataFrame:
    """A run's stored validation predictions.

    Raises:
        InputError: The file is not there or torn.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot read the validation predictions ({str(error).splitlines()[0]}); train the run again"
        ) from error
