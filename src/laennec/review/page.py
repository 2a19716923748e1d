"""The page of a review: one span with its spectrogram and sound, and a button and a key for each answer.

Decisions: a press sends the span that the reviewer saw, so a second press, or a press in another window, answers no
other span. The picture is only pixels; axes and marks are HTML, which is sharp at any width. The sound is the recording
at a common loudness, with a second and a half on either side of the span; the span alone is played at first. Keys do
nothing while somebody types.
"""

from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any

import numpy as np

from laennec.audio.recording import Waveform, playable
from laennec.audio.spectrogram import Spectrogram
from laennec.audio.streaming import open_recording, passing_cycles
from laennec.errors import InputError
from laennec.evaluation.report.plots import label_colour, spectrogram_png
from laennec.files import system_error
from laennec.rendering import data_uri, render_template
from laennec.review.answers import check_reviewer
from laennec.review.session import Item, Review

_CONTEXT_S, _WAITING = 1.5, 16
_KEYS = {"crackle": "c", "wheeze": "w", "both": "b", "normal": "n", "skip": "s", "undo": "u"}


def review_blocks(review: Review) -> Any:
    """The page as `gradio.Blocks`, to be launched or to be a part of another page."""
    import gradio as gr

    own = [label for label in review.labels if label not in _KEYS][:9]
    answers = [*(label for label in _KEYS if label in review.labels), *own, "normal", "skip", "undo"]
    if {"crackle", "wheeze"} <= set(answers):
        answers.insert(2, "both")
    items = {item.key: item for item in review.items}
    script = (resources.files("laennec") / "templates" / "review.js").read_text(encoding="utf-8")
    with gr.Blocks(title="Review", analytics_enabled=False) as page:
        shown = gr.HTML(elem_id="review", min_height=40)
        seen = gr.Textbox(visible=False)
        marks = gr.CheckboxGroup(
            own, label="Together with (Shift and digit)", elem_id="review-marks", visible=bool(own)
        )
        buttons = []
        for first in range(0, len(answers), 3):
            with gr.Row(elem_classes="review-buttons"):
                for answer in answers[first : first + 3]:
                    key = _KEYS.get(answer) or str(own.index(answer) + 1)
                    variant: Any = "secondary" if answer in ("skip", "undo") else "primary"
                    text = f"{answer[:1].upper()}{answer[1:]} ({key})"
                    buttons.append((gr.Button(text, variant=variant, elem_id=f"review-{key}", min_width=100), answer))
        who = gr.Textbox(review.reviewer, label="Reviewer", elem_id="review-who", max_lines=1)
        events: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "review", "show_progress": "hidden"}
        for button, answer in buttons:
            given = [seen, who, marks]
            press = partial(pressed, review, items, answer)
            button.click(press, given, [shown, marks], js="(...given) => window.laennecSeen(given)", **events)
        for change in (who.submit, who.blur, page.load):
            change(partial(shown_html, review), who, shown, **events)
        page.load(None, js=f"() => {{ {script} }}")
    return page


def with_review(page: Any, review: Review) -> Any:
    """The page of a review and another one as tabs."""
    import gradio as gr

    with gr.Blocks(title=f"Review: {review.folder.name}", analytics_enabled=False) as tabs:
        with gr.Tab("Review"):
            review_blocks(review)
        with gr.Tab("Predict a recording"):
            page.render()
    tabs.queue(default_concurrency_limit=1, max_size=_WAITING, api_open=False)
    return tabs


def pressed(
    review: Review, items: dict[str, Item], answer: str, key: str, who: str, marks: Sequence[str]
) -> tuple[str, list[str]]:
    """Answer the span that was seen; returns the HTML of the next one, and the marks that stay."""
    try:
        if answer == "undo":
            undone = review.undo(who)
            note = f"undone: {undone.text}" if undone else "nothing to undo"
        elif key not in items:  # from a page of an earlier server
            raise InputError("this page shows no span of the review; reload it")
        else:
            said = review.answer(answer, *marks, item=items[key], reviewer=who)
            note = f"kept: {said.text}" if said else ""
        return shown_html(review, who, note), []
    except (InputError, OSError) as error:
        return shown_html(review, who, problem=_said(error)), list(marks)


def shown_html(review: Review, who: str, note: str = "", problem: str = "") -> str:
    """The HTML of the reviewer's next span."""
    who = (who or "").strip()  # only a forged request has None
    values: dict[str, Any] = {"item": None, "picture": None, "bars": [], "note": note, "done": 0, "total": 0}
    try:
        item = review.next(check_reviewer(who))
        values |= {"item": item, "done": review.done(who), "total": review.total(who)}
        values |= _pictured(review, item) if item else {}
    except (InputError, OSError) as error:  # a missing recording can be skipped
        problem = problem or _said(error)
    return render_template("review.html", problem=problem, **values)


def _said(error: InputError | OSError) -> str:
    return str((isinstance(error, OSError) and system_error(error.filename or "output", error)) or error)


def _pictured(review: Review, item: Item) -> dict[str, Any]:
    """Values of the template for a span."""
    clip, rate, first_s = _clip(item)
    duration_s = len(clip) / rate
    spectrogram = Spectrogram(frame_s=0.032, overlap=8)
    spectrogram.extend(clip, rate)
    thresholds = review.predictor.decision_for(review.annotation is not None)["thresholds"] or {}
    bars = [
        (name, p, thresholds.get(name), label_colour(name, k)) for k, (name, p) in enumerate(item.probabilities.items())
    ]
    ticks = np.arange(np.ceil(first_s), first_s + duration_s, 1 if duration_s <= 20 else 5)
    return {
        "bars": [] if review.blind else bars,
        "from_s": item.start_s - first_s,
        "to_s": min(item.end_s - first_s, duration_s),
        "duration_s": duration_s,
        "ticks": [(f"{tick:g}", 100 * (tick - first_s) / duration_s) for tick in ticks],
        "top_khz": spectrogram.top_hz / 1000,
        "picture": data_uri("image/png", spectrogram_png(spectrogram)),
        "sound": data_uri("audio/flac", playable(clip, rate)),
    }


def _clip(item: Item) -> tuple[Waveform, int, float]:
    """The sound of a span and what is around it, its rate, and the time at which it begins."""
    first_s = max(item.start_s - _CONTEXT_S, 0.0)
    with open_recording(item.path) as stream:
        _, clip = next(passing_cycles(stream, [(first_s, item.end_s + _CONTEXT_S)]))
    rate = stream.sampling_rate
    return clip.own, rate, int(first_s * rate) / rate
