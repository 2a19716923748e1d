"""Scores of windows, seconds and recordings, their operating points, and the commands that make them."""

import json

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import LABELS

from laennec import Predictor, load_model
from laennec.cli.main import main
from laennec.configuration import LaennecConfig
from laennec.evaluation.calibration.operating_point import (
    FittingRule,
    decision_settings,
    fit_windows,
    highest_logits,
    window_note,
    window_points_of,
)
from laennec.evaluation.calibration.probabilities import expected_calibration_error, sigmoid
from laennec.evaluation.metrics import auroc
from laennec.evaluation.window_scores import score_windows
from laennec.hub.card import write_card
from pages import check_page


def config_of(points=None, **settings):
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: k for k, name in enumerate(LABELS)}}
    return LaennecConfig(operating_points=window_points_of(points), **labels, **settings)


@pytest.fixture
def tables():
    """30 recordings of 10 patients: windows of 2 s every 1 s over 6 s, and their seconds; some not annotated."""
    rng = np.random.default_rng(3)
    windows, seconds = [], []
    for number in range(30):
        own = {"recording_id": f"r{number}", "patient_id": f"p{number % 10}", "split": "validation", "device": "d"}
        flags = rng.random((6, 2)) < 0.3
        for k in range(5):
            truth = flags[k : k + 2].any(0).astype(int)
            logits = rng.normal(2 * truth - 1, 1.5)
            known = dict(zip(LABELS, truth, strict=True)) if rng.random() < 0.9 else dict.fromkeys(LABELS)
            times = {"start_s": float(k), "end_s": k + 2.0}
            windows.append(own | times | known | {f"logit_{n}": v for n, v in zip(LABELS, logits, strict=True)})
        seconds += [
            own | {"start_s": k, "end_s": k + 1} | dict(zip(LABELS, map(int, flags[k]), strict=True)) for k in range(6)
        ]
    kinds = dict.fromkeys(LABELS, "Int8")
    return pd.DataFrame(windows).astype(kinds), pd.DataFrame(seconds).astype(kinds)


def test_every_kind_of_row_is_scored_as_by_a_loop(tables):
    windows, seconds = tables
    points = fit_windows(windows, LABELS, True, FittingRule("temperature", "youden"), 2.0, 1.0)
    config = config_of(points)
    section = score_windows(windows, seconds, config)
    assert section["fitted_on"] == {"windows": "windows", "seconds": "windows", "recordings": "recordings"}
    known = windows[windows["crackle"].notna()]
    for unit, rows in (("windows", known), ("seconds", seconds), ("recordings", highest_logits(windows, LABELS))):
        found = section["units"][unit]
        assert found["rows"] == len(rows) and found["patients"] == 10
        assert found["left_out"] == (len(windows) - len(known) if unit == "windows" else 0)
        for name in LABELS:
            truth, logits = [], []
            for row in rows.to_dict("records"):
                own = windows[windows["recording_id"] == row["recording_id"]]
                if unit == "recordings":
                    truth.append(own[name].max())
                    logits.append(own[f"logit_{name}"].max())
                    continue
                truth.append(row[name])
                middle = (row["start_s"] + row["end_s"]) / 2
                over = own[(own["start_s"] <= middle) & (middle < own["end_s"])]
                logits.append(row[f"logit_{name}"] if unit == "windows" else over[f"logit_{name}"].max())
            truth, logits = np.array(truth, int), np.array(logits, float)
            point = points["recordings" if unit == "recordings" else "windows"]
            p = sigmoid(logits / point["temperatures"][name] + point["intercepts"][name])
            said = logits > point["thresholds"][name]
            assert found["positives"][name] == truth.sum()
            values = {figure: found["values"][f"{name}.{figure}"] for figure in ("roc_auc", "recall", "specificity")}
            assert values == pytest.approx(
                {"roc_auc": auroc(truth, logits), "recall": said[truth == 1].mean(),
                 "specificity": (~said)[truth == 0].mean()}
            )  # fmt: skip
            assert found["ece"][name] == pytest.approx(expected_calibration_error(p, truth))
            low, high = found["intervals"][f"{name}.roc_auc"]
            assert low <= values["roc_auc"] <= high


def test_intervals_need_patients_with_the_label_patients_without_or_both(tables):
    of_one = [table.assign(wheeze=(table["patient_id"] == "p0").astype("Int8")) for table in tables]
    bounds = score_windows(*of_one, config_of())["units"]["seconds"]["intervals"]
    assert bounds["wheeze.recall"] is bounds["wheeze.roc_auc"] is None and bounds["wheeze.specificity"]
    all_but_one = [table.assign(wheeze=(table["patient_id"] != "p0").astype("Int8")) for table in tables]
    bounds = score_windows(*all_but_one, config_of())["units"]["seconds"]["intervals"]
    assert bounds["wheeze.specificity"] is bounds["wheeze.roc_auc"] is bounds["wheeze.average_precision"] is None
    assert bounds["wheeze.recall"] and bounds["crackle.roc_auc"]


def test_models_without_points_of_windows_decide_as_on_events_and_say_so(tables):
    config = config_of(thresholds={"crackle": 0.3}, temperatures={"crackle": 2.0})
    section = score_windows(*tables, config)
    assert set(section["fitted_on"].values()) == {"events"}
    assert section["units"]["recordings"]["thresholds"] == {"crackle": 0.3, "wheeze": 0.5}
    assert "not on windows" in window_note(config, 3.0, 1.5) and window_note(config_of(), 3.0, 1.5) is None
    bare = {"windows": {"thresholds": {"crackle": 0.3}, "window_s": 2.0, "hop_s": 1.0}}
    own = LaennecConfig(id2label=dict(enumerate(LABELS)), temperatures={"crackle": 2.0}, operating_points=bare)
    assert decision_settings(own, "windows")["temperatures"] == {}  # those of events are not those of windows
    points = fit_windows(tables[0], LABELS, True, FittingRule("platt", None), 2.0, 1.0)
    fitted = config_of(points)
    assert window_note(fitted, 2.0, 1.0) is None and "windows of 2 s every 1 s, not of 3 s" in window_note(
        fitted, 3, 1.5
    )
    # the recordings of a constant classifier below the threshold: decided by themselves, not by their windows
    assert points["recordings"]["fitted_on"]["cycles"] == 30 and points["windows"]["fitted_on"]["cycles"] < 150


def test_evaluate_scores_windows_beside_events_and_leaves_those_as_they_are(run, tmp_path, capsys, unpainted):
    assert main(["evaluate", str(run)]) == 0
    folder = run / "evaluation-test"
    events, table = json.loads((folder / "metrics.json").read_text()), (folder / "predictions.parquet").read_bytes()
    assert "windows" not in events and not (folder / "windows.parquet").exists()
    capsys.readouterr()
    assert main(["evaluate", str(run), "--spans", "windows", "--window-s", "2"]) == 0
    said = capsys.readouterr().out
    both = json.loads((folder / "metrics.json").read_text())
    section = both.pop("windows")
    assert both == events and (folder / "predictions.parquet").read_bytes() == table
    assert (section["window_s"], section["hop_s"]) == (2.0, 1.0) and "were fitted on windows of 3 s" in said
    for unit, found in section["units"].items():
        assert f"{found['rows']} {unit} of {found['patients']} patients" in said
        assert "device" in found["baselines"] and ("recording length" in found["baselines"]) == (unit == "recordings")
    page = check_page((folder / "report.html").read_text())
    assert "#windows" in page.addresses()
    windows = pd.read_parquet(folder / "windows.parquet")
    assert windows["recording_id"].nunique() == section["units"]["recordings"]["rows"]
    card = write_card(run, tmp_path / "card").read_text()
    for unit, found in section["units"].items():
        assert f"{found['rows']} {unit} of {found['patients']} patients" in card
    assert "For windows, as" in card and "For recordings (the highest logit" in card
    for flags, problem in ((["--window-s", "1"], "window_s"), (["--hop-s", "1"], "--spans windows")):
        assert main(["evaluate", str(run), *flags]) == 2
        assert problem in capsys.readouterr().err


def test_calibrate_gives_a_run_of_before_its_points_of_windows(run, small_corpus, capsys, tmp_path):
    """A run without points of windows decides as on events until its validation windows are predicted."""
    stored = pd.read_parquet(run / "windows-validation.parquet")
    config, record = json.loads((run / "model" / "config.json").read_text()), json.loads((run / "run.json").read_text())
    points = config.pop("operating_points")
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "window_points"}))
    (run / "windows-validation.parquet").unlink()
    sound = sorted(small_corpus.glob("*.wav"))[0]
    before = Predictor(*load_model(run))(sound)
    assert before.decision["fitted_on"] == "events" and before.decision["recording"] == "any span"
    assert main(["predict", str(run), str(sound), "--out", str(tmp_path / "a")]) == 0
    assert "note: thresholds and calibration were fitted on annotated events, not on windows" in capsys.readouterr().out
    assert main(["calibrate", str(run)]) == 0
    assert not (run / "windows-validation.parquet").exists()
    assert main(["calibrate", str(run), "--spans", "windows"]) == 0
    assert "recordings: calibration platt" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_parquet(run / "windows-validation.parquet"), stored, atol=1e-6)
    again = json.loads((run / "model" / "config.json").read_text())["operating_points"]
    assert again["windows"]["thresholds"] == pytest.approx(points["windows"]["thresholds"], abs=1e-6)
    assert main(["calibrate", str(run), "--calibration", "none", "--threshold-rule", "none"]) == 0
    config = LaennecConfig.from_pretrained(run / "model")
    assert {tuple(p["thresholds"].values()) for p in config.operating_points.values()} == {(0.5, 0.5)}


@pytest.mark.parametrize("form", ["full", "onnx"])
def test_exports_carry_the_points_of_windows(run, form, tmp_path):
    assert main(["export", str(run), "--format", form, "--out", str(tmp_path / form)]) == 0
    name = {"full": "config.json", "onnx": "onnx.json"}[form]
    wanted = json.loads((run / "model" / "config.json").read_text())["operating_points"]
    assert json.loads((tmp_path / form / name).read_text())["operating_points"] == wanted and len(wanted) == 2


def test_recordings_have_a_row_each_with_decision_probability_and_share_of_time(run, small_corpus, tmp_path):
    config = json.loads((run / "model" / "config.json").read_text())
    point = config["operating_points"]["recordings"]
    point["temperatures"], point["intercepts"] = dict.fromkeys(LABELS, 3.0), {"crackle": -0.5, "wheeze": 0.25}
    (run / "model" / "config.json").write_text(json.dumps(config))
    sounds = sorted(small_corpus.glob("*.wav"))[:3]
    assert main(["predict", str(run), *map(str, sounds), "--out", str(tmp_path / "out")]) == 0
    spans, rows = (pd.read_csv(tmp_path / "out" / f"laennec.{name}.csv") for name in ("predictions", "recordings"))
    assert rows["recording"].tolist() == [str(sound) for sound in sounds]
    windows = config["operating_points"]["windows"]
    for _, row in rows.iterrows():
        own = spans[spans["recording"] == row["recording"]]
        assert row["spans"] == len(own)
        for name in LABELS:
            p = own[f"{name}_probability"].max()
            logit = (np.log(p / (1 - p)) - windows["intercepts"][name]) * windows["temperatures"][name]
            whole = sigmoid(logit / 3.0 + point["intercepts"][name])
            assert row[f"{name}_highest"] == p and row[f"{name}_probability"] == pytest.approx(whole, abs=1e-4)
            assert row[name] == int(row[f"{name}_probability"] > point["thresholds"][name])
            grid = np.arange(0, row["duration_s"], 0.001) + 0.0005
            has = own[own[name] == 1]
            covered = [((has["start_s"] <= t) & (t < has["end_s"])).any() for t in grid]
            assert row[f"{name}_share"] == pytest.approx(np.mean(covered) if len(has) else 0.0, abs=2e-3)


def test_annotated_cycles_keep_their_own_points_and_any_of_them_decides_the_recording(run, small_corpus):
    predictor = Predictor(*load_model(run))
    sound = sorted(small_corpus.glob("*.wav"))[0]
    made = predictor(sound, sound.with_suffix(".txt"))
    assert made.decision["fitted_on"] == "events" and made.decision["thresholds"] == predictor.model.config.thresholds
    for k, name in enumerate(LABELS):
        assert made.overall[name]["present"] == int(made.present[:, k].any())
        assert made.overall[name]["probability"] == made.overall[name]["highest"]
