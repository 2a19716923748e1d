"""The map and the worst errors of a report, with spectrograms and sounds.

Decisions: a point of the map has the shape of its true class and is open where the prediction is wrong; its colour
shows a property that the reader chooses, so nothing depends on colour alone. For a page a cycle is resampled to 8 kHz,
raised to a common peak level (by a stated gain) and written as 16-bit WAV; its spectrogram has fixed settings, so that
two pages can be compared. The page states which recordings it contains, because sharing the page shares them.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray

from laennec.audio.spectrogram import TOP_HZ, Spectrogram
from laennec.corpora.waveforms import CycleWaveforms
from laennec.evaluation.metrics import CLASSES
from laennec.evaluation.predictions import Predictions
from laennec.evaluation.report.failures import METADATA, predicted_text, true_text, worst_errors
from laennec.evaluation.report.plots import spectrogram_png
from laennec.evaluation.summary import thresholds_in_use
from laennec.rendering import data_uri

WIDTH, HEIGHT, _MARGIN = 1000, 640, 24
_SHAPES = 4
_MOST_COLOURS = 8
_CLASS_COLOURS = {"crackle": 0, "wheeze": 1, "normal": 2, "both": 3}
RATE_HZ = 8000
MOST_SECONDS = 12.0
MOST_BYTES = 9_000_000  # of sounds in a page, as they are embedded
_PEAK_DB = -3.0
_MOST_GAIN_DB = 60.0
_TICKS_HZ = {0: "0 Hz", 500: "500 Hz", 1000: "1 kHz", 1500: "1.5 kHz", 2000: "2 kHz"}


@dataclass(frozen=True)
class Sound:
    """Spectrogram and sound of a cycle."""

    picture: str  # its spectrogram as a data URI
    seconds: float  # length of the spectrogram and of the sound
    whole: bool  # whether that is the whole cycle
    audio: str | None = None  # the sound as a data URI; None where it is left out
    gain_db: float = 0.0  # gain of the playback


@dataclass(frozen=True)
class Extras:
    """Parts of a report that need the model and the recordings."""

    # rows of the predictions on the map (points,) and their positions (points, 2) in 0..1; None for no map
    places: tuple[Any, Any] | None = None
    sounds: Mapping[int, Sound] = field(default_factory=dict)  # sounds by row of the predictions
    missing: Sequence[str] = ()  # what could not be made, and how to get it


def map_section(predictions: Predictions, run: Mapping[str, Any], extras: Extras) -> dict[str, Any]:
    """The points of the map with their colours and legends; without a map, how to get it."""
    if extras.places is None:
        return {"points": [], "missing": _missing(extras, "the map of the embedding", run)}
    rows, places = extras.places[0].tolist(), extras.places[1]
    truth = [true_text(predictions, row) for row in rows]
    predicted = [predicted_text(predictions, row) for row in rows]
    order = list(predictions.class_names) or sorted(set(truth))
    shapes = len(order) <= _SHAPES
    colourings = [("true class", *_class_colours(truth))]
    for column, title in (("device", "device"), ("patient_id", "patient")):
        if column in predictions.table.columns and predictions.table[column].notna().any():
            cells = predictions.table[column].iloc[rows].astype(object)
            colourings.append((title, *colours_of(cells.where(cells.notna(), None).tolist())))
    points: list[dict[str, Any]] = [
        {
            "x": round(_MARGIN + (WIDTH - 2 * _MARGIN) * float(x), 1),
            "y": round(_MARGIN + (HEIGHT - 2 * _MARGIN) * float(1 - y), 1),
            "shape": order.index(truth[k]) if shapes else 0,
            "colours": [numbers[k] for _, numbers, _ in colourings],
            "wrong": truth[k] != predicted[k],
            "text": f"{truth[k]}, predicted {predicted[k]}; {_point_text(predictions.table.iloc[row])}",
        }
        for k, (row, (x, y)) in enumerate(zip(rows, places, strict=True))
    ]
    points.sort(key=lambda point: point["wrong"])  # wrong predictions on top
    return {
        "points": points,
        "colourings": [{"title": title, "legend": legend} for title, _, legend in colourings],
        "shapes": [{"name": name, "shape": k} for k, name in enumerate(order)] if shapes else [],
        "width": WIDTH,
        "height": HEIGHT,
        "of": len(predictions.table),
        "wrong": sum(point["wrong"] for point in points),
    }


Colours = tuple[list[int | None], list[tuple[str, int, int | None]]]
"""Colour number of each point, and the legend: (name, points, colour number)."""


def _class_colours(truth: Sequence[str]) -> Colours:
    """Colours by true class; crackle and wheeze have those of every plot."""
    if not set(truth) <= set(CLASSES):
        return colours_of(truth)
    legend = [(name, truth.count(name), _CLASS_COLOURS[name]) for name in CLASSES if name in truth]
    return [_CLASS_COLOURS[name] for name in truth], cast(Any, legend)


def colours_of(values: Sequence[Any]) -> Colours:
    """A colour number for each value (None: rarer, or unknown), and the legend, most frequent first."""
    names = [None if value is None or value != value else str(value) for value in values]
    known = Counter(name for name in names if name is not None)
    number = {name: k for k, name in enumerate(sorted(known, key=lambda name: (-known[name], name))[:_MOST_COLOURS])}
    legend: list[tuple[str, int, int | None]] = [(name, known[name], k) for name, k in number.items()]
    if others := [count for name, count in known.items() if name not in number]:
        legend.append((f"{len(others)} others", sum(others), None))
    if None in names:
        legend.append(("unknown", names.count(None), None))
    return [None if name is None else number.get(name) for name in names], legend


def errors_section(
    predictions: Predictions, evaluation: Mapping[str, Any], run: Mapping[str, Any], extras: Extras
) -> dict[str, Any]:
    """The worst errors with their spectrograms and sounds, where there are any."""
    sounds, thresholds = extras.sounds, thresholds_in_use(evaluation)
    groups = worst_errors(predictions)
    for group in groups:
        for row in group["rows"]:
            row["name"] = row.get("recording_id") or row.get("cycle_id") or "cycle"
            row["sound"] = sounds.get(row["row"])
            row["probability_text"] = f"{row['label']} {_percent(row['probability'])}"
            if row["label"] in thresholds:
                row["probability_text"] += f", threshold {_percent(thresholds[row['label']])}"
            row["about"] = _about(row)
    listed = {row["row"]: row["sound"] for group in groups for row in group["rows"]}  # a cycle can be in two lists
    played = [sound for sound in listed.values() if sound is not None and sound.audio is not None]
    return {
        "groups": groups,
        "played": len(played),
        "seconds": round(sum(sound.seconds for sound in played)),
        "corpus": (run.get("corpus") or {}).get("name") or "the corpus",
        "silenced": bool(sounds) and not played,
        "missing": _missing(extras, "sounds and spectrograms", run) if groups and not sounds else [],
        "ticks": frequency_ticks(),
    }


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}" if 0.001 <= share <= 0.999 else ("< 0.1" if share < 0.5 else "> 99.9")
    return f"{text} %".replace(" ", "\u00a0")


def _point_text(row: Any) -> str:
    """Recording and `_about` of a row."""
    recording = row.get("recording_id")
    return f"recording {recording}, {_about(row)}" if pd.notna(recording) else _about(row)


def _about(row: Mapping[str, Any]) -> str:
    """Times, patient, chest location and device of a cycle, as far as they are known."""
    known = {name: row[name] for name in METADATA if name in row and pd.notna(row[name])}
    parts = []
    if "start_s" in known and "end_s" in known:
        length = known["end_s"] - known["start_s"]
        parts.append(f"{known['start_s']:.2f}–{known['end_s']:.2f} s ({length:.2f} s long)")
    texts = {
        "patient_id": "patient {}", "sex": "{}", "age_years": "{:g} years", "chest_location": "at {}", "device": "{}",
    }  # fmt: skip
    return ", ".join([*parts, *(text.format(known[name]) for name, text in texts.items() if name in known)])


def _missing(extras: Extras, what: str, run: Mapping[str, Any]) -> list[str]:
    if extras.missing:
        return list(extras.missing)
    split = (run.get("evaluated") or {}).get("split")
    command = "laennec report RUN" + (f" --split {split}" if split else "")
    return [f"For {what}, run {command} where the corpus is available."]


def cycle_sounds(table: Any, rows: Mapping[int, int], with_audio: bool = True) -> dict[int, Sound]:
    """Sounds and spectrograms of some cycles."""
    waveforms = CycleWaveforms(table.select(list(rows.values())), RATE_HZ)
    waveforms.prepare()
    found, bytes_used = {}, 0
    for key, waveform in zip(rows, waveforms, strict=True):
        part = np.asarray(waveform[: round(MOST_SECONDS * RATE_HZ)], dtype=np.float32)
        gain_db = playing_gain_db(part)
        audio = _wav_uri(part * 10 ** (gain_db / 20)) if with_audio else None
        bytes_used += len(audio or "")
        found[key] = Sound(
            picture=spectrogram_uri(part),
            seconds=len(part) / RATE_HZ,
            whole=len(part) == len(waveform),
            audio=audio if bytes_used <= MOST_BYTES else None,
            gain_db=gain_db,
        )
    return found


def playing_gain_db(waveform: NDArray[np.float32]) -> float:
    """The gain in dB that raises the peak of a cycle to -3 dB; 0 for silence."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return 0.0 if peak <= 0 else min(_PEAK_DB - 20 * float(np.log10(peak)), _MOST_GAIN_DB)


def _wav_uri(waveform: NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), RATE_HZ, format="WAV", subtype="PCM_16")
    return data_uri("audio/wav", buffer.getvalue())


def spectrogram_uri(waveform: NDArray[np.float32]) -> str:
    """The spectrogram of a waveform as a PNG data URI."""
    spectrogram = Spectrogram(frame_s=0.032, overlap=4, most_columns=700)
    # mirrored at the ends: a sudden silence would look like a click
    spectrogram.extend(np.pad(waveform, 128, mode="reflect" if len(waveform) > 128 else "constant"), RATE_HZ)
    return data_uri("image/png", spectrogram_png(spectrogram))


def frequency_ticks() -> list[tuple[str, float]]:
    """Frequencies beside a spectrogram: (text, percent of the height from below)."""
    return [(text, 100 * hz / TOP_HZ) for hz, text in _TICKS_HZ.items()]
