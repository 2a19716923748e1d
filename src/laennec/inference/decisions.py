"""Which labels are present in spans and in whole recordings.

Decisions: windows use the thresholds and calibration fitted on validation windows, cycles those fitted on annotated
events; where nothing was fitted on windows, they use those of events, and the output states this. A recording has a
label if the highest logit of its windows passes the threshold fitted for recordings. Where none was fitted, thresholds
were given or the spans are not windows, it has every label of its spans.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.cycles import Span
from laennec.errors import InputError
from laennec.evaluation.calibration.probabilities import calibrated_logits, pass_second, sigmoid, softmax

GIVEN_RULE, ANY_SPAN = "given", "any span"
_NUMBERS = ("thresholds", "temperatures", "intercepts")
Probabilities = NDArray[np.float32]


def decision_of(config: Any, given: Mapping[str, float], spans: str) -> dict[str, Any]:
    """The decision rule: thresholds, calibration, the rule that chose the thresholds, and what they were fitted on."""
    fitted_on = spans if spans in config.operating_points else "events"
    calibration = {name: config.per_label(name, spans) for name in ("temperatures", "intercepts")}
    if not config.is_multi_label:
        if given:
            raise InputError(
                "thresholds: this model outputs its most probable class and uses no thresholds; leave them out"
            )
        decision: dict[str, Any] = {"rule": "most probable class", "thresholds": None}
        return {**decision, **calibration, "fitted_on": fitted_on, "recording": ANY_SPAN}
    for name, value in given.items():
        if name not in config.label_names:
            raise InputError(f"thresholds: unknown label {name!r}; the labels are {', '.join(config.label_names)}")
        if not 0 <= value <= 1:
            raise InputError(f"thresholds: {name}={value:g} is not a probability; give a number from 0 to 1")
    point = config.operating_points.get(spans, config.operating_point)
    own = point.get("rule") or ("not recorded" if config.thresholds and not point else "probability 0.5")
    rule = GIVEN_RULE if given and set(given) == set(config.label_names) else own
    if given and rule == own:
        rule = f"{own}; {', '.join(sorted(given))} {GIVEN_RULE}"
    thresholds = config.per_label("thresholds", spans) | dict(given)
    decision = {"rule": rule, "thresholds": {name: float(value) for name, value in thresholds.items()}, **calibration}
    decision |= _second(config, spans, given)
    recording: Any = ANY_SPAN
    if spans == "windows" and not given and "recordings" in config.operating_points:
        recording = {name: config.per_label(name, "recordings") for name in _NUMBERS}
        recording |= _second(config, "recordings", given)
    return {**decision, "fitted_on": fitted_on, "recording": recording}


def _second(config: Any, spans: str, given: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The model's second thresholds, of labels without a given threshold; {} where it has none."""
    second = {name: p for name, p in config.labels_with_second(spans).items() if name not in given}
    return {"second_thresholds": second} if second else {}


def probabilities_of(config: Any, logits: Probabilities, spans: str) -> Probabilities:
    """Probabilities with the calibration for "events", "windows" or "recordings": (spans, labels) -> the same."""
    calibration = {name: config.per_label(name, spans) for name in ("temperatures", "intercepts")}
    values = calibrated_logits(logits, config.label_names, **calibration)
    return (sigmoid if config.is_multi_label else softmax)(values).astype(np.float32)


def present_labels(config: Any, probabilities: Probabilities, decision: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Thresholds for multi-label models, the most probable class otherwise: (spans, labels) -> (spans, labels)."""
    names = config.label_names
    if decision["thresholds"] is not None:
        # as in evaluation
        second = decision.get("second_thresholds", {})
        above = probabilities > np.array([decision["thresholds"][name] for name in names])
        return above & pass_second(probabilities, [second.get(name, 0.0) for name in names])
    return np.eye(len(names), dtype=bool)[probabilities.argmax(1)]


def overall_of(
    config: Any,
    logits: Probabilities,
    probabilities: Probabilities,
    present: NDArray[np.bool_],
    spans: Sequence[Span],
    duration_s: float,
    decision: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """The recording as a whole, as `Prediction.overall` holds it."""
    whole: Any = probabilities.max(0)
    has: Any = present.any(0)
    if decision["recording"] != ANY_SPAN:
        whole = probabilities_of(config, logits.max(0, keepdims=True), "recordings")[0]
        has = present_labels(config, whole[None], decision["recording"])[0]
    found = {}
    for k, name in enumerate(config.label_names):
        covered_s = _covered_s([span for span, is_present in zip(spans, present[:, k], strict=True) if is_present])
        found[name] = {
            "present": int(has[k]),
            "probability": round(float(whole[k]), 6),
            "highest": round(float(probabilities[:, k].max()), 6),
            "share": round(min(covered_s / duration_s, 1.0), 6),
        }
    return found


def _covered_s(spans: Sequence[Span]) -> float:
    covered, reached = 0.0, 0.0
    for start_s, end_s in sorted(spans):
        covered += max(end_s - max(start_s, reached), 0.0)
        reached = max(reached, end_s)
    return covered
