"""Operating points on the command line: fitted on validation, stored in the config, used by every predictor."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_tables import LABELS, read

from laennec.cli.main import main
from laennec.configuration import LaennecConfig
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import fit_on_validation, logit_thresholds
from laennec.evaluation.calibration.probabilities import sigmoid
from laennec.evaluation.calibration.recalibrate import format_fitted
from laennec.evaluation.evaluate import load_model
from laennec.evaluation.metrics import confusion_matrix, four_class
from laennec.evaluation.predictions import read_evaluated
from laennec.inference.batch.run import Predictor
from laennec.training.recipe import Recipe
from laennec.training.run import train
from runs import one_line

pytestmark = pytest.mark.usefixtures("unpainted")


def validation(run):
    return pd.read_parquet(run / "predictions-validation.parquet")


def test_calibrate_fits_on_stored_validation_predictions_and_records_it(run, capsys):
    before = read(run / "run.json")
    weights = (run / "model" / "model.safetensors").read_bytes()
    assert main(["calibrate", str(run), "--calibration", "platt", "--threshold-rule", "f1"]) == 0
    said = capsys.readouterr().out
    assert "calibration platt, threshold rule f1, fitted on validation" in said and "Brier score" in said
    wanted = fit_on_validation(validation(run), LABELS, rule="f1", calibration="platt")
    record, config = read(run / "run.json"), LaennecConfig.from_pretrained(run / "model")
    assert record["operating_points"] == wanted
    assert config.temperatures == wanted["temperatures"] and config.intercepts == wanted["intercepts"]
    assert config.thresholds == wanted["threshold_probabilities"]
    on = {"split": "validation", "cycles": len(validation(run)), "patients": validation(run)["patient_id"].nunique()}
    how = {"calibration": "platt", "rule": "f1", "sensitivity": None, "fitted_on": on, "notes": wanted["notes"]}
    assert config.operating_point == how
    entry = record["calibrations"][-1]
    assert entry["before"] == before["operating_points"] and entry["scored_before"] == []
    assert entry["command"].startswith("laennec calibrate ") and record["config"] == before["config"]
    assert (run / "model" / "model.safetensors").read_bytes() == weights


def test_what_is_not_given_stays_as_it_was(run):
    assert main(["calibrate", str(run), "--threshold-rule", "sensitivity", "--sensitivity", "0.7"]) == 0
    assert main(["calibrate", str(run), "--calibration", "none"]) == 0
    fitted = read(run / "run.json")["operating_points"]
    assert (fitted["calibration"], fitted["rule"], fitted["sensitivity"]) == ("none", "sensitivity", 0.7)
    table = validation(run)
    for name in LABELS:
        found = (table[f"logit_{name}"] > fitted["thresholds"][name])[table[name] == 1]
        assert found.mean() >= 0.7
    assert main(["calibrate", str(run), "--threshold-rule", "none", "--calibration", "temperature"]) == 0
    fitted = read(run / "run.json")["operating_points"]
    assert fitted["rule"] is None and fitted["threshold_probabilities"] == dict.fromkeys(LABELS, 0.5)
    assert len(read(run / "run.json")["calibrations"]) == 3


def test_evaluation_scores_the_calibrated_probabilities(run):
    assert main(["calibrate", str(run), "--calibration", "platt", "--threshold-rule", "youden"]) == 0
    assert main(["evaluate", str(run)]) == 0
    fitted, evaluation = read(run / "run.json")["operating_points"], read(run / "evaluation-test" / "metrics.json")
    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    model, _ = load_model(run)
    logits = table[["logit_crackle", "logit_wheeze"]].to_numpy(float)
    slopes = np.array([1 / fitted["temperatures"][n] for n in LABELS])
    by_hand = sigmoid(logits * slopes + np.array([fitted["intercepts"][n] for n in LABELS]))
    of_model = model.probabilities(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(of_model, by_hand, atol=1e-6)
    assert evaluation["thresholds"] == pytest.approx(fitted["thresholds"], abs=1e-6)
    assert logit_thresholds(model.config) == pytest.approx(fitted["thresholds"], abs=1e-6)
    assert evaluation["intercepts"] == fitted["intercepts"]
    for k, name in enumerate(LABELS):
        truth = table[name].to_numpy(float)
        assert evaluation["calibration"]["brier"][name] == pytest.approx(((by_hand[:, k] - truth) ** 2).mean())
        raw = sigmoid(logits[:, k])
        assert evaluation["calibration"]["brier_before"][name] == pytest.approx(((raw - truth) ** 2).mean())


def test_the_less_likely_label_is_decided_alike_everywhere(run, small_corpus, tmp_path, capsys):
    assert main(["calibrate", str(run), "--threshold-rule", "icbhi_likeliest"]) == 0
    assert "where another label is likelier: crackle above 0.500, wheeze above 0.500" in capsys.readouterr().out
    path = run / "model" / "config.json"
    config = read(path)
    points = config["operating_points"]
    assert points["windows"]["second_thresholds"] == {"crackle": 0.5, "wheeze": 0.5}
    assert (points["recordings"]["rule"], points["recordings"]["second_thresholds"]) == ("icbhi", {})
    assert config["second_thresholds"] == {"crackle": 0.5, "wheeze": 0.5}
    path.write_text(json.dumps(config | {"thresholds": dict.fromkeys(LABELS, 0.01)}))
    assert main(["evaluate", str(run)]) == 0
    assert "wheeze above 0.010; where another label is likelier: crackle above 0.5" in capsys.readouterr().out
    model, extractor = load_model(run)

    def by_hand(p):
        return np.array([[a > 0.01 and (a >= b or a > 0.5), b > 0.01 and (b >= a or b > 0.5)] for a, b in p])

    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    decided = by_hand(model.probabilities(torch.tensor(table[["logit_crackle", "logit_wheeze"]].to_numpy())).numpy())
    counts = confusion_matrix(four_class(table["crackle"], table["wheeze"]), four_class(*decided.T), 4)
    evaluation = read(run / "evaluation-test" / "metrics.json")
    assert evaluation["confusion"]["matrix"] == counts.tolist() and counts[:, 1:3].sum() > 0
    assert read_evaluated(table, evaluation).confusion.tolist() == counts.tolist()
    model.config.operating_points = {}
    recording = sorted(small_corpus.glob("*.wav"))[0]
    predicted = Predictor(model, extractor)(recording)
    np.testing.assert_array_equal(predicted.present, by_hand(predicted.probabilities))
    assert predicted.decision["second_thresholds"] == {"crackle": 0.5, "wheeze": 0.5}
    given = Predictor(model, extractor, thresholds={"crackle": 0.01})(recording)
    assert given.decision["second_thresholds"] == {"wheeze": 0.5}
    np.testing.assert_array_equal(given.present[:, 0], predicted.probabilities[:, 0] > 0.01)
    for form, file in (("full", "config.json"), ("onnx", "onnx.json")):
        assert main(["export", str(run), "--format", form, "--out", str(tmp_path / form)]) == 0
        assert read(tmp_path / form / file)["second_thresholds"] == {"crackle": 0.5, "wheeze": 0.5}


def test_scores_made_before_are_named(run, capsys, monkeypatch):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(run), "--threshold-rule", "f1"]) == 0
    assert "the existing scores of this run used the earlier thresholds" in capsys.readouterr().out
    assert read(run / "run.json")["calibrations"][-1]["scored_before"] == ["test"]


def test_configs_and_records_of_before_still_work(run, capsys):
    """Without intercepts, operating_point and the recipe's new keys, all means what it meant."""
    path = run / "model" / "config.json"
    config, record = read(path), read(run / "run.json")
    for name in ("intercepts", "operating_point"):
        del config[name]
    path.write_text(json.dumps(config))
    for name in ("calibration", "sensitivity"):
        del record["config"]["head"][name]
    for name in ("calibration", "intercepts", "brier_before", "brier_after", "notes"):
        del record["operating_points"][name]
    (run / "run.json").write_text(json.dumps(record))
    model, _ = load_model(run)
    assert model.config.intercepts == {} and model.config.operating_point == {}
    logits = torch.tensor([[1.0, -2.0]])
    divisors = torch.tensor([config["temperatures"][n] for n in LABELS])
    assert torch.equal(model.probabilities(logits), (logits / divisors).sigmoid())
    assert main(["calibrate", str(run)]) == 0
    again = read(run / "run.json")["operating_points"]
    assert (again["calibration"], again["rule"]) == ("temperature", "youden")
    assert again["thresholds"] == record["operating_points"]["thresholds"]


def single(tiny_recipe, out, **head):
    values = tiny_recipe | {
        "target": {"problem_type": "single_label"},
        "loss": {"task": "ce"},
        "head": head,
        "train": tiny_recipe["train"] | {"max_steps": 2},
    }
    recipe = Recipe(**values)
    recipe.output_dir = str(out)
    return train(recipe)


def test_a_single_label_run_has_one_temperature(tiny_recipe, tmp_path, capsys):
    run = single(tiny_recipe, tmp_path / "run")
    fitted = read(run / "run.json")["operating_points"]
    model, _ = load_model(run)
    assert len(set(model.config.temperatures.values())) == 1 and fitted["calibration"] == "temperature"
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]])
    temperature = next(iter(fitted["temperatures"].values()))
    assert torch.allclose(model.probabilities(logits), (logits / temperature).softmax(-1))
    assert main(["calibrate", str(run), "--calibration", "platt"]) == 2
    one_line(capsys, "binary (yes/no) labels")
    assert main(["calibrate", str(run), "--calibration", "none"]) == 0
    assert set(LaennecConfig.from_pretrained(run / "model").temperatures.values()) == {1.0}


@pytest.mark.parametrize("calibration", ["none", "temperature", "platt"])
def test_labels_that_stay_badly_calibrated_are_noted(calibration):
    """A temperature cannot mend logits that are all too high; an intercept can."""
    rng = np.random.default_rng(0)
    truth = (rng.random(400) < 0.1).astype(int)
    table = pd.DataFrame({"wheeze": truth, "logit_wheeze": rng.normal(size=400) + truth})
    fitted = fit_on_validation(table, ["wheeze"], calibration=calibration)
    ece, text = fitted["ece_after"]["wheeze"], format_fitted(fitted)
    said = f"note: wheeze: probabilities differ from observed frequencies by {ece:.3f} on average (ECE above 0.1)"
    assert (said in text) == (ece > 0.1) == (calibration != "platt")
    assert ("--calibration platt" in text) == (calibration == "temperature")


def test_no_calibration_and_no_rule_fit_nothing(tiny_recipe, tmp_path):
    run = single(tiny_recipe, tmp_path / "run", calibration="none")
    config = LaennecConfig.from_pretrained(run / "model")
    assert read(run / "run.json")["operating_points"] is None
    assert (config.temperatures, config.thresholds, config.operating_point) == ({}, {}, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--calibration", "isotonic"], "none, temperature or platt"),
        (["--threshold-rule", "best"], "youden, f1, icbhi, icbhi_likeliest, sensitivity, none"),
        (["--threshold-rule", "sensitivity", "--sensitivity", "1.5"], "at most 1"),
        (["--sensitivity", "0.8"], "threshold rule sensitivity"),
    ],
)
def test_wrong_settings_are_one_line_and_change_nothing(run, capsys, arguments, said):
    before = {p: p.read_bytes() for p in (run / "run.json", run / "model" / "config.json")}
    assert main(["calibrate", str(run), *arguments]) == 2
    one_line(capsys, said)
    assert all(p.read_bytes() == content for p, content in before.items())


def test_what_is_no_finished_run_is_one_line(run, tmp_path, capsys):
    assert main(["calibrate", str(tmp_path)]) == 2
    one_line(capsys, tmp_path, "run.json")
    (run / "predictions-validation.parquet").unlink()
    assert main(["calibrate", str(run)]) == 2
    one_line(capsys, "predictions-validation.parquet")


def test_the_icbhi_rule_for_other_labels_is_refused_before_training(run, tiny_recipe, tmp_path, monkeypatch):
    from laennec.training import tables

    with pytest.raises(InputError, match="the labels are Fine Crackle"):
        tables.check_rule(Recipe(**(tiny_recipe | {"head": {"threshold_rule": "icbhi"}})).head, ["Fine Crackle"], True)


def test_training_says_in_one_line_which_label_was_left_as_it_is(run, caplog):
    from laennec.training.recipe import HeadSettings
    from laennec.training.tables import calibrate

    model, _ = load_model(run)
    table = pd.concat([validation(run)] * 3).assign(wheeze=0)
    fitted = calibrate(model, table, HeadSettings(threshold_rule="youden", calibration="temperature"))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("laennec")]
    assert said == fitted["notes"] and [line.split(" has the label")[0] for line in said] == [
        "wheeze: in validation no row"
    ]
    assert model.config.thresholds["wheeze"] == 0.5 and model.config.intercepts["wheeze"] == 0.0
    assert model.config.temperatures["wheeze"] == 1.0 and model.config.temperatures["crackle"] != 1.0
