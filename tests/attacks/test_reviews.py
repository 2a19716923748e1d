"""Damaged or forged review files: no answer changes without a message, and a review continues."""

import json
import random
import tracemalloc

import numpy as np
import pytest
import soundfile

from laennec.files import journal_line
from laennec.review.agreement import agreement_of, agreement_text
from laennec.review.answers import Answer, Answers
from laennec.review.page import _clip, pressed, shown_html
from laennec.review.session import Item, Review


@pytest.fixture(scope="module")
def sounds(small_corpus):
    return sorted(small_corpus.glob("*.wav"))[:3]


@pytest.fixture
def answers(sounds, tmp_path):
    """Two reviewers' answers to three spans."""
    made = Answers(tmp_path / "review")
    for sound in sounds:
        for who, labels in (("ann", ("crackle",)), ("bob", ())):
            made.add(Answer(sound.name, 0.5, 1.5, labels, who, "f00d", "uncertain", {"crackle": 0.4}, "P1"), sound)
    return made


def test_a_flipped_bit_changes_no_answer_without_a_message(answers, capsys):
    whole, before, draw = answers.journal.read_bytes(), answers.active(), random.Random(0)
    for place in draw.sample(range(len(whole) - 1), 60):
        flipped = bytes([whole[place] ^ 1 << draw.randrange(8)])
        answers.journal.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        capsys.readouterr()
        now = Answers(answers.folder).active()
        assert now == before or "damaged and left out" in capsys.readouterr().err, place
        assert all(answer in before for answer in now), place


OF_A_STRANGER = {
    "recording": (None, 7, "../x.wav", "/x.wav", "a\0b.wav"),
    "start_s": (None, [], -1, "x", 10**400, 1.5),
    "end_s": (None, {}, "x", 10**400, 0.5),
    "labels": ("crackle", [None], {"crackle": 1}, 0, False),
    "reviewer": (None, True, 7, [], {}),
    "model": (None, 7, []),
    "rule": (None, []),
    "probabilities": (None, [], "x", {"crackle": "x"}, {"crackle": [1]}),
    "patient_id": (7, []),
    "answered_at": (None, 7),
    "another": ("x",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OF_A_STRANGER for value in OF_A_STRANGER[name]])
def test_an_invalid_line_is_skipped_with_a_message(answers, capsys, name, value):
    lines = answers.journal.read_bytes().splitlines(keepends=True)
    said = json.loads(lines[1]) | {name: value}
    del said["xxh3"]
    lines[1] = journal_line(**said)
    answers.journal.write_bytes(b"".join(lines))
    again = Answers(answers.folder)
    assert len(again.active()) == 5 and "line 2: damaged and left out" in capsys.readouterr().err
    assert agreement_text(agreement_of(answers.folder))


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def review(tiny_run, small_corpus, tmp_path_factory):
    return Review(tiny_run, small_corpus, tmp_path_factory.mktemp("page") / "review", reviewer="ann")


@pytest.mark.parametrize("key", ["", "0.000 2.000 of an earlier review.wav", None])
def test_a_button_press_on_a_page_of_an_earlier_server_has_no_effect(review, key):
    assert review.next() is not None
    said, _ = pressed(review, {item.key: item for item in review.items}, "crackle", key, "ann", [])
    assert "reload it" in said and review.answers.active() == []


def test_a_request_without_a_reviewer_is_answered(review):
    assert "reviewer" in shown_html(review, None)


def test_the_last_span_of_a_long_recording_takes_no_more_memory_than_the_first(tmp_path):
    place, rate, minutes = tmp_path / "long.flac", 8000, 30
    soundfile.write(place, np.random.default_rng(0).integers(-99, 99, 60 * rate * minutes, np.int16), rate)
    peaks = []
    for start_s in (0.0, 60.0 * minutes - 2):
        tracemalloc.start()
        clip, *_ = _clip(Item("long.flac", start_s, start_s + 2, place, {}, None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(clip) == 3.5 * rate
    assert peaks[1] < 2 * peaks[0]
