"""The map and the worst errors of a report, which need the predictions, the model or the recordings.

Decisions: a point of the map has the shape of its true class, is open where the prediction is wrong, and has the
colour of what the reader chooses, so nothing depends on colour alone. Colours are for the eight most frequent values
of a column; the others share a grey. The worst errors are listed with or without their sounds, and the page states
which recordings it contains, because to pass it on is to pass them on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from laennec.evaluation.failures import predicted_text, true_text, worst_errors
from laennec.evaluation.metrics import CLASSES
from laennec.evaluation.plots import thresholds_in_use
from laennec.evaluation.predictions import Predictions

WIDTH, HEIGHT, _MARGIN = 1000, 640, 24
_SHAPES = 4
_MOST_COLOURS = 8
_CLASS_COLOURS = {"crackle": 0, "wheeze": 1, "normal": 2, "both": 3}
_COLOURINGS = (("device", "device"), ("patient_id", "patient"))


@dataclass(frozen=True)
class Sound:
    """A cycle to look at and to listen to.

    Attributes:
        picture: Its mel spectrogram as a data URI.
        seconds: Length of what is shown (and played).
        whole: Whether that is the whole cycle.
        ticks: Frequencies on the picture, (text, percent from below).
        audio: The sound as a data URI; None where it is left out.
        gain_db: Gain of the playback.
    """

    picture: str
    seconds: float
    whole: bool
    ticks: Sequence[tuple[str, float]]
    audio: str | None = None
    gain_db: float = 0.0


@dataclass(frozen=True)
class Extras:
    """Parts of a report that need the model and the recordings.

    Attributes:
        places: Rows of the predictions on the map (points,) and their positions (points, 2) in 0..1; None for no map.
        sounds: Sounds by row of the predictions.
        missing: What could not be made, and how to get it.
    """

    places: tuple[Any, Any] | None = None
    sounds: Mapping[int, Sound] = field(default_factory=dict)
    missing: Sequence[str] = ()


def map_section(
    predictions: Predictions | None, run: Mapping[str, Any], extras: Extras | None
) -> dict[str, Any] | None:
    """The points of the map with their colours and legends; how to get it where there is none."""
    if predictions is None:
        return None
    if extras is None or extras.places is None:
        return {"points": [], "missing": _missing(extras, "the map of the embedding", run)}
    rows, places = [int(row) for row in extras.places[0]], extras.places[1]
    truth = [true_text(predictions, row) for row in rows]
    predicted = [predicted_text(predictions, row) for row in rows]
    order = list(predictions.class_names) or sorted(set(truth))
    colourings = [_class_colouring(truth)]
    for column, title in _COLOURINGS:
        cells = predictions.table.get(column)
        if cells is not None and cells.notna().any():
            cells = cells.astype(object).where(cells.notna(), None)
            numbers, legend = colours_of([cells.iloc[row] for row in rows])
            colourings.append({"title": title, "numbers": numbers, "legend": legend})
    points: list[dict[str, Any]] = [
        {
            "x": round(_MARGIN + (WIDTH - 2 * _MARGIN) * float(x), 1),
            "y": round(_MARGIN + (HEIGHT - 2 * _MARGIN) * float(1 - y), 1),
            "shape": order.index(truth[k]) % _SHAPES if len(order) <= _SHAPES else 0,
            "colours": [c["numbers"][k] for c in colourings],
            "wrong": truth[k] != predicted[k],
            "text": f"{truth[k]}, predicted {predicted[k]}; {_origin(predictions.table.iloc[row])}",
        }
        for k, (row, (x, y)) in enumerate(zip(rows, places, strict=True))
    ]
    points.sort(key=lambda point: point["wrong"])  # wrong predictions on top
    return {
        "points": points,
        "colourings": [{"title": c["title"], "legend": c["legend"]} for c in colourings],
        "shapes": [{"name": name, "shape": k} for k, name in enumerate(order)] if len(order) <= _SHAPES else [],
        "width": WIDTH,
        "height": HEIGHT,
        "of": len(predictions.table),
        "wrong": sum(point["wrong"] for point in points),
    }


def _class_colouring(truth: Sequence[str]) -> dict[str, Any]:
    """Colours by true class; crackle and wheeze have those of every plot."""
    if not set(truth) <= set(CLASSES):
        numbers, legend = colours_of(truth)
        return {"title": "true class", "numbers": numbers, "legend": legend}
    legend = [(name, truth.count(name), _CLASS_COLOURS[name]) for name in CLASSES if name in truth]
    return {"title": "true class", "numbers": [_CLASS_COLOURS[name] for name in truth], "legend": legend}


def colours_of(values: Sequence[Any]) -> tuple[list[int | None], list[tuple[str, int, int | None]]]:
    """A colour number for each value, and the legend.

    Returns:
        Number 0..7 of each value (None: rarer, or unknown), and (name, points, number) for the most frequent values,
        then for the rest together.
    """
    missing = [value is None or value != value for value in values]
    known = Counter(str(value) for value, absent in zip(values, missing, strict=True) if not absent)
    common = sorted(known, key=lambda name: (-known[name], name))[:_MOST_COLOURS]
    number = {name: k for k, name in enumerate(common)}
    numbers = [None if absent else number.get(str(v)) for v, absent in zip(values, missing, strict=True)]
    legend: list[tuple[str, int, int | None]] = [(name, known[name], k) for name, k in number.items()]
    if others := len(known) - len(common):
        legend.append((f"{others} others", sum(known.values()) - sum(known[name] for name in common), None))
    if any(missing):
        legend.append(("unknown", sum(missing), None))
    return numbers, legend


def _origin(row: Any) -> str:
    """Recording, times, patient and device of a cycle, as text."""
    parts = []
    if _known(row, "recording_id"):
        parts.append(f"recording {row['recording_id']}")
    if _known(row, "start_s") and _known(row, "end_s"):
        parts.append(f"{row['start_s']:.2f}–{row['end_s']:.2f} s")
    parts += [
        f"{title} {row[name]}" for name, title in (("patient_id", "patient"), ("device", "device")) if _known(row, name)
    ]
    return ", ".join(parts)


def _known(row: Any, name: str) -> bool:
    return name in row.index and bool(row[[name]].notna().all())


def errors_section(
    predictions: Predictions | None, evaluation: Mapping[str, Any], run: Mapping[str, Any], extras: Extras | None
) -> dict[str, Any] | None:
    """The worst errors with their spectrograms and sounds, as far as there are any."""
    if predictions is None:
        return None
    sounds = extras.sounds if extras is not None else {}
    thresholds = None if predictions.thresholds is None else thresholds_in_use(evaluation)
    groups = worst_errors(predictions)
    for group in groups:
        for row in group["rows"]:
            row["name"] = row.get("recording_id") or row.get("cycle_id") or "cycle"
            row["sound"] = sounds.get(row["row"])
            row["probability_text"] = _probability_text(row, thresholds)
            row["about"] = _about(row)
    listed = {row["row"]: row["sound"] for group in groups for row in group["rows"]}  # a cycle can be in two lists
    played = [sound for sound in listed.values() if sound is not None and sound.audio is not None]
    corpus = (run.get("corpus") or {}).get("name") if isinstance(run.get("corpus"), Mapping) else None
    return {
        "groups": groups,
        "played": len(played),
        "seconds": round(sum(sound.seconds for sound in played)),
        "corpus": corpus or "the corpus",
        "silenced": bool(sounds) and not played,
        "missing": _missing(extras, "sounds and spectrograms", run) if groups and not sounds else [],
    }


def _probability_text(row: Mapping[str, Any], thresholds: Mapping[str, float] | None) -> str:
    """The probability of a label, and its threshold."""
    text = f"{row['label']} {_percent(row['probability'])}"
    return text if thresholds is None else f"{text}, threshold {_percent(thresholds[row['label']])}"


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}" if 0.001 <= share <= 0.999 else ("< 0.1" if share < 0.5 else "> 99.9")
    return f"{text} %".replace(" ", "\u00a0")


def _about(row: Mapping[str, Any]) -> str:
    """Times, patient and chest location of a cycle, as text."""
    parts = []
    if row.get("start_s") is not None and row.get("end_s") is not None:
        length = row["end_s"] - row["start_s"]
        parts.append(f"{row['start_s']:.2f}–{row['end_s']:.2f} s ({length:.2f} s long)")
    names = (("patient_id", "patient"), ("sex", ""), ("age_years", ""), ("chest_location", "at"), ("device", ""))
    for name, title in names:
        if (value := row.get(name)) is not None:
            text = f"{value:g} years" if name == "age_years" else str(value)
            parts.append(f"{title} {text}".strip())
    return ", ".join(parts)


def _missing(extras: Extras | None, what: str, run: Mapping[str, Any]) -> list[str]:
    """Why something is not in the page, and how to get it."""
    if extras is not None and extras.missing:
        return list(extras.missing)
    split = (run.get("evaluated") or {}).get("split")
    command = "laennec report RUN" + (f" --split {split}" if split else "")
    return [f"For {what}, run {command} where the corpus is available."]
