"""One recording: streamed answers are those of a call, spans come from where they are said to, decisions are stated."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml

from laennec.audio.recording import ButterworthFilter, DecodeError, read_recording
from laennec.audio.segmentation import BreathSegmentation, breath_cycles
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.calibration.smoothing import smooth_logits
from laennec.evaluation.evaluate import load_model
from laennec.inference import predictor as predicting
from laennec.inference.batch.run import Predictor, predict


@pytest.fixture(scope="module")
def model(frozen_run):
    return load_model(frozen_run)


@pytest.fixture(scope="module")
def sound(shared_data):
    return shared_data / "icbhi2017_subset" / "112_1p1_Ll_sc_Litt3200.flac"


def together(answers):
    return [(a.start_s, a.end_s) for a in answers], np.array([a.probabilities for a in answers])


@pytest.mark.parametrize(
    ("where", "smoothing"),
    [("windows", (0.5, 100)), ("annotation", (0.7, 1)), ("segmentation", (1.0, 3)), ("windows", (0.0, 0))],
)
def test_a_stream_gives_what_a_call_gives(model, sound, where, smoothing):
    segmentation = BreathSegmentation() if where == "segmentation" else None
    predictor = Predictor(*model, 3, 2, smoothing[0], neighbours=smoothing[1], segmentation=segmentation)
    annotation = sound.with_suffix(".txt") if where == "annotation" else None
    whole = predictor(sound, annotation)
    answers = list(predictor.stream(sound, annotation))
    spans, probabilities = together(answers)
    assert spans == whole.spans and len(spans) > 5
    np.testing.assert_array_equal(probabilities, whole.probabilities)
    np.testing.assert_array_equal([a.present for a in answers], whole.present)


@pytest.mark.parametrize(("strength", "neighbours"), [(0.4, 0), (0.4, 1), (1.0, 2)])
def test_smoothing_mixes_logits_by_the_stated_rule(model, sound, strength, neighbours):
    plain = Predictor(*model, 3, 2)(sound)
    smoothed = Predictor(*model, 3, 2, strength, neighbours=neighbours)(sound)
    temperatures = np.array(list(smoothed.decision["temperatures"].values()))
    p = plain.probabilities.astype(float)
    logits = np.log(p / (1 - p)) * temperatures
    wanted = 1 / (1 + np.exp(-smooth_logits(logits, [0] * len(logits), strength, neighbours) / temperatures))
    np.testing.assert_allclose(smoothed.probabilities, wanted, atol=2e-6)
    rule = {"rule": "neighbour-mean", "strength": strength, "neighbours": neighbours}
    rule = rule if neighbours else {"rule": "recording-mean", "strength": strength}
    assert smoothed.to_dict()["smoothing"] == rule and "smoothing" not in plain.to_dict()


def test_a_recordings_mean_cannot_be_streamed(model, sound):
    with pytest.raises(InputError, match="cannot be streamed"):
        next(Predictor(*model, smoothing=0.5).stream(sound))


def test_predictions_come_while_the_recording_is_read(model, tmp_path):
    """A file that is cut in its middle: the first half is answered before that is noticed."""
    rate = 8000
    soundfile.write(tmp_path / "x.flac", 0.1 * np.random.default_rng(0).standard_normal(120 * rate), rate)
    content = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    predictor = Predictor(*model, 0.5, 0.5)
    answered = []
    with pytest.raises(DecodeError, match="cut short"):
        for answer in predictor.stream(tmp_path / "x.flac"):
            answered.append(answer)
    assert len(answered) > 20
    with pytest.raises(DecodeError, match="cut short"):
        predictor(tmp_path / "x.flac")


def test_how_many_spans_are_embedded_at_once_makes_no_difference(model, sound, monkeypatch):
    whole = Predictor(*model, 2, 0.5)(sound)
    for spans, samples in ((1, 1 << 22), (7, 1 << 22), (64, 200_000)):
        monkeypatch.setattr(predicting, "_CHUNK_SPANS", spans)
        monkeypatch.setattr(predicting, "_CHUNK_SAMPLES", samples)
        np.testing.assert_allclose(Predictor(*model, 2, 0.5)(sound).probabilities, whole.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "rate", "subtype"), [(1, 4000, "PCM_U8"), (2, 11_025, "FLOAT"), (6, 96_000, "PCM_24")]
)
def test_any_rate_depth_and_number_of_channels_is_predicted(model, tmp_path, channels, rate, subtype):
    noise = 0.1 * np.random.default_rng(0).standard_normal((5 * rate, channels))
    soundfile.write(tmp_path / "x.wav", noise, rate, subtype=subtype)
    made = Predictor(*model, 2, 1)(tmp_path / "x.wav")
    assert made.spans[-1][1] == pytest.approx(5.0, abs=1e-3) and made.source_sampling_rate == rate
    network, extractor = model
    whole = read_recording(
        tmp_path / "x.wav", extractor.sampling_rate, filter=ButterworthFilter(**extractor.recording_filter)
    )
    with torch.inference_mode():
        features = extractor(
            whole.waveform[: 2 * extractor.sampling_rate], sampling_rate=extractor.sampling_rate, filtered=True
        )
        wanted = network.probabilities(network(**features).logits, "windows")[0]
    np.testing.assert_allclose(made.probabilities[0], wanted, atol=2e-6)


def test_segmented_breaths_are_predicted_and_stated(frozen_run, sound, tmp_path):
    assert main(["predict", str(frozen_run), str(sound), "--segment", "--out", str(tmp_path)]) == 0
    made = json.loads((tmp_path / f"{sound.stem}.laennec.json").read_text())
    assert made["spans"] == {"from": "segmentation", **vars(BreathSegmentation())}
    wanted = [(round(start, 3), round(end, 3)) for start, end in breath_cycles(sound)]
    assert [(row["start_s"], row["end_s"]) for row in made["timeline"]] == wanted and len(wanted) > 6


def test_sprsound_events_are_predicted(frozen_run, shared_data, tmp_path):
    folder = shared_data / "sprsound" / "test_intra"
    notes = {p.stem: json.loads(p.read_text()) for p in sorted((folder / "json").glob("*.json"))[:40]}
    poor = next((name for name, note in notes.items() if not note["event_annotation"]), None)
    names = [name for name, note in notes.items() if note["event_annotation"]][:2] + ([poor] if poor else [])
    sounds = [str(next((folder / "wav").glob(f"{name}.*"))) for name in names]
    command = ["predict", str(frozen_run), *sounds, "--annotation", str(folder / "json"), "--out", str(tmp_path)]
    assert main(command) == (2 if poor else 0)
    for name in names[:2]:
        rows = json.loads((tmp_path / f"{name}.laennec.json").read_text())["timeline"]
        wanted = [(float(e["start"]) / 1000, float(e["end"]) / 1000) for e in notes[name]["event_annotation"]]
        assert [(row["start_s"], row["end_s"]) for row in rows] == [(round(s, 3), round(e, 3)) for s, e in wanted]
    if poor:
        assert "no events in this file" in (tmp_path / "laennec.failed.csv").read_text()


def test_two_annotations_of_one_recording_are_not_chosen_from(frozen_run, sound, tmp_path, capsys):
    (tmp_path / f"{sound.stem}.txt").write_text("0\t1\tx\n")
    (tmp_path / f"{sound.stem}.selections.txt").write_text("Begin Time (s)\tEnd Time (s)\n0\t2\n")
    command = ["predict", str(frozen_run), str(sound), "--out", str(tmp_path / "out"), "--annotation"]
    assert main([*command, str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "two annotations in" in err and err.count("\n") == 1
    assert main([*command, str(tmp_path / f"{sound.stem}.selections.txt")]) == 0


def test_windows_are_no_longer_than_the_input_of_the_model(model, sound, tmp_path):
    """A model that takes the first 2 s of a cycle is given windows of 2 s, and somebody who wants 3 is told."""
    network, extractor = model
    short = type(extractor).from_dict({**extractor.to_dict(), "length": "repeat", "duration_s": 2.0})
    predictor = Predictor(network, short)
    assert (predictor.window_s, predictor.hop_s) == (2.0, 1.0) and predicting.input_note(predictor) is None
    longer = Predictor(network, short, window_s=3)
    assert predicting.input_note(longer) == "the model uses only the first 2 s of each 3 s window"
    assert (Predictor(*model).window_s, Predictor(*model).hop_s) == (3.0, 1.5)
    said = predicting.input_note(predictor, annotated=True)
    assert said == "the model uses only the first 2 s of each cycle that is longer"
    assert predicting.input_note(Predictor(*model), annotated=True) is None


def test_a_sound_shorter_than_a_frame_is_refused_although_it_could_be_repeated(model, tmp_path):
    network, extractor = model
    short = type(extractor).from_dict({**extractor.to_dict(), "length": "repeat", "duration_s": 2.0})
    least = short.front.min_samples / short.sampling_rate
    for name, seconds in (("long", 2 * least), ("short", least / 2)):
        soundfile.write(
            tmp_path / f"{name}.wav", np.random.default_rng(0).uniform(-0.1, 0.1, round(seconds * 16_000)), 16_000
        )
    assert len(Predictor(network, short)(tmp_path / "long.wav").spans) == 1
    with pytest.raises(DecodeError, match="shorter than one frame"):
        Predictor(network, short)(tmp_path / "short.wav")


def test_the_rule_of_the_thresholds_is_stated(model, frozen_run, sound, tmp_path):
    config = model[0].config
    names = ("thresholds", "temperatures", "intercepts")
    windows, whole = (config.operating_points[spans] for spans in ("windows", "recordings"))
    assert Predictor(*model).decision == {
        "rule": "youden", **{name: windows[name] for name in names}, "fitted_on": "windows",
        "recording": {name: whole[name] for name in names},
    }  # fmt: skip
    assert Predictor(*model).decision_for(annotated=True) == {
        "rule": "youden", **{name: getattr(config, name) for name in names}, "fitted_on": "events",
        "recording": "any span",
    }  # fmt: skip
    by_hand = Predictor(*model, thresholds={"crackle": 0.25})
    assert by_hand.decision["rule"] == "youden; crackle given" and by_hand.decision["thresholds"]["crackle"] == 0.25
    both = Predictor(*model, thresholds={"crackle": 0.25, "wheeze": 0.75})
    assert both.decision["rule"] == "given"
    made = both(sound)
    np.testing.assert_array_equal(made.present, made.probabilities > np.array([0.25, 0.75]))
    assert main(["predict", str(frozen_run), str(sound), "--out", str(tmp_path), "--thresholds", "crackle=0.25"]) == 0
    assert json.loads((tmp_path / f"{sound.stem}.laennec.json").read_text())["decision"] == by_hand.decision


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--thresholds", "crackle"], "write LABEL=PROBABILITY"),
        (["--thresholds", "crackle=loud"], "write LABEL=PROBABILITY"),
        (["--thresholds", "crackle=0.4,crackle=0.9"], "each label once"),
        (["--thresholds", "cough=0.5"], "unknown label 'cough'; the labels are crackle, wheeze"),
        (["--thresholds", "crackle=1.5"], "is not a probability"),
        (["--smoothing", "0.5", "--smoothing-neighbours", "-1"], "0 (the whole recording) or more"),
        (["--smoothing-neighbours", "2"], "needs --smoothing auto or a strength"),
        (["--segment", "--smoothing", "none", "--smoothing-neighbours", "2"], "needs --smoothing auto or a strength"),
        (["--smoothing", "2"], "smoothing 2"),
        (["--parameters", "absent.yaml"], "cannot read the parameters"),
        (["--format", "json,xml"], "unknown format 'xml'"),
        (["--format", ","], "no format"),
        (["--window-s", "0"], "window_s (--window-s) is 0; it must be greater"),
        (["--window-s", "1", "--hop-s", "2"], "at most window_s (--window-s)"),
        (["--window-s", "1", "--hop-s", "0.0001"], "at least 1/100 of it"),
        (["--hop-s", "nan"], "hop_s (--hop-s) must be"),
        (["--annotation", "x.txt", "--segment"], "give one of them"),
        (["--segment", "--hop-s", "1"], "leave out --window-s and --hop-s"),
    ],
)
def test_wrong_flags_are_one_line(frozen_run, sound, tmp_path, capsys, flags, said):
    assert main(["predict", str(frozen_run), str(sound), "--out", str(tmp_path / "out"), *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- parameters


def test_the_parameters_of_a_run_are_the_defaults_of_the_next_and_flags_override(frozen_run, sound, tmp_path, capsys):
    command = ["predict", str(frozen_run), str(sound), "--out"]
    flags = ["--window-s", "2.5", "--hop-s", "0.5", "--smoothing", "0.25", "--smoothing-neighbours", "2"]
    flags += ["--thresholds", "crackle=0.3", "--format", "json,raven"]
    assert main([*command, str(tmp_path / "a"), *flags]) == 0
    parameters = tmp_path / "a" / "laennec.parameters.yaml"
    assert main([*command, str(tmp_path / "b"), "--parameters", str(parameters)]) == 0
    assert "mean of up to 2 spans on either side, weight 0.25" in capsys.readouterr().out
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    over = ["--parameters", str(parameters), "--hop-s", "1.25", "--format", "csv"]
    assert main([*command, str(tmp_path / "c"), *over]) == 0
    before, after = (yaml.safe_load((tmp_path / name / "laennec.parameters.yaml").read_text()) for name in "ac")
    assert after["settings"] == before["settings"] | {"hop_s": 1.25, "format": ["csv"]}
    assert after["model"] == before["model"] and after["laennec"] == before["laennec"]
    assert before["settings"]["thresholds"] == {"crackle": 0.3} and before["applied"]["smoothing"]["neighbours"] == 2
    assert main([*command, str(tmp_path / "plain"), "--parameters", str(parameters), "--smoothing", "none"]) == 0
    # another place to look replaces the one in the file, whichever kind it was
    assert main([*command, str(tmp_path / "d"), "--parameters", str(parameters), "--segment"]) == 0
    segmented = tmp_path / "d" / "laennec.parameters.yaml"
    assert main([*command, str(tmp_path / "e"), "--parameters", str(segmented), "--hop-s", "1"]) == 2
    assert "leave out --window-s and --hop-s" in capsys.readouterr().err
    notes = ["--annotation", str(sound.with_suffix(".txt"))]
    assert main([*command, str(tmp_path / "e"), "--parameters", str(segmented), *notes]) == 0
    assert (
        yaml.safe_load((tmp_path / "e" / "laennec.parameters.yaml").read_text())["applied"]["spans"]["from"]
        == "annotation"
    )
    assert main([*command, str(tmp_path / "f"), "--parameters", str(segmented)]) == 0
    assert (tmp_path / "f" / f"{sound.stem}.laennec.json").read_bytes() == (
        tmp_path / "d" / f"{sound.stem}.laennec.json"
    ).read_bytes()


def test_a_predictor_made_by_hand_leaves_parameters_that_the_command_takes(model, frozen_run, sound, tmp_path):
    predictor = Predictor(*model, 2, 1, 0.5, neighbours=1, thresholds={"wheeze": 0.9})
    predict(predictor, [sound], tmp_path / "a")
    parameters = str(tmp_path / "a" / "laennec.parameters.yaml")
    assert main(["predict", str(frozen_run), str(sound), "--out", str(tmp_path / "b"), "--parameters", parameters]) == 0
    a, b = (json.loads((tmp_path / name / f"{sound.stem}.laennec.json").read_text()) for name in "ab")
    assert a["spans"] == b["spans"] and a["smoothing"] == b["smoothing"]
    # the command fits thresholds to smoothed validation answers, but for the one that was given
    assert b["decision"]["thresholds"]["wheeze"] == 0.9


def test_parameters_of_another_model_are_used_with_a_note(frozen_run, tiny_run, small_corpus, tmp_path, capsys):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    assert main(["predict", str(tiny_run), str(sound), "--out", str(tmp_path / "a"), "--window-s", "1"]) == 0
    capsys.readouterr()
    parameters = str(tmp_path / "a" / "laennec.parameters.yaml")
    assert main(["predict", str(frozen_run), str(sound), "--out", str(tmp_path / "b"), "--parameters", parameters]) == 0
    assert capsys.readouterr().err == f"laennec: note: {parameters} was written for another model\n"
    a, b = (yaml.safe_load((tmp_path / name / "laennec.parameters.yaml").read_text()) for name in "ab")
    assert a["settings"] == b["settings"] and a["model"]["decision"] != b["model"]["decision"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("settings: [", "not valid YAML"),
        ("a: 1", "has no `settings`"),
        ("settings: {windows_s: 3}", "unknown key 'windows_s'; did you mean 'window_s'?"),
        ("settings: {window_s: wide}", "window_s: is 'wide'; it must be a valid number"),
        ("settings: {smoothing_neighbours: 1.5}", "smoothing_neighbours: is 1.5; it must be a valid integer"),
        ("settings: {thresholds: [0.5]}", "thresholds: is [0.5]; it must be a valid dictionary"),
        ("settings: {format: json}", "it must be a valid list"),
        ("settings: {segment: {lowest_hz: 3}}", "the parameters are low_hz"),
        ("settings: {segment: {low_hz: 3000}}", "low_hz 3000 must lie below"),
    ],
)
def test_parameters_that_cannot_be_are_one_line(frozen_run, sound, tmp_path, capsys, content, said):
    (tmp_path / "p.yaml").write_text(content)
    command = ["predict", str(frozen_run), str(sound), "--out", str(tmp_path / "out"), "--parameters"]
    assert main([*command, str(tmp_path / "p.yaml")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_prediction_shows_itself_in_a_console_and_a_notebook(tiny_run, small_corpus, tmp_path):
    sound = shutil.copy(sorted(small_corpus.glob("*.wav"))[0], tmp_path / "a<b>.wav")
    prediction = Predictor(*load_model(tiny_run))(sound)
    shown = repr(prediction)
    assert shown.startswith("Prediction(") and f"{len(prediction.spans)} spans: crackle in " in shown
    page = prediction._repr_html_()
    assert "data:image/png" in page and "<audio controls" in page and "a<b>" not in page and "footer" not in page
    sound.unlink()
    assert "no picture" in prediction._repr_html_()
