"""What the page shows of one recording.

Decisions: the numbers are those of a `Prediction` and nothing is computed from them but counts and maxima. Colour
never stands alone: each label has a track of its own, and what passes its threshold is marked and said. The sound
travels inside the answer, so that no copy of it stays on the server.
"""

import base64
import html
import io
import itertools
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import soundfile

from laennec.audio.cycles import Cycle
from laennec.audio.recording import Recording, resample
from laennec.inference import waveform_plot as sketch
from laennec.inference.model_facts import ModelFacts
from laennec.inference.predictor import Prediction

MOST_TRACKS = 6
PLAYED_HZ = 16_000  # browsers differ in how low a rate they play
_LOUD = 0.9
_MOST_GAIN = 1000.0


def answer_html(
    name: str,
    recording: Recording,
    prediction: Prediction,
    facts: ModelFacts,
    cycles: Sequence[Cycle | None] | None = None,
    note: str = "",
) -> str:
    """The answer for one recording, as HTML that needs nothing from elsewhere.

    Args:
        name: What the visitor calls the recording.
        recording: The sound at its own rate.
        prediction: The model's answer.
        facts: Of the model.
        cycles: The annotation of each span, where the answer is by cycles; None for one that names no class.
        note: A sentence about the recording.
    """
    shown, left_out = _shown(prediction)
    colours = _colours([prediction.labels[i] for i in shown])
    lanes = sketch.lanes(prediction.spans)
    span = "cycle" if cycles is not None else "window"
    return template("answer.html").render(
        name=name,
        note=note,
        recording=recording,
        span=span,
        spans=[_span(i, prediction, shown, cycles) | {"lane": lanes[i]} for i in range(len(prediction.spans))],
        lanes=max(lanes) + 1,
        windows=_windows(prediction) if cycles is None else "",
        annotated=cycles is not None,
        classes=any(cycles or ()),
        labels=[_track(i, prediction, facts) | {"colour": colours[at]} for at, i in enumerate(shown)],
        left_out=left_out,
        multi_label=facts.multi_label,
        figure=_figure(recording),
        audio=_playable(recording),
    )


def problem_html(name: str, reason: str) -> str:
    """What is shown instead of an answer.

    Args:
        name: What the visitor calls the file; may be empty.
        reason: What is wrong and what to do.
    """
    said = f"<strong>{html.escape(name)}</strong>: " if name else ""
    return f'<div class="la-problem" role="alert">{said}{html.escape(reason)}</div>'


def facts_html(facts: ModelFacts, window_s: float, hop_s: float) -> str:
    """How to read the numbers, and where the thresholds come from."""
    return template("facts.html").render(facts=facts, window_s=window_s, hop_s=hop_s)


@cache
def template(name: str) -> jinja2.Template:
    """A template of the package; what goes into one that makes HTML is escaped."""
    environment = jinja2.Environment(
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["seconds"] = lambda value: f"{value:.1f}"
    text = (resources.files("laennec") / "templates" / name).read_text(encoding="utf-8")
    return environment.from_string(text)


def _shown(prediction: Prediction) -> tuple[list[int], int]:
    """Which labels have a track, in their own order: those with the highest probabilities; how many have none."""
    loudest = np.argsort(-prediction.probabilities.max(0), kind="stable")[:MOST_TRACKS]
    return sorted(int(i) for i in loudest), len(prediction.labels) - len(loudest)


def _colours(labels: Sequence[str]) -> list[int]:
    """The colour of each label: crackle and wheeze have theirs in every picture, the others what is left."""
    own = {name: number for number, name in enumerate(("crackle", "wheeze"), 1)}
    taken = {own[name.lower()] for name in labels if name.lower() in own}
    left = itertools.cycle(number for number in range(1, MOST_TRACKS + 1) if number not in taken)
    return [own.get(name.lower()) or next(left) for name in labels]


def _span(i: int, prediction: Prediction, shown: list[int], cycles: Sequence[Cycle | None] | None) -> dict[str, Any]:
    """A row of the table."""
    cycle = None if cycles is None else cycles[i]
    start_s, end_s = prediction.spans[i]
    heard = [name for name, is_present in zip(prediction.labels, prediction.present[i], strict=True) if is_present]
    return {
        "number": i + 1,
        "start_s": start_s,
        "end_s": end_s,
        "left": 100 * start_s / prediction.duration_s,
        "width": 100 * (end_s - start_s) / prediction.duration_s,
        "values": [(float(prediction.probabilities[i, k]), bool(prediction.present[i, k])) for k in shown],
        "heard": heard,
        "annotated": "" if cycle is None else cycle.label,
    }


def _track(k: int, prediction: Prediction, facts: ModelFacts) -> dict[str, Any]:
    """One label: its steps over time, and its highest moment."""
    values, present = prediction.probabilities[:, k], prediction.present[:, k]
    best = int(values.argmax())
    scale = 1000 / prediction.duration_s
    steps = [
        (start_s * scale, (end_s - start_s) * scale, 100 * float(p), bool(is_present))
        for (start_s, end_s), p, is_present in zip(sketch.cells(prediction.spans), values, present, strict=True)
    ]
    return {
        "name": prediction.labels[k],
        "threshold": facts.thresholds.get(prediction.labels[k]),
        "steps": steps,
        "count": int(present.sum()),
        "highest": float(values[best]),
        "best": best + 1,
        "best_span": prediction.spans[best],
    }


def _windows(prediction: Prediction) -> str:
    """How the windows lie, in words."""
    starts = [start for start, _ in prediction.spans]
    length = prediction.spans[0][1] - prediction.spans[0][0]
    every = f", one every {starts[1] - starts[0]:.3g} s" if len(starts) > 2 else ""
    return f"{length:.3g} s{every}"


def _figure(recording: Recording) -> dict[str, Any]:
    """What is drawn above the tracks, with the text of its axes as (position in percent, text)."""
    peak, limit = float(np.abs(recording.waveform).max()), sketch.usual_peak(recording.waveform)
    levels, top_hz = sketch.spectrogram_levels(recording.waveform, recording.sampling_rate)
    ticks_khz = sketch.nice_ticks(top_hz / 1000, 5)
    return {
        "envelope": sketch.envelope_path(recording.waveform, limit),
        "limit": _percent(limit),
        "peak": _percent(peak),
        "cut": limit < peak,
        "spectrogram": _data_uri("image/png", sketch.spectrogram_png(levels)),
        "depth_db": f"{sketch.DEPTH_DB:g}",
        "top_khz": f"{top_hz / 1000:g}",
        "khz": [(100 * (1 - value / (top_hz / 1000)), f"{value:g}") for value in ticks_khz],
        "seconds": [
            (100 * value / recording.duration_s, f"{value:g}") for value in sketch.nice_ticks(recording.duration_s, 7)
        ],
    }


def _percent(share: float) -> str:
    """Of full scale, two digits that count: 100, 4.8, 0.12."""
    value = 100 * share
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _playable(recording: Recording) -> str:
    """The recording as browsers play it: lossless, brought to one loudness."""
    sound = resample(recording.waveform, recording.sampling_rate, PLAYED_HZ)
    gain = min(_LOUD / sketch.usual_peak(recording.waveform), _MOST_GAIN)
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound * gain, -1, 1), PLAYED_HZ, "PCM_16", format="FLAC")
    return _data_uri("audio/flac", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
