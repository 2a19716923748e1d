"""Ensembles of runs, which are scored, exported and described as any other run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from docs.render import render
from evaluation_tables import read

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.calibration.probabilities import calibrated_logits
from laennec.study.results import gather_results
from laennec.training.recipe import Recipe
from laennec.training.run import train

pytestmark = pytest.mark.usefixtures("unpainted")
NAMES = ["crackle", "wheeze"]


@pytest.fixture(scope="module")
def seeds(tiny_recipe, tmp_path_factory):
    """Three seeds of one recipe."""
    folder = tmp_path_factory.mktemp("seeds")
    settings = tiny_recipe | {"head": {"threshold_rule": "youden"}}
    return [
        train(Recipe(**(settings | {"seed": s, "output_dir": str(folder / str(s))})), f"laennec train --seed {s}")
        for s in range(3)
    ]


@pytest.fixture(scope="module")
def ensemble(seeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ensemble"
    assert main(["ensemble", *map(str, seeds), "--out", str(folder)]) == 0
    return folder


def test_it_predicts_the_mean_of_its_members_on_validation(seeds, ensemble):
    members = []
    for run in seeds:
        points, table = (
            read(run / "run.json")["operating_points"],
            pd.read_parquet(run / "predictions-validation.parquet"),
        )
        logits = table[[f"logit_{name}" for name in NAMES]].to_numpy(float)
        members.append(calibrated_logits(logits, NAMES, points["temperatures"], points["intercepts"]))
    own = pd.read_parquet(ensemble / "predictions-validation.parquet")
    assert own[[f"logit_{name}" for name in NAMES]].to_numpy() == pytest.approx(np.mean(members, 0), abs=1e-4)
    record, config = read(ensemble / "run.json"), read(ensemble / "model" / "config.json")
    assert record["operating_points"]["fitted_on"]["split"] == "validation"
    assert config["thresholds"] == record["operating_points"]["threshold_probabilities"]
    assert config["encoder_config"]["members"] == 3


def test_the_record_names_its_members(seeds, ensemble):
    record = read(ensemble / "run.json")
    assert record["name"] == "tiny_ensemble_of_3" and record["command"].startswith("laennec ensemble ")
    assert [(one["folder"], one["seed"]) for one in record["members"]] == [(str(run), k) for k, run in enumerate(seeds)]
    assert record["seeds"] == {"recipe": [0, 1, 2]} and record["evaluations"] == record["history"] == []
    trained = sum(read(run / "run.json")["timings"]["training"] for run in seeds)
    assert record["timings"]["training"] == pytest.approx(trained, abs=0.01)
    assert read(ensemble / "trained_on.json") == read(seeds[0] / "trained_on.json")  # all three share their patients


def test_it_is_scored_exported_and_described_like_any_run(ensemble, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(ensemble, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "run"]) == 0
    assert "seed 0, 1, 2, split seed 0" in capsys.readouterr().out
    assert main(["export", "run", "--format", "full"]) == 0
    card = (run / "export-full" / "README.md").read_text()
    assert "3 runs of this recipe; their calibrated log-odds are averaged" in card
    trained = [one["command"] for one in read(run / "run.json")["members"]]
    assert trained[0] and all(f"{command}\n" in card for command in trained) and "laennec ensemble " in card
    assert "3 runs with seeds 0, 1, 2" in card and "One run with seed" not in card
    page = (run / "evaluation-test" / "report.html").read_text()
    epochs = ", ".join(f"{one['best_epoch']:g}" for one in read(run / "run.json")["members"])
    assert f">{epochs}<" in page
    gather_results(["run/evaluation-test"], "results.json")
    (tmp_path / "page.md").write_text("<!-- laennec:study results.json test -->\n<!-- laennec:end -->\n")
    render(tmp_path / "page.md")
    assert "| tiny_ensemble_of_3 | 0, 1, 2 | " in (tmp_path / "page.md").read_text()
    again = ["evaluate", "run/export-full", "--corpus", "synthetic", "--data-dir"]
    again += [read(run / "run.json")["config"]["corpus"]["data_dir"], "--protocol", "patient-60-20-20"]
    assert main([*again, "--out", "again"]) == 0
    first, second = (read(tmp_path / place / "metrics.json") for place in ("run/evaluation-test", "again"))
    assert first["values"] == second["values"]


@pytest.mark.parametrize(
    ("split", "said"),
    [("validation", "was used to choose the epoch and the thresholds"), ("train", "was used for training")],
)
def test_a_split_used_before_scoring_is_no_headline(ensemble, tmp_path, capsys, split, said):
    run = shutil.copytree(ensemble, tmp_path / "run")
    assert main(["evaluate", str(run), "--split", split]) == 0
    assert f"note: split {split} {said}; its scores are no estimate for new patients" in capsys.readouterr().out
    assert f"This split {said}" in (run / f"evaluation-{split}" / "report.html").read_text()
    assert main(["card", str(run)]) == 0
    card = (run / "README.md").read_text()
    assert f"**no headline**: `{split}` {said}" in card and f"Split `{split}` {said}" in card
    assert f"ICBHI Score ({said})" in card


def test_an_ensemble_does_not_replace_a_member(seeds, tmp_path, capsys):
    member = shutil.copytree(seeds[0], tmp_path / "member")
    before = read(member / "run.json")
    assert main(["ensemble", str(member), str(seeds[1]), "--out", str(member), "--overwrite"]) == 2
    assert "is one of the members" in capsys.readouterr().err and read(member / "run.json") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["config"].update(seed=0), "both have seed 0; give each once"),
        (lambda record: record["config"]["train"].update(batch_size=4), "differ in train.batch_size"),
        (
            lambda record: record["corpus"]["provenance"].update(split_fingerprint="0" * 64),
            "trained on other data or another split",
        ),
        (lambda record: record.update(labels=["crackle", "rhonchus"]), "trained on other data or another split"),
        (lambda record: record.update(members=[{"seed": 0}]), "this run is an ensemble"),
        (lambda record: record["operating_points"].update(rule="f1"), "calibration or smoothing of different rules"),
    ],
)
def test_what_is_no_other_seed_of_the_run_is_refused(seeds, tmp_path, capsys, change, said):
    other = shutil.copytree(seeds[1], tmp_path / "other")
    record = read(other / "run.json")
    change(record)
    (other / "run.json").write_text(json.dumps(record))
    assert main(["ensemble", str(seeds[0]), str(other), "--out", str(tmp_path / "out")]) == 2
    problem = capsys.readouterr().err
    assert said in problem and problem.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_record_without_a_setting_that_was_added_later_is_of_the_same_recipe(seeds, tmp_path):
    earlier = shutil.copytree(seeds[1], tmp_path / "earlier")
    record = read(earlier / "run.json")
    del record["config"]["head"]["relu"], record["config"]["train"]["patience"]
    (earlier / "run.json").write_text(json.dumps(record))
    assert main(["ensemble", str(seeds[0]), str(earlier), "--out", str(tmp_path / "out")]) == 0


def test_members_that_were_calibrated_again_share_their_rule_with_the_ensemble(seeds, tmp_path):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in seeds[:2]]
    for run in runs:
        assert main(["calibrate", str(run), "--calibration", "platt", "--threshold-rule", "icbhi_likeliest"]) == 0
    assert main(["ensemble", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    points = read(tmp_path / "out" / "run.json")["operating_points"]
    assert (points["calibration"], points["rule"]) == ("platt", "icbhi_likeliest")


@pytest.mark.parametrize(
    ("given", "said"),
    [(["0"], "two runs or more, not 1"), (["0", "nowhere"], "nowhere/run.json: cannot read the run record")],
)
def test_runs_that_are_not_there_are_refused(seeds, tmp_path, capsys, given, said):
    runs = [str(seeds[0].parent / name) for name in given]
    assert main(["ensemble", *runs, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_finished_run_is_kept_unless_it_may_go(seeds, ensemble, tmp_path, capsys):
    out = shutil.copytree(ensemble, tmp_path / "out")
    command = ["ensemble", str(seeds[0]), str(seeds[1]), "--out", str(out)]
    before = (out / "run.json").read_bytes()
    assert main(command) == 2
    assert "holds a finished run; choose another output folder or pass --overwrite" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == before
    assert main([*command, "--overwrite"]) == 0
    assert len(read(out / "run.json")["members"]) == 2


def test_other_recordings_under_the_same_names_are_refused(seeds, tmp_path, capsys):
    from laennec.corpora.synthetic import write_corpus

    data = write_corpus(tmp_path / "synthetic", patients=12, recordings_per_patient=1, cycles_per_recording=4, seed=5)
    command = ["ensemble", *map(str, seeds[:2]), "--out", str(tmp_path / "out"), "--data-dir", str(data)]
    assert main(command) == 2
    assert "not the corpus and split that this run was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folds(tiny_recipe, small_corpus, tmp_path_factory):
    """Three runs that validate on the three folds of one corpus, one of them with a second seed."""
    folder = tmp_path_factory.mktemp("folds")
    corpus = tiny_recipe["corpus"] | {"protocol": "device-out", "validation_fraction": 0.34}
    settings = tiny_recipe | {"head": {"threshold_rule": "youden"}}
    return [
        train(Recipe(**(settings | {"seed": seed, "corpus": corpus | {"validation_fold": fold},
                                    "output_dir": str(folder / f"{fold}-{seed}")})))
        for fold, seed in ((0, 0), (1, 0), (2, 0), (2, 1))
    ]  # fmt: skip


def out_of_fold(run):
    points, table = read(run / "run.json")["operating_points"], pd.read_parquet(run / "predictions-validation.parquet")
    logits = table[[f"logit_{name}" for name in NAMES]].to_numpy(float)
    return table, calibrated_logits(logits, NAMES, points["temperatures"], points["intercepts"])


def test_an_ensemble_of_folds_is_fitted_on_patients_that_members_had_not_seen(folds, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ensemble", *map(str, folds), "--out", str(out)]) == 0
    own = pd.read_parquet(out / "predictions-validation.parquet")
    tables, logits = zip(*map(out_of_fold, folds), strict=True)
    assert own["cycle_id"].tolist() == pd.concat(tables[:3])["cycle_id"].tolist()
    expected = np.concatenate([*logits[:2], (logits[2] + logits[3]) / 2])
    assert own[[f"logit_{name}" for name in NAMES]].to_numpy() == pytest.approx(expected, abs=1e-4)
    record, config = read(out / "run.json"), read(out / "model" / "config.json")
    assert record["selection_set"] == "out-of-fold" and record["config"]["corpus"]["validation_fold"] == "all"
    assert record["operating_points"]["fitted_on"]["patients"] == own["patient_id"].nunique()
    assert record["patients"] == {"train": own["patient_id"].nunique(), "validation": own["patient_id"].nunique()}
    assert config["thresholds"] == record["operating_points"]["threshold_probabilities"]
    assert record["window_points"]["windows"]["fitted_on"]["patients"] == own["patient_id"].nunique()
    assert [one["validation_fold"] for one in record["members"]] == [0, 1, 2, 2]
    seen = [set(one["patients"]) for one in read(out / "trained_on.json")["sets"]]
    assert len(seen) == 3 and set.union(*seen) == set(own["patient_id"])
    assert main(["evaluate", str(out), "--split", "test"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--split", "validation"]) == 2
    assert "no split 'validation'" in capsys.readouterr().err


def test_a_fold_and_a_draw_form_no_ensemble(folds, seeds, tiny_recipe, tmp_path, capsys):
    assert main(["ensemble", str(folds[0]), str(seeds[1]), "--out", str(tmp_path / "out")]) == 2
    assert (
        "its validation_fold is None; give runs of two folds or more, or only runs without" in capsys.readouterr().err
    )
    assert main(["ensemble", str(folds[2]), str(folds[3]), "--out", str(tmp_path / "out")]) == 2
    assert "its validation_fold is 2; give runs of two folds or more, or only runs without" in capsys.readouterr().err
    corpus = tiny_recipe["corpus"] | {"protocol": "device-out", "validation_fold": "all"}
    with pytest.raises(InputError, match="validation_fold is all, which leaves no patients to choose an epoch on"):
        train(Recipe(**(tiny_recipe | {"corpus": corpus, "output_dir": str(tmp_path / "all")})))
