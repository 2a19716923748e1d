"""Auxiliary tasks with their own heads: trained, stored, predicted and scored on real recordings."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForAudioClassification

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.calibration.logit_adjustment import adjusted_classes, fit_adjustments
from laennec.evaluation.calibration.smoothing import fit_class_smoothing
from laennec.evaluation.sprsound_tasks import (
    POOR_QUALITY,
    SPRSOUND_TASKS,
    official_scores,
    sprsound_task,
    sprsound_total,
    tasks_by_flags,
    write_submission,
)
from laennec.training.auxiliary_tasks import tasks_of
from laennec.training.data.split_data import load_splits
from laennec.training.recipe import Recipe
from runs import interrupted, what_it_left

pytestmark = pytest.mark.usefixtures("unpainted")

TASKS = {
    "event": {"labels": list(SPRSOUND_TASKS["1-2"]), "smooth": True},
    "record": {"level": "record", "labels": list(SPRSOUND_TASKS["2-2"]), "batch_size": 2, "windows": 2},
}


@pytest.fixture(scope="module")
def corpus(shared_data, tmp_path_factory):
    """Real recordings of every record class; six of the patients, all from train, form the split test_inter."""
    folder, source = tmp_path_factory.mktemp("sprsound"), shared_data / "sprsound"
    by_class: dict[str, list] = {}
    for path in sorted((source / "train" / "json").iterdir()):
        by_class.setdefault(json.loads(path.read_text())["record_annotation"], []).append(path)
    chosen = {path for paths in by_class.values() for path in paths[::13][:9]}
    patients = sorted({path.stem.split("_")[0] for path in chosen})
    for part, own in (("train", patients[6:]), ("test_inter", patients[:6])):
        for kind in ("wav", "json"):
            (folder / part / kind).mkdir(parents=True)
        for path in (path for path in chosen if path.stem.split("_")[0] in own):
            shutil.copy(path, folder / part / "json")
            shutil.copy(source / "train" / "wav" / f"{path.stem}.flac", folder / part / "wav")
    return folder


@pytest.fixture(scope="module")
def recipe(corpus, tmp_path_factory):
    values = {
        "name": "several",
        "corpus": {"name": "sprsound", "data_dir": str(corpus), "validation_fraction": 0.4},
        "features": {"preset": "song2021", "length": "repeat", "duration_s": 1.0},
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
        "tasks": TASKS,
        "augment": {"gain": {"probability": 0.5}, "spec": {"probability": 0.5, "max_freq_width": 8}},
        "train": {"epochs": 2, "batch_size": 16, "selection_metric": "loss", "save_steps": 2},
    }
    path = tmp_path_factory.mktemp("recipe") / "several.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "several"
    assert main(["train", str(recipe), "--output_dir", str(out)]) == 0
    return out


def test_each_task_has_its_loss_its_head_and_its_logit_adjustment(run):
    record = json.loads((run / "run.json").read_text())
    assert {"bce", "event", "record"} <= set(record["history"][-1]["loss_terms"])
    assert all(set(record["tasks"][name]["logit_adjustment"]) == {"two", "all"} for name in TASKS)
    model = AutoModelForAudioClassification.from_pretrained(run / "model")
    for name, task in TASKS.items():
        assert model.config.tasks[name]["labels"] == task["labels"]
        assert model.config.tasks[name]["logit_adjustment"] == record["tasks"][name]["logit_adjustment"]
        assert model.config.tasks[name].get("smoothing") == record["tasks"][name].get("smoothing")
        assert model.tasks[name].classifier.out_features == len(task["labels"])
    assert 0 <= record["tasks"]["event"]["smoothing"] <= 1 and "smoothing" not in record["tasks"]["record"]
    assert model.config.label_names == ["crackle", "wheeze"]  # the main labels are unchanged


def test_an_ensemble_of_folds_fits_its_tasks_on_all_patients(recipe, tmp_path):
    runs = [tmp_path / str(fold) for fold in range(2)]
    for fold, out in enumerate(runs):
        command = ["train", str(recipe), "--output_dir", str(out), "--train.epochs", "1"]
        assert main([*command, "--corpus.validation_fold", str(fold), "--corpus.validation_fraction", "0.5"]) == 0
    assert main(["ensemble", *map(str, runs), "--out", str(tmp_path / "both")]) == 0
    members = [json.loads((run / "run.json").read_text())["tasks"] for run in runs]
    record = json.loads((tmp_path / "both" / "run.json").read_text())["tasks"]
    for name in TASKS:
        assert record[name]["rows"] == members[0][name]["rows"] + members[1][name]["rows"] > 0
    config = AutoModelForAudioClassification.from_pretrained(tmp_path / "both" / "model").config
    assert config.tasks["record"]["logit_adjustment"] == record["record"]["logit_adjustment"]


def test_an_interrupted_run_ends_with_the_same_bits(recipe, run, tmp_path):
    out = tmp_path / "again"
    with interrupted(4):
        assert main(["train", str(recipe), "--output_dir", str(out)]) == 130
    assert main(["train", str(recipe), "--output_dir", str(out)]) == 0
    assert what_it_left(out) == what_it_left(run)


def test_scores_are_those_of_the_submission_files(run, corpus, tmp_path, capsys):
    """The annotations and the submission files alone give the printed scores."""
    assert main(["export", str(run), "--format", "full", "--out", str(tmp_path / "model")]) == 0
    # a corpus with only the unseen split
    shutil.copytree(corpus / "test_inter", tmp_path / "alone" / "test_inter")
    where = ["--corpus", "sprsound", "--data-dir", str(tmp_path / "alone"), "--split", "test_inter"]
    files = ["--submission", str(tmp_path / "files"), "--out", str(tmp_path / "scored")]
    assert main(["evaluate", str(tmp_path / "model"), *where, *files]) == 0
    said = capsys.readouterr().out
    scores = json.loads((tmp_path / "scored" / "metrics.json").read_text())["official"]
    truth: dict[str, dict[str, str]] = {task: {} for task in SPRSOUND_TASKS}
    for path in sorted((corpus / "test_inter" / "json").iterdir()):
        content = json.loads(path.read_text())
        for task in ("2-1", "2-2"):
            truth[task][f"{path.stem}.wav"] = content["record_annotation"]
        for number, event in enumerate(content["event_annotation"]):
            for task in ("1-1", "1-2"):
                truth[task][f"{path.stem}_{number}.wav"] = event["type"]
    for task, expected in truth.items():
        answers = json.loads((tmp_path / "files" / f"task{task.replace('-', '_')}.json").read_text())
        assert set(answers) == set(expected) and set(answers.values()) <= set(SPRSOUND_TASKS[task])
        assert POOR_QUALITY not in answers.values()
        naive = sprsound_task(task, [expected[name] for name in answers], list(answers.values()))
        assert {k: v for k, v in scores[task].items() if k != "smoothing"} == pytest.approx(naive), task
        assert f"task {task} " in said
    assert scores["total"] == pytest.approx(sprsound_total({task: scores[task]["Score"] for task in SPRSOUND_TASKS}))
    # the run itself gives the same predictions on the unchanged corpus
    assert main(["evaluate", str(run), "--split", "test_inter", "--out", str(tmp_path / "own")]) == 0
    assert json.loads((tmp_path / "own" / "metrics.json").read_text())["official"] == scores


def test_a_split_that_came_after_training_can_be_scored_and_another_training_split_cannot(
    run, corpus, shared_data, tmp_path, capsys
):
    grown = shutil.copytree(corpus, tmp_path / "grown")
    known = {path.stem for path in grown.rglob("*.json")}
    unseen = {path.stem.split("_")[0] for path in (grown / "test_inter").rglob("*.json")}
    source = shared_data / "sprsound" / "train"
    others = [path for path in sorted((source / "json").iterdir())[::40] if path.stem.split("_")[0] not in unseen]
    for kind in ("wav", "json"):
        (grown / "test_intra" / kind).mkdir(parents=True)
    for path in (path for path in others if path.stem not in known):
        shutil.copy(path, grown / "test_intra" / "json")
        shutil.copy(source / "wav" / f"{path.stem}.flac", grown / "test_intra" / "wav")
    where = ["evaluate", str(run), "--data-dir", str(grown), "--out"]
    assert main([*where, str(tmp_path / "a"), "--split", "test_intra"]) == 0
    next((grown / "train" / "json").iterdir()).unlink()
    capsys.readouterr()
    assert main([*where, str(tmp_path / "b"), "--split", "test_intra"]) == 2
    assert "laennec: " in capsys.readouterr().err


def test_validation_recordings_are_those_of_validation_patients(run, recipe):
    from laennec.training.auxiliary_tasks import level_tables
    from laennec.training.data.split_data import load_splits

    settings = Recipe.from_yaml(recipe)
    parts = load_splits(settings)
    held_out = set(parts["validation"]["patient_id"])
    learned, kept = level_tables(settings, "record", held_out)
    assert set(kept["patient_id"]) == held_out and not held_out & set(learned["patient_id"])
    assert not set(parts["test_inter"]["patient_id"]) & (set(learned["patient_id"]) | held_out)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tasks.event.labels": []}, r"tasks\.event: give its labels, two or more"),
        ({"tasks.event": 3}, r"tasks\.event is a group of settings, not 3"),
        ({"tasks.event.colum": "red"}, r"tasks\.event: unknown key 'colum'; did you mean 'column'\?"),
        ({"tasks.event.weight": 0}, r"tasks\.event\.weight is 0; it must be greater than 0"),
        ({"tasks.event.labels": ["Normal"]}, r"tasks\.event: give its labels, two or more"),
        ({"tasks.event.smooth": 3}, r"tasks\.event\.smooth is 3; it must be a valid boolean"),
        ({"tasks.record.smooth": True}, "only for tasks about cycles"),
        ({"encoder.trainable": "frozen"}, "encoder.trainable: frozen"),
        ({"features.context_cycles": 1}, "context_cycles"),
    ],
)
def test_tasks_that_cannot_be_trained(recipe, given, words):
    with pytest.raises(InputError, match=words):
        tasks_of(Recipe.from_yaml(recipe, **given))


def test_recordings_have_classes_in_sprsound_alone(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--corpus.name", "synthetic", "--corpus.data_dir", str(tmp_path / "s"),
                 "--output_dir", str(tmp_path / "out")]) == 2  # fmt: skip
    assert "tasks.record.level" in capsys.readouterr().err and not (tmp_path / "out").exists()


LABELS = ("Normal", "CAS", "DAS", "CAS & DAS", POOR_QUALITY)


def test_logit_adjustment_moves_the_normal_class_alone():
    logits = np.log(np.array([[0.6, 0.3, 0.05, 0.03, 0.02], [0.2, 0.1, 0.1, 0.1, 0.5], [0.45, 0.2, 0.2, 0.14, 0.01]]))
    assert adjusted_classes(LABELS, logits, 0.0, "all").tolist() == ["Normal", "Normal", "Normal"]
    assert adjusted_classes(LABELS, logits, 0.0, "all", poor_quality=True).tolist() == [
        "Normal",
        POOR_QUALITY,
        "Normal",
    ]
    assert adjusted_classes(LABELS, logits, 0.7, "all").tolist() == ["CAS", "CAS", "Normal"]
    assert adjusted_classes(LABELS, logits, 0.0, "two").tolist() == ["Normal", "Adventitious", "Adventitious"]
    assert adjusted_classes(LABELS, logits, -9.0, "two").tolist() == ["Normal"] * 3


def test_the_fitted_logit_adjustment_is_the_best_of_a_plain_search():
    random = np.random.default_rng(3)
    codes = random.choice(5, 400, p=[0.6, 0.1, 0.15, 0.05, 0.1])
    logits = random.normal(size=(400, 5)) + 2.0 * np.eye(5)[codes] + np.array([1.5, 0, 0, 0, 0])
    fitted = fit_adjustments(LABELS, codes, logits)
    truth = [LABELS[code] for code in codes]
    for way, task in (("two", "2-1"), ("all", "2-2")):
        tried = {
            value: sprsound_task(task, truth, adjusted_classes(LABELS, logits, value, way).tolist())["Score"]
            for value in np.linspace(-6, 6, 121)
        }
        own = sprsound_task(task, truth, adjusted_classes(LABELS, logits, fitted[way], way).tolist())["Score"]
        assert own == pytest.approx(max(tried.values())) and own > tried[0.0]


def test_the_fitted_smoothing_ranks_abnormal_events_best():
    random = np.random.default_rng(4)
    recordings = [f"r{row // 6}" for row in range(240)]
    ill = random.random(40) < 0.4
    codes = np.where(np.repeat(ill, 6) & (random.random(240) < 0.8), random.integers(1, 4, 240), 0)
    logits = random.normal(size=(240, 4)) + 1.2 * np.eye(4)[codes]
    strength = fit_class_smoothing(codes, logits, recordings)

    def area(mixed):
        abnormal = mixed.copy()
        for name in set(recordings):
            rows = [row for row in range(240) if recordings[row] == name]
            abnormal[rows] = (1 - strength_tried) * mixed[rows] + strength_tried * mixed[rows].mean(0)
        return roc_auc_score(codes > 0, np.log(np.exp(abnormal[:, 1:]).sum(1)) - abnormal[:, 0])

    areas = {}
    for strength_tried in np.linspace(0, 1, 21):
        areas[round(strength_tried, 2)] = area(logits)
    assert areas[strength] == pytest.approx(max(areas.values())) and 0 < strength < 1 and areas[strength] > areas[0.0]
    assert fit_class_smoothing(np.zeros(6, int), logits[:6], recordings[:6]) == 0.0


def test_crackle_and_wheeze_alone_predict_the_scored_tasks(recipe, corpus):
    parts = load_splits(Recipe.from_yaml(recipe))
    table = parts["validation"]
    draws = np.random.default_rng(0).normal(size=(len(table), 2))
    predictions = pd.DataFrame(draws, columns=["logit_crackle", "logit_wheeze"])
    how = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}
    answers = tasks_by_flags(Recipe.from_yaml(recipe), predictions, how | {"thresholds": {"crackle": 0.5}}, table)
    assert set(answers) == {"1-1", "1-2"} and all(answers["1-2"]["name"].str.endswith(".wav"))
    named = {(0, 0): "Normal", (1, 0): "Fine Crackle", (0, 1): "Wheeze", (1, 1): "Wheeze+Crackle"}
    wanted = [named[int(crackle > 0.5), int(wheeze > 0)] for crackle, wheeze in draws]
    assert list(answers["1-2"]["answer"]) == wanted and set(wanted) == set(named.values())
    assert list(answers["1-1"]["answer"] == "Normal") == [name == "Normal" for name in wanted]
    whole = Recipe.from_yaml(recipe, **{"corpus.level": "record", "tasks": {}})
    assert set(tasks_by_flags(whole, predictions, how, table)) == {"2-1", "2-2"}
    other = Recipe.from_yaml(recipe, **{"corpus.name": "icbhi2017", "tasks": {}})
    assert tasks_by_flags(other, predictions, how, table) == {}


def test_tasks_without_truth_have_no_score_and_without_predictions_no_files(tmp_path):
    table = pd.DataFrame({"name": ["a.wav"], "truth": [None], "answer": ["Normal"]})
    assert official_scores({"2-1": table}) is None and official_scores({}) is None
    assert json.loads((write_submission({"2-1": table}, tmp_path / "out") / "task2_1.json").read_text()) == {
        "a.wav": "Normal"
    }
    with pytest.raises(ValueError, match="none of the SPRSound tasks"):
        write_submission({}, tmp_path / "none")
