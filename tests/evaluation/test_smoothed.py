"""Smoothing on the command line: chosen on validation, compared, and used by predict."""

import json

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import LABELS, read

from laennec.audio.segmentation import BreathSegmentation
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation import fit_on_validation
from laennec.evaluation.calibration.probabilities import calibrated_logits, sigmoid
from laennec.evaluation.calibration.smoothing import choose_smoothing, smooth_predictions
from laennec.inference.predictor import Predictor
from runs import one_line

pytestmark = pytest.mark.usefixtures("unpainted")


def test_evaluate_shows_the_split_without_and_with(run, capsys):
    assert main(["evaluate", str(run), "--smoothing", "auto"]) == 0
    said = capsys.readouterr().out
    validation = pd.read_parquet(run / "predictions-validation.parquet")
    chosen = choose_smoothing(validation, problem_type="multi_label", label_names=LABELS)
    section = read(run / "evaluation-test" / "metrics.json")["smoothing"]
    assert section["strength"] == chosen["strength"] and section["chosen"]["chosen_on"]["split"] == "validation"
    assert "smoothing over recordings" in said and "chosen on validation" in said
    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    after = smooth_predictions(table, LABELS, chosen["strength"])
    np.testing.assert_array_equal(table["smoothed_logit_crackle"], after["logit_crackle"])
    assert "Smoothing over recordings" in (run / "evaluation-test" / "report.html").read_text()
    assert read(run / "run.json")["evaluations"][-1]["smoothing"] == chosen["strength"]


def test_thresholds_of_smoothed_predictions_come_from_smoothed_validation(run, no_pages, capsys):
    assert main(["evaluate", str(run), "--smoothing", "0.6"]) == 0
    evaluation = read(run / "evaluation-test" / "metrics.json")
    validation = smooth_predictions(pd.read_parquet(run / "predictions-validation.parquet"), LABELS, 0.6)
    wanted = fit_on_validation(validation, LABELS, rule="youden")["thresholds"]
    assert evaluation["smoothing"]["fitted"]["thresholds"] == wanted
    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    answers = [(table[f"smoothed_logit_{n}"] > wanted[n]).to_numpy(int) for n in LABELS]
    truth = (table["crackle"] + 2 * table["wheeze"]).to_numpy(int)
    right = (answers[0] + 2 * answers[1]) == truth
    sp, se = 100 * right[truth == 0].mean(), 100 * right[truth > 0].mean()
    figures = evaluation["smoothing"]["figures"]
    assert figures["icbhi.Score"]["with"]["value"] == pytest.approx((sp + se) / 2)
    assert figures["icbhi.Score"]["without"]["value"] == evaluation["values"]["icbhi.Score"]


def test_predict_smooths_the_timeline_of_each_recording(run, small_corpus, tmp_path):
    recordings = sorted(small_corpus.glob("*.wav"))[:2]
    for out, flags in {"plain": [], "zero": ["--smoothing", "0"], "half": ["--smoothing", "0.5"]}.items():
        assert main(["predict", str(run), *map(str, recordings), "--out", str(tmp_path / out), *flags]) == 0
    windows = pd.read_parquet(run / "windows-validation.parquet")
    how = {"rule": "youden", "calibration": "platt"}
    thresholds = fit_on_validation(smooth_predictions(windows, LABELS, 0.5), LABELS, **how)
    own = read(run / "model" / "config.json")["operating_points"]["windows"]
    for recording in recordings:
        plain, zero, half = (read(tmp_path / n / f"{recording.stem}.laennec.json") for n in ("plain", "zero", "half"))
        assert plain["timeline"] == zero["timeline"] and "smoothing" not in plain
        assert half["smoothing"] == {"rule": "recording-mean", "strength": 0.5} and len(half["timeline"]) > 1
        for name in LABELS:
            p = np.array([row[f"{name}_probability"] for row in plain["timeline"]])
            logits = (np.log(p / (1 - p)) - own["intercepts"][name]) * own["temperatures"][name]
            mixed = 0.5 * logits + 0.5 * logits.mean()
            wanted = sigmoid(mixed / thresholds["temperatures"][name] + thresholds["intercepts"][name])
            got = [row[f"{name}_probability"] for row in half["timeline"]]
            np.testing.assert_allclose(got, wanted, atol=1e-4)
            limit = thresholds["threshold_probabilities"][name]
            assert [row[name] for row in half["timeline"]] == [int(v > limit) for v in got]


def test_a_model_that_smooths_does_so_for_annotated_cycles(run, small_corpus, no_pages, tmp_path, capsys):
    assert main(["evaluate", str(run)]) == 0
    raw = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    validation = pd.read_parquet(run / "predictions-validation.parquet")
    strength = choose_smoothing(validation, problem_type="multi_label", label_names=LABELS)["strength"]
    assert main(["calibrate", str(run), "--smoothing", "auto"]) == 0
    assert f"logits mixed with the mean of the recording, weight {strength:g}" in capsys.readouterr().out
    smoothed = fit_on_validation(smooth_predictions(validation, LABELS, strength), LABELS, rule="youden")
    assert read(run / "run.json")["operating_points"] == smoothed | {"smoothing": strength, "smoothing_rule": "auto"}
    path = run / "model" / "config.json"
    config = read(path)
    config["operating_point"]["smoothing"] = 0.4
    path.write_text(json.dumps(config))
    assert main(["evaluate", str(run)]) == 0
    assert "logits mixed with the mean of the recording, weight 0.4" in capsys.readouterr().out
    scored, columns = pd.read_parquet(run / "evaluation-test" / "predictions.parquet"), [f"logit_{n}" for n in LABELS]
    np.testing.assert_array_equal(scored[columns], smooth_predictions(raw, LABELS, 0.4)[columns])
    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    name = scored["recording_id"].iloc[0]
    rows = scored.loc[scored["recording_id"] == name]
    for source in (run / "model", tmp_path / "onnx"):
        predictor = Predictor.from_pretrained(source)
        predicted = predictor(small_corpus / f"{name}.wav", small_corpus / f"{name}.txt")
        own = predictor.model.config
        wanted = calibrated_logits(rows[columns], LABELS, own.per_label("temperatures"), own.per_label("intercepts"))
        np.testing.assert_allclose(predicted.probabilities, sigmoid(wanted), atol=1e-4)
        assert predicted.smoothing == 0.4 and predictor(small_corpus / f"{name}.wav").smoothing == 0
        with pytest.raises(InputError, match="smoothing over the whole recording cannot be streamed"):
            next(predictor.stream(small_corpus / f"{name}.wav", small_corpus / f"{name}.txt"))
        of_breaths = Predictor.from_pretrained(source, segmentation=BreathSegmentation())
        assert of_breaths(small_corpus / f"{name}.wav").smoothing == 0, "measured on annotated cycles alone"
        plain = Predictor.from_pretrained(source, smoothing=0)
        assert plain(small_corpus / f"{name}.wav", small_corpus / f"{name}.txt").smoothing == 0
    capsys.readouterr()
    for given in ("0.5", "none"):
        assert main(["evaluate", str(run), "--smoothing", given]) == 2
        one_line(capsys, "this model smooths its predictions itself, by 0.4")
    assert main(["calibrate", str(run), "--threshold-rule", "f1"]) == 0
    assert read(path)["operating_point"].get("smoothing", 0) == strength
    assert main(["calibrate", str(run), "--smoothing", "0.3"]) == 0
    assert read(path)["operating_point"]["smoothing"] == 0.3
    assert main(["calibrate", str(run), "--calibration", "platt"]) == 0
    fitted = fit_on_validation(smooth_predictions(validation, LABELS, 0.3), LABELS, rule="f1", calibration="platt")
    assert read(run / "run.json")["operating_points"] == fitted | {"smoothing": 0.3}
    assert main(["calibrate", str(run), "--smoothing", "2"]) == 2
    one_line(capsys, "auto, none or a strength from 0 to 1")
    assert main(["calibrate", str(run), "--smoothing", "none"]) == 0
    assert "smoothing" not in read(path)["operating_point"]


def test_a_model_without_its_run_takes_a_strength_but_chooses_none(run, small_corpus, tmp_path, capsys):
    model, recording = str(run / "model"), str(sorted(small_corpus.glob("*.wav"))[0])
    assert main(["predict", model, recording, "--out", str(tmp_path / "a"), "--smoothing", "0.5"]) == 0
    assert "not fitted on smoothed predictions" in capsys.readouterr().out
    assert main(["predict", model, recording, "--out", str(tmp_path / "b"), "--smoothing", "auto"]) == 2
    one_line(capsys, model, "predictions-validation.parquet", "a strength such as 0.5")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("wrong", ["1.5", "much"])
def test_a_strength_that_is_none_is_one_line(run, wrong, capsys, tmp_path, small_corpus):
    assert main(["evaluate", str(run), f"--smoothing={wrong}"]) == 2
    one_line(capsys, "auto, none or a strength from 0 to 1")
    assert main(["predict", str(run), str(small_corpus), "--out", str(tmp_path / "o"), f"--smoothing={wrong}"]) == 2
    one_line(capsys, "auto, none or a strength from 0 to 1")


def test_torn_validation_predictions_are_one_line(run, capsys):
    (run / "predictions-validation.parquet").write_bytes(b"PAR1 torn")
    assert main(["evaluate", str(run), "--smoothing", "auto"]) == 2
    one_line(capsys, "predictions-validation.parquet", "train the run again")
