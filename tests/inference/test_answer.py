"""What the page shows of a recording: the prediction's numbers, for any labels, and nothing that was smuggled in."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import Cycle
from laennec.audio.recording import Recording
from laennec.inference.answer import MOST_TRACKS, answer_html, facts_html, problem_html
from laennec.inference.model_facts import ModelFacts
from laennec.inference.predictor import Prediction

TWO = ModelFacts("a model", ["crackle", "wheeze"], True, {"crackle": 0.4, "wheeze": 0.2}, "From somewhere.")


def recording(seconds=6.0, rate=4000):
    t = np.arange(int(seconds * rate)) / rate
    return Recording((0.2 * np.sin(2 * np.pi * 300 * t)).astype(np.float32), rate, rate, "x.wav")


def prediction(probabilities, spans, labels, thresholds):
    values = np.array(probabilities, np.float32)
    return Prediction("x.wav", 6.0, 4000, spans, values, values > np.array(thresholds), labels)


def cells_of(html):
    """The table as text."""
    rows = re.findall(r"<tr data-row.*?</tr>", html, re.S)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_the_numbers_are_those_of_the_prediction():
    answer = prediction([[0.314, 0.159], [0.926, 0.535]], [(0, 3), (3, 6)], TWO.labels, [0.4, 0.2])
    html = answer_html("mine.wav", recording(), answer, TWO)
    assert cells_of(html) == [
        ["", "1", "0.0–3.0", "0.31", "0.16"],
        ["", "2", "3.0–6.0", "0.93 ● above the threshold", "0.54 ● above the threshold"],
    ]
    assert html.count("threshold 0.40") == 2 and html.count("threshold 0.20") == 2
    assert re.findall(r'la-count">(\d)</b> of 2 windows', html) == ["1", "1"]
    assert "highest <b>0.93</b>, 3.0–6.0 s" in html


def test_cycles_show_their_annotation():
    answer = prediction([[0.1, 0.9]], [(0.5, 2.25)], TWO.labels, [0.4, 0.2])
    html = answer_html("mine.wav", recording(), answer, TWO, [Cycle(0.5, 2.25, 0, 1)])
    assert cells_of(html)[0][-1] == "wheeze" and 'aria-label="Play cycle 1, 0.5 to 2.2 seconds"' in html


def test_crackle_and_wheeze_keep_their_colours():
    four = ["normal", "crackle", "wheeze", "both"]
    answer = prediction([[0.1, 0.6, 0.2, 0.1]], [(0, 3)], four, [0.5] * 4)
    html = answer_html("x", recording(), answer, ModelFacts("m", four, False, {}, "None."))
    cards = dict(re.findall(r'la-card la-c(\d)">\s*<h3>(\w+)', html))
    assert {name.lower(): number for number, name in cards.items()} == {
        "normal": "3", "crackle": "1", "wheeze": "2", "both": "4",
    }  # fmt: skip


def test_one_answer_of_many_labels_shows_the_likeliest():
    labels = [f"label {i}" for i in range(20)]
    values = np.full((2, 20), 0.02)
    values[0, 7], values[1, 13] = 0.6, 0.5
    answer = prediction(values, [(0, 3), (3, 6)], labels, [0.3] * 20)
    html = answer_html("x", recording(), answer, ModelFacts("m", labels, False, {}, "None."))
    assert html.count('class="la-card ') == MOST_TRACKS and "14 further labels" in html
    assert "Label 7" in html and "Label 13" in html and "threshold" not in html


def test_the_sound_plays_back_at_one_loudness():
    answer = prediction([[0.1, 0.9]], [(0, 6)], TWO.labels, [0.4, 0.2])
    html = answer_html("x", recording(), answer, TWO)
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(re.search(r"audio/flac;base64,([^\"]+)", html).group(1))))
    assert rate == 16000 and len(sound) == 6 * 16000 and np.abs(sound).max() == pytest.approx(0.9, abs=0.02)


def test_names_of_files_and_labels_are_text():
    evil = '<img src=x onerror="alert(1)">'
    facts = ModelFacts(evil, [evil], True, {evil: 0.5}, evil, [evil])
    answer = prediction([[0.9]], [(0, 6)], [evil], [0.5])
    for html in (
        answer_html(evil, recording(), answer, facts, note=evil),
        problem_html(evil, evil),
        facts_html(facts, 3, 1.5),
    ):
        assert "<img src=x" not in html.replace("<Img", "<img") and "&lt;" in html


def test_nothing_is_asked_of_another_machine():
    answer = prediction([[0.1, 0.9]], [(0, 6)], TWO.labels, [0.4, 0.2])
    html = answer_html("x", recording(), answer, TWO) + facts_html(TWO, 3, 1.5)
    assert not re.findall(r"https?:|//[a-z]", re.sub(r"data:[^\"]+", "", html))
