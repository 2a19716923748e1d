"""The parts of a report that are more than a table or a picture.

Decisions: a map point says by its shape what was true, by being hollow that the answer was wrong, and by its colour
what the reader chooses; nothing hangs on colour alone. The worst errors are listed with or without their sounds, and
the page says which recordings it carries, because whoever passes it on passes them on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from laennec.evaluation.embedding_map import HEIGHT, MARGIN, MOST_POINTS, WIDTH, colours_of
from laennec.evaluation.geometry import four_properties
from laennec.evaluation.metrics import CLASSES
from laennec.evaluation.pictures import thresholds_in_use
from laennec.evaluation.predictions import Answers
from laennec.evaluation.summary import figure_name, figure_text
from laennec.evaluation.worst import said, worst_errors

_SHAPES = 4
_CLASS_COLOURS = {"crackle": 0, "wheeze": 1, "normal": 2, "both": 3}
_COLOURINGS = (("device", "device"), ("patient_id", "patient"))
_PROPERTIES = (
    ("intra", "mean", "Intra-class clustering", "mean distance within a class", "lower is tighter"),
    ("intra", "cv", "Intra-class equidistance", "spread / mean within a class", "lower is more even"),
    ("inter", "mean", "Inter-class separation", "mean distance between classes", "1 is a right angle"),
    ("inter", "cv", "Inter-class equidistance", "spread / mean between classes", "lower is more even"),
)


@dataclass(frozen=True)
class Sound:
    """A cycle to look at and to listen to.

    Attributes:
        picture: Its mel spectrogram as a data URI.
        seconds: How much of it is shown (and played).
        whole: Whether that is all of it.
        ticks: Frequencies on the picture, (text, percent from below).
        audio: The sound as a data URI; None where it was left out.
        gain_db: How much louder than recorded it plays.
    """

    picture: str
    seconds: float
    whole: bool
    ticks: Sequence[tuple[str, float]]
    audio: str | None = None
    gain_db: float = 0.0


@dataclass(frozen=True)
class Extras:
    """What a report has only where the model and the recordings are at hand.

    Attributes:
        places: Rows of the answers' table on the map (points,) and their places (points, 2) in 0..1; None for no map.
        sounds: Sounds by row of the answers' table.
        with_audio: Whether the sounds are in the page.
        missing: What could not be made, and how to get it.
    """

    places: tuple[Any, Any] | None = None
    sounds: Mapping[int, Sound] = field(default_factory=dict)
    with_audio: bool = False
    missing: Sequence[str] = ()


def geometry_section(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """The four properties as text, and the distances between classes as shaded cells."""
    properties = four_properties(geometry)
    lines = [
        {
            "name": name,
            "what": what,
            "better": better,
            "value": figure_text("cv", properties[kind][key]),
            "note": f"st. dev. {figure_text('sd', properties[kind]['sd'])}, "
            f"variance {figure_text('sd', properties[kind]['variance'])}, {properties[kind]['pairs']:,} pairs",
        }
        for kind, key, name, what, better in _PROPERTIES
    ]
    titles = (("mean", "Mean of d = 1 − cos"), ("cv", "Coefficient of variation of d"))
    return {
        "properties": lines,
        "classes": geometry["classes"],
        "matrices": [{"title": title, "rows": _shaded(geometry[key])} for key, title in titles],
        "many": len(geometry["classes"]) > 12,
    }


def _shaded(values: Sequence[Sequence[float | None]]) -> list[list[dict[str, Any]]]:
    """Cells with a depth of colour from 0 to 100 percent of the largest value."""
    top = max((v for row in values for v in row if v is not None), default=0.0) or 1.0
    return [
        [
            {"text": "–" if v is None else f"{v:.2f}", "depth": 0 if v is None else round(88 * max(v, 0) / top)}
            for v in row
        ]
        for row in values
    ]


def length_section(
    lengths: Mapping[str, Any], floor: Mapping[str, float | None], blind: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """AUROC within groups of like length, and on stretches of one length, as text."""
    names = list(lengths["overall"]["values"])
    rows = [
        {
            "span": f"{group['low_s']:.2f}–{group['high_s']:.2f} s",
            "cycles": group["cycles"],
            "patients": group["patients"],
            "cells": [
                (group["positives"][name], *_with_bounds(group["values"][name], group["intervals"][name]))
                for name in names
            ],
        }
        for group in lengths["groups"]
    ]
    summary = [
        {
            "label": name,
            "overall": _with_bounds(lengths["overall"]["values"][name], lengths["overall"]["intervals"][name]),
            "within": _with_bounds(lengths["within"]["values"][name], lengths["within"]["intervals"][name]),
            "floor": _with_bounds(floor.get(name), None)[0] if name in floor else "not computed",
            "blind": _with_bounds(blind["values"].get(f"{name}.roc_auc"), None)[0] if blind else None,
        }
        for name in names
    ]
    return {"labels": names, "rows": rows, "summary": summary, "blind_s": f"{blind['seconds']:g}" if blind else None}


def _with_bounds(value: float | None, bounds: Sequence[float] | None) -> tuple[str, str | None]:
    """A value and its interval as texts."""
    text = "–" if value is None else f"{value:.3f}"
    return text, f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else None


def decision_section(curves: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each label's probabilities are worth at the threshold in use, as text.

    Args:
        curves: What `decision_curves` returned.
        evaluation: What `evaluate_predictions` returned.
    """
    in_use, ece = thresholds_in_use(dict(evaluation)), (evaluation.get("calibration") or {}).get("ece") or {}
    rows = []
    for name, curve in curves.items():
        row: dict[str, Any] = {"label": name, "ece": figure_text("ece", ece.get(name))}
        if name in in_use:
            place = min(range(len(curve["thresholds"])), key=lambda k: abs(curve["thresholds"][k] - in_use[name]))
            value, everyone = curve["model"][place], curve["treat_all"][place]
            bounds = curve["intervals"][place]
            row |= {
                "threshold": f"{in_use[name]:.2f}",
                "value": f"{value:+.3f}",
                "bounds": f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else None,
                "everyone": f"{everyone:+.3f}",
                "helps": value > max(everyone, 0.0),
            }
        rows.append(row)
    return rows


def map_section(answers: Answers | None, run: Mapping[str, Any], extras: Extras | None) -> dict[str, Any] | None:
    """The points of the map with their colours and legends; what is missing where there is none."""
    if answers is None:
        return None
    if extras is None or extras.places is None:
        return {"points": [], "missing": _missing(extras, "the map of the embedding", run)}
    rows, places = [int(row) for row in extras.places[0]], extras.places[1]
    truth = [said(answers, row, answers.true, answers.truth) for row in rows]
    given = [said(answers, row, answers.predicted, answers.decided) for row in rows]
    order = list(answers.class_names) or sorted(set(truth))
    colourings = [_class_colouring(truth)]
    for column, title in _COLOURINGS:
        if column in answers.table.columns and answers.table[column].notna().any():
            cells = answers.table[column].astype(object).where(answers.table[column].notna(), None)
            numbers, legend = colours_of([cells.iloc[row] for row in rows])
            colourings.append({"title": title, "numbers": numbers, "legend": _legend(legend)})
    points: list[dict[str, Any]] = [
        {
            "x": round(MARGIN + (WIDTH - 2 * MARGIN) * float(x), 1),
            "y": round(MARGIN + (HEIGHT - 2 * MARGIN) * float(1 - y), 1),
            "shape": order.index(truth[k]) % _SHAPES if len(order) <= _SHAPES else 0,
            "colours": [c["numbers"][k] for c in colourings],
            "wrong": truth[k] != given[k],
            "text": f"{truth[k]}, answered {given[k]}; {_where(answers.table.iloc[row])}",
        }
        for k, (row, (x, y)) in enumerate(zip(rows, places, strict=True))
    ]
    points.sort(key=lambda point: point["wrong"])  # what is wrong lies on top
    shapes = [{"name": name, "shape": k} for k, name in enumerate(order)] if len(order) <= _SHAPES else []
    return {
        "points": points,
        "colourings": [{"title": c["title"], "legend": c["legend"]} for c in colourings],
        "shapes": shapes,
        "width": WIDTH,
        "height": HEIGHT,
        "shown": len(points),
        "of": len(answers.table),
        "most": MOST_POINTS,
        "wrong": sum(point["wrong"] for point in points),
    }


def _class_colouring(truth: Sequence[str]) -> dict[str, Any]:
    """Colours by true class; crackle and wheeze have those of every picture."""
    if not set(truth) <= set(CLASSES):
        numbers, legend = colours_of(truth)
        return {"title": "true class", "numbers": numbers, "legend": _legend(legend)}
    counts = [(name, truth.count(name), _CLASS_COLOURS[name]) for name in CLASSES if name in truth]
    return {"title": "true class", "numbers": [_CLASS_COLOURS[name] for name in truth], "legend": _legend(counts)}


def _legend(entries: Sequence[tuple[str, int, int | None]]) -> list[dict[str, Any]]:
    return [{"name": name, "count": count, "number": number} for name, count, number in entries]


def _where(row: Any) -> str:
    """Where a cycle comes from, as text: what the table knows of recording, times, patient and device."""
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
    answers: Answers | None, evaluation: Mapping[str, Any], run: Mapping[str, Any], extras: Extras | None
) -> dict[str, Any] | None:
    """The worst errors with what there is to see and hear of them."""
    if answers is None:
        return None
    sounds = extras.sounds if extras is not None else {}
    thresholds = None if answers.thresholds is None else thresholds_in_use(dict(evaluation))
    groups = worst_errors(answers)
    for group in groups:
        for row in group["rows"]:
            row["sound"] = sounds.get(row["row"])
            row["said"] = _said(row, thresholds)
            row["times"] = _times(row)
            row["about"] = _about(row)
    listed = {row["row"]: row["sound"] for group in groups for row in group["rows"]}  # some are in two lists
    heard = [sound for sound in listed.values() if sound is not None and sound.audio is not None]
    corpus = (run.get("corpus") or {}).get("name") if isinstance(run.get("corpus"), Mapping) else None
    return {
        "groups": groups,
        "heard": len(heard),
        "seconds": round(sum(sound.seconds for sound in heard)),
        "corpus": corpus or "the corpus",
        "silenced": bool(sounds) and not heard,
        "missing": _missing(extras, "sounds and spectrograms", run) if groups and not sounds else [],
    }


def _said(row: Mapping[str, Any], thresholds: Mapping[str, float] | None) -> str:
    """What probability a label was given, and from where on it is called."""
    text = f"{row['label']} {_percent(row['probability'])}"
    if thresholds is None:
        return text
    return f"{text}, called above {_percent(thresholds[row['label']])}"


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}" if 0.001 <= share <= 0.999 else ("< 0.1" if share < 0.5 else "> 99.9")
    return f"{text} %".replace(" ", "\u00a0")


def _times(row: Mapping[str, Any]) -> str | None:
    if row.get("start_s") is None or row.get("end_s") is None:
        return None
    return f"{row['start_s']:.2f}–{row['end_s']:.2f} s ({row['end_s'] - row['start_s']:.2f} s long)"


def _about(row: Mapping[str, Any]) -> str:
    """What is known of patient and place."""
    names = (("patient_id", "patient"), ("sex", ""), ("age_years", ""), ("chest_location", "at"), ("device", ""))
    parts = []
    for name, title in names:
        value = row.get(name)
        if value is not None:
            text = f"{value:g} years" if name == "age_years" else str(value)
            parts.append(f"{title} {text}".strip())
    return ", ".join(parts)


def _missing(extras: Extras | None, what: str, run: Mapping[str, Any]) -> list[str]:
    """Why something is not in the page."""
    if extras is not None and extras.missing:
        return list(extras.missing)
    part = (run.get("evaluated") or {}).get("split")
    command = "laennec report RUN" + (f" --split {part}" if part else "")
    return [f"For {what}: {command}, where the corpus is at hand."]


def picture_texts(evaluation: Mapping[str, Any], captions: Mapping[str, str]) -> dict[str, str]:
    """What each picture shows, in words with its main numbers, for those who do not see it."""
    values, labels = evaluation.get("values", {}), evaluation.get("label_names", [])

    def listed(kind: str) -> str:
        names = [f"{label}.{kind}" for label in labels[:8]]
        return "; ".join(f"{figure_name(n)} {figure_text(n, values.get(n))}" for n in names if n in values)

    ece = (evaluation.get("calibration") or {}).get("ece") or {}
    numbers = {
        "roc": listed("roc_auc"),
        "precision_recall": listed("average_precision"),
        "reliability": "; ".join(f"{name} ECE {figure_text('ece', value)}" for name, value in list(ece.items())[:8]),
    }
    for k, label in enumerate(labels):
        known = {kind: figure_text(kind, values.get(f"{label}.{kind}")) for kind in ("precision", "recall", "roc_auc")}
        numbers[f"label_confusion_{k + 1}"] = f"{label}: precision {known['precision']}, recall {known['recall']}"
        numbers[f"length_{k + 1}"] = f"{label}: AUROC of all cycles {known['roc_auc']}"
        numbers[f"decision_{k + 1}"] = f"Label {label}."
    return {name: f"{text} {numbers.get(name, '')}".strip() for name, text in captions.items()}
