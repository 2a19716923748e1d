"""Answers in the files of other programs: what is marked, what the columns hold, and that they can be read again."""

import csv
import itertools
import json

import numpy as np
import pytest
from matplotlib.image import imread

from laennec.audio.cycles import read_spans
from laennec.audio.spectrogram import Spectrogram
from laennec.cli.main import main
from laennec.inference.outputs import Stretch, stretches, write_audacity, write_csv, write_json, write_raven
from laennec.inference.picture import timeline_figure, write_picture
from laennec.inference.predictor import Prediction

WINDOWS = {"from": "windows", "window_s": 2.0, "hop_s": 1.0}
DECISION = {"rule": "youden", "thresholds": {"crackle": 0.5, "wheeze": 0.3}, "temperatures": {}}


def timeline(
    probabilities, spans=None, places=WINDOWS, decision=DECISION, labels=("crackle", "wheeze"), name="in/a b.wav"
):
    """A timeline with these probabilities (spans, labels)."""
    p = np.array(probabilities, np.float32).reshape(-1, len(labels))
    spans = spans or [(float(i), float(i + 2)) for i in range(len(p))]
    if decision["thresholds"] is None:
        present = np.eye(len(labels), dtype=bool)[p.argmax(1)]
    else:
        present = p > np.array([decision["thresholds"][name] for name in labels])
    end = max(end for _, end in spans)
    return Prediction(name, end, 4000, spans, p, present, list(labels), places=places, decision=decision).to_dict()


BUSY = [(0.1, 0.9), (0.6, 0.4), (0.9, 0.1), (0.2, 0.1), (0.7, 0.35), (0.1, 0.31), (0.1, 0.1)]


def test_windows_that_touch_are_one_mark_and_cycles_a_mark_each():
    assert stretches(timeline(BUSY)) == [
        Stretch("wheeze", 0.0, 3.0, 0.9),
        Stretch("crackle", 1.0, 6.0, 0.9),
        Stretch("wheeze", 4.0, 7.0, 0.35),
    ]
    apart = [(0.0, 2.0), (2.0, 3.0), (3.0, 4.5), (5.0, 6.0), (6.0, 7.0), (7.0, 9.0), (9.0, 9.5)]
    for places in ({"from": "annotation", "file": "x"}, {"from": "segmentation"}):
        found = stretches(timeline(BUSY, apart, places))
        assert (
            len(found) == 3 + 4
            and Stretch("crackle", 2.0, 3.0, 0.6) in found
            and Stretch("crackle", 3.0, 4.5, 0.9) in found
        )


def test_normal_of_a_single_label_model_is_not_marked():
    exclusive = {"rule": "most probable class", "thresholds": None, "temperatures": {}}
    rows = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.2, 0.7, 0.1), (0.1, 0.1, 0.8)]
    found = stretches(timeline(rows, decision=exclusive, labels=("normal", "crackle", "wheeze")))
    assert [(m.label, m.start_s, m.end_s) for m in found] == [("crackle", 1.0, 4.0), ("wheeze", 3.0, 5.0)]


def test_an_audacity_label_track_is_tabs_and_reads_back(tmp_path):
    path = write_audacity(tmp_path / "x.txt", timeline(BUSY))
    assert path.read_bytes().split(b"\n")[:2] == [b"0.000\t3.000\twheeze 0.90", b"1.000\t6.000\tcrackle 0.90"]
    assert read_spans(path, 8.0) == [(0.0, 3.0), (1.0, 6.0), (4.0, 7.0)]
    assert write_audacity(tmp_path / "none.txt", timeline([(0, 0)])).read_bytes() == b""


def test_a_raven_table_has_ravens_header_and_reads_back(tmp_path):
    path = write_raven(tmp_path / "x.txt", timeline(BUSY, name="in/tab\there.wav"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0])[:7] == [
        "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"
    ]  # fmt: skip
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert rows[1] == {
        "Selection": "2", "View": "Spectrogram 1", "Channel": "1", "Begin Time (s)": "1.000", "End Time (s)": "6.000",
        "Low Freq (Hz)": "0.0", "High Freq (Hz)": "2000.0", "Begin Path": "in/tab\\there.wav", "Label": "crackle",
        "Probability": "0.9000",
    }  # fmt: skip
    assert read_spans(path, 8.0) == [(0.0, 3.0), (1.0, 6.0), (4.0, 7.0)]
    assert write_raven(tmp_path / "none.txt", timeline([(0, 0)])).read_text().count("\n") == 1


def test_names_that_are_hard_to_write_are_written(tmp_path):
    name = 'in/a,"b"\nç \udcff.wav'
    made = timeline(BUSY, name=name)
    assert json.loads(write_json(tmp_path / "x.json", made).read_text("utf-8"))["timeline"] == made["timeline"]
    with write_csv(tmp_path / "x.csv", [made, made]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 and rows[0]["recording"] == 'in/a,"b"\\nç \\udcff.wav'
    write_raven(tmp_path / "x.txt", made)
    write_picture(tmp_path / "x.png", timeline(BUSY, name="in/$x_{2$ ç.wav"), Spectrogram())


@pytest.mark.parametrize("format", ["audacity", "raven"])
def test_marks_of_one_run_are_predicted_by_another(tiny_run, small_corpus, tmp_path, format):
    """The files of one prediction are an annotation for the next."""
    path = sorted(small_corpus.glob("*.wav"))[0]
    everything = ["--thresholds", "crackle=0,wheeze=1"]
    assert (
        main(["predict", str(tiny_run), str(path), "--out", str(tmp_path / "a"), "--format", format, *everything]) == 0
    )
    (marks,) = (tmp_path / "a").glob("*.txt")
    assert main(["predict", str(tiny_run), str(path), "--out", str(tmp_path / "b"), "--annotation", str(marks)]) == 0
    made = json.loads((tmp_path / "b" / f"{path.stem}.laennec.json").read_text())
    assert made["spans"]["from"] == "annotation"
    assert [(row["start_s"], row["end_s"]) for row in made["timeline"]] == [(0.0, made["duration_s"])]


# ---------------------------------------------------------------- pictures


class Sound:
    """As much of a stream as a spectrogram asks for."""

    def __init__(self, rate):
        self.sampling_rate = rate


def spectrogram_of(waveform, rate, block):
    made = Spectrogram()
    for first in range(0, len(waveform), block):
        made.add(Sound(rate), waveform[first : first + block])
    return made


@pytest.mark.parametrize(("rate", "seconds"), [(32_000, 0.05), (4000, 3), (1000, 150), (1000, 2000)])
def test_a_spectrogram_in_blocks_is_that_of_the_whole(rate, seconds):
    waveform = np.random.default_rng(0).standard_normal(int(rate * seconds)).astype(np.float32)
    whole = spectrogram_of(waveform, rate, len(waveform))
    for block in (997, 10 * rate):
        if len(waveform) / block < 5000:
            part = spectrogram_of(waveform, rate, block)
            assert part.column_s == whole.column_s
            np.testing.assert_allclose(part.columns, whole.columns, rtol=1e-4)
    assert len(whole.columns) <= 1600 and whole.top_hz <= 2000
    if seconds > 1:
        assert abs(len(whole.columns) * whole.column_s - seconds) <= 2 * whole.column_s + 0.2


def test_a_tone_lies_where_it_is_in_time_and_frequency():
    rate = 4000
    time = np.arange(600 * rate) / rate
    tone = np.where((time > 200) & (time < 300), np.sin(2 * np.pi * 800 * time), 0.001 * np.sin(2 * np.pi * 300 * time))
    made = spectrogram_of(tone.astype(np.float32), rate, 10 * rate)
    level = made.level_db()
    bins, columns = np.nonzero(level > -10)
    assert columns.min() * made.column_s >= 199 and columns.max() * made.column_s <= 301
    middle = (np.median(bins) + 0.5) * made.top_hz / len(level)
    assert abs(middle - 800) < 30


@pytest.mark.parametrize("seconds", [0.1, 8.0, 900.0])
def test_the_picture_of_a_sound_goes_on_to_its_end(seconds):
    rate = 4000
    sound = np.random.default_rng(0).standard_normal(int(rate * seconds)).astype(np.float32)
    figure = timeline_figure(timeline([(0.5, 0.5)], spans=[(0.0, seconds)]), spectrogram_of(sound, rate, 10 * rate))
    shown = figure.axes[0].images[0]
    assert shown.get_extent()[1] >= seconds
    level = shown.get_array()
    assert float(np.mean(level[:, -1])) > float(np.mean(level)) - 10


@pytest.mark.parametrize("kind", ["windows", "one window", "cycles", "hours", "many labels", "one answer", "nothing"])
def test_pictures_of_every_shape_are_drawn_without_a_word(tmp_path, kind, recwarn):
    rng = np.random.default_rng(0)
    sound, places, decision, labels, spans = 30, WINDOWS, DECISION, ("crackle", "wheeze"), None
    count = {"one window": 1, "hours": 9000, "nothing": 3}.get(kind, 29)
    if kind == "one window":
        spans, sound = [(0.0, 0.4)], 0.4
    if kind == "cycles":
        places, spans = {"from": "segmentation"}, [(float(i), i + 1.0) for i in range(29)]
    if kind == "many labels":
        labels = tuple(f"sound {i}" for i in range(20))
        decision = {"rule": "given", "thresholds": dict.fromkeys(labels, 0.5), "temperatures": {}}
    if kind == "one answer":
        labels, decision = (
            ("normal", "crackle"),
            {"rule": "most probable class", "thresholds": None, "temperatures": {}},
        )
    made = timeline(rng.random((count, len(labels))) * (kind != "nothing"), spans, places, decision, labels)
    rate, sound = (100, made["duration_s"]) if kind == "hours" else (4000, sound)
    waveform = rng.standard_normal(int(rate * sound)).astype(np.float32)
    figure = timeline_figure(made, spectrogram_of(waveform, rate, 40_000))
    figure.canvas.draw()
    shown = [t for t in figure.axes[2].get_xticklabels() if t.get_text()]
    assert len(shown) >= 2 and shown[-1].get_text() == {"one window": "0.40", "hours": "2:20"}.get(
        kind, shown[-1].get_text()
    )
    boxes = [t.get_window_extent() for t in shown]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), "labels of the time axis overlap"
    if kind == "one window":
        first = write_picture(tmp_path / "a.png", made, spectrogram_of(waveform, rate, 40_000)).read_bytes()
        assert first == write_picture(tmp_path / "b.png", made, spectrogram_of(waveform, rate, 40_000)).read_bytes()
        assert imread(tmp_path / "a.png").shape[1] > 1500
    # what others left open may be swept up meanwhile
    assert [str(w.message) for w in recwarn if not issubclass(w.category, ResourceWarning)] == []
