"""Scoring a run or a model on a held-out split, and errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_tables import read

from laennec import LaennecForAudioClassification
from laennec.cli.main import main
from laennec.corpora import load_corpus
from laennec.errors import InputError
from laennec.evaluation import class_distances
from laennec.evaluation.evaluate import score
from laennec.evaluation.report.sections import seeds_of
from laennec.evaluation.report.write import report
from laennec.training.recipe import Recipe
from laennec.training.record import refuse_absent_split, without_results
from laennec.training.run import train
from runs import one_line

RESULTS = {"predictions.parquet", "metrics.json", "run.json", "report.html", "pictures"}


@pytest.fixture(scope="module")
def filtered_run(tiny_recipe, tmp_path_factory):
    """A four-class run on low-passed recordings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(
            **(
                tiny_recipe
                | {
                    "target": {"problem_type": "single_label"},
                    "loss": {"task": "ce"},
                    "features": {"preset": "song2021", "filter_kind": "lowpass", "filter_cutoff_hz": 500},
                }
            )
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "filtered")
        return train(recipe)


def test_evaluate_writes_predictions_scores_report_and_the_count(run, small_corpus, capsys, monkeypatch):
    assert main(["evaluate", str(run)]) == 0
    folder = run / "evaluation-test"
    assert {p.name for p in folder.iterdir()} == RESULTS
    table, metrics = pd.read_parquet(folder / "predictions.parquet"), read(folder / "metrics.json")
    expected = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["test"]
    assert list(table["cycle_id"]) == expected["cycle_id"] and set(table["split"]) == {"test"}
    # the score again, from the table alone, by its definition
    fitted = read(run / "run.json")["operating_points"]["thresholds"]
    answers = [(table[f"logit_{n}"] > fitted[n]).to_numpy(int) for n in ("crackle", "wheeze")]
    truth = table["crackle"] + 2 * table["wheeze"]
    right = (answers[0] + 2 * answers[1]) == truth.to_numpy(int)
    sp, se = 100 * right[truth == 0].mean(), 100 * right[truth > 0].mean()
    assert metrics["values"]["icbhi.Score"] == pytest.approx((sp + se) / 2)
    assert metrics["uncertainty"]["method"] == "jackknife" and "icbhi.Score" in metrics["intervals"]
    assert any(floor["name"] == "event length" and "skipped" not in floor for floor in metrics["floors"])
    pictures = {p.stem for p in (folder / "pictures").iterdir()}
    assert {"confusion", "roc", "reliability", "training"} <= pictures
    report = (folder / "report.html").read_text()
    assert "Thresholds and temperatures" in report and "Angular distance" in report
    out = capsys.readouterr().out
    assert "ICBHI Score" in out and str(folder / "report.html") in out
    trained = read(run / "run.json")["corpus"]["provenance"]
    for said in (
        trained["corpus_fingerprint"][:12],
        trained["split_fingerprint"][:12],
        "patient-60-20-20",
        "split test",
    ):
        assert said in out, out
    assert "selection set: validation; seed 0" in out and "scored" not in out
    evaluations = read(run / "run.json")["evaluations"]
    assert [e["split"] for e in evaluations] == ["test"] and evaluations[0]["command"].startswith("laennec evaluate ")
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "this run was scored 2 times on test" in capsys.readouterr().out
    assert [e["split"] for e in read(run / "run.json")["evaluations"]] == ["test", "validation", "test"]
    assert read(folder / "run.json")["evaluations"] == without_results(read(run / "run.json")["evaluations"])
    validation = pd.read_parquet(run / "evaluation-validation" / "predictions.parquet")
    own = validation.drop(columns=["level_db", "bandwidth_hz"])  # of the shortcut baselines
    pd.testing.assert_frame_equal(own, pd.read_parquet(run / "predictions-validation.parquet"))
    metrics = read(run / "evaluation-validation" / "metrics.json")
    assert {"level", "bandwidth"} <= {row["name"] for row in metrics["floors"]}
    blind = metrics["duration_blind"]
    assert blind["cycles"] == len(validation) and blind["seconds"] > 0 and "crackle.roc_auc" in blind["values"]
    assert set(metrics["within_lengths"]) == {"crackle", "wheeze"}


def test_geometry_is_over_the_embeddings_of_the_scored_part(run, small_corpus, no_pages):
    scored = score(run)
    from laennec import CycleWaveforms
    from laennec.evaluation.evaluate import load_model
    from laennec.training.embeddings import embed_waveforms

    model, extractor = load_model(run)
    table = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["test"]
    waveforms = [CycleWaveforms(table, extractor.sampling_rate)[i] for i in range(len(table))]
    names = table.features["label"].names
    wanted = class_distances(embed_waveforms(model, extractor, waveforms), [names[v] for v in table["label"]], names)
    assert scored.evaluation["geometry"]["pairs"] == wanted["pairs"]
    assert read(scored.folder / "metrics.json")["geometry"]["classes"] == names
    got = np.array(scored.evaluation["geometry"]["mean"], float)
    np.testing.assert_allclose(got, np.array(wanted["mean"], float), atol=1e-6)


def test_a_split_that_does_not_exist_names_those_that_do(run, capsys):
    assert main(["evaluate", str(run), "--split", "tset"]) == 2
    one_line(capsys, "no split 'tset'", "train, validation, test")
    assert not (run / "evaluation-tset").exists() and read(run / "run.json")["evaluations"] == []


def test_a_run_without_a_split_called_test_is_refused_by_its_record(run, monkeypatch):
    """SPRSound has two test splits, published one by one: neither is taken unasked, and both can be named."""
    record = read(run / "run.json") | {"held_out": ["test_intra"]}
    record["corpus"] |= {"name": "sprsound", "provenance": {"protocol": "sprsound-official"}}
    (run / "run.json").write_text(json.dumps(record))
    said = r"sprsound: no split 'test'; choose split .* from .*test_intra; test_inter had no recordings in training"
    for ask in (lambda: main(["evaluate", str(run), "--debug"]), lambda: score(run)):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=said):
            patch.setattr("laennec.evaluation.evaluate.load_model", None)  # nothing slow has begun
            ask()
    for name in ("test_intra", "test_inter", "train"):
        refuse_absent_split(record, name)


def test_a_moved_corpus_is_the_same_corpus(run, small_corpus, tmp_path, no_pages):
    moved = shutil.copytree(small_corpus, tmp_path / "moved")
    here, there = score(run), score(run, corpus={"data_dir": str(moved)}, out=tmp_path / "out")
    assert here.evaluation["values"] == there.evaluation["values"]


def test_a_run_with_a_relative_path_is_scored_and_reported_from_any_folder(
    tiny_recipe, small_corpus, tmp_path, monkeypatch, unpainted
):
    shutil.copytree(small_corpus, tmp_path / "here" / "sounds")
    monkeypatch.chdir(tmp_path / "here")
    corpus = tiny_recipe["corpus"] | {"data_dir": "sounds"}
    run = train(Recipe(**(tiny_recipe | {"corpus": corpus, "output_dir": str(tmp_path / "run")})))
    assert read(run / "run.json")["config"]["corpus"]["data_dir"] == "sounds"  # the recipe of the record stays as given
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    scored = score(run)
    made = report(run)
    assert made.missing == () and made.sounds
    (tmp_path / "here").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"sounds or .*here/sounds: the corpus of the run is not .*--data-dir, or"):
        score(run)
    assert list((tmp_path / "there").iterdir()) == [] and scored.folder.exists()


def test_results_of_others_are_never_replaced(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert main(["evaluate", str(run), "--out", str(tmp_path / "mine")]) == 2
    one_line(capsys, "holds other files (thesis.txt)")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_model_outside_its_run_needs_a_corpus_and_a_folder(run, small_corpus, tmp_path, capsys):
    model = str(run / "model")
    assert main(["evaluate", model]) == 2
    one_line(capsys, "no run.json in this folder", "--corpus NAME --data-dir DIR")
    assert main(["evaluate", model, "--corpus", "synthetic", "--data-dir", str(small_corpus)]) == 2
    one_line(capsys, "--out DIR")
    assert main(["evaluate", str(tmp_path / "nowhere"), "--corpus", "synthetic", "--out", str(tmp_path / "o")]) == 2
    one_line(capsys, "nowhere")


def test_a_model_alone_scores_as_its_run_does(filtered_run, small_corpus, tmp_path, no_pages):
    """Problem type, labels and recording filter come from the model, not from a recipe's defaults."""
    in_run = score(filtered_run, out=tmp_path / "run")
    corpus = {"name": "synthetic", "data_dir": str(small_corpus), "protocol": "patient-60-20-20"}
    alone = score(filtered_run / "model", corpus=corpus, out=tmp_path / "alone")
    one, two = (pd.read_parquet(s.folder / "predictions.parquet") for s in (in_run, alone))
    pd.testing.assert_frame_equal(one, two)
    assert alone.evaluation["problem_type"] == "single_label" and len(alone.evaluation["class_names"]) == 4
    record = read(alone.folder / "run.json")
    assert record["selection_set"].startswith("unknown") and record["evaluated"]["corpus"]["fingerprint"]
    assert seeds_of(record) == "unknown"
    table = two[["label", "logit_normal", "logit_crackle", "logit_wheeze", "logit_both"]]
    answers = table.iloc[:, 1:].to_numpy().argmax(1)
    names = ["normal", "crackle", "wheeze", "both"]
    truth = np.array([names.index(v) for v in table["label"]])
    sp, se = 100 * (answers == truth)[truth == 0].mean(), 100 * (answers == truth)[truth > 0].mean()
    assert alone.evaluation["values"]["icbhi.Score"] == pytest.approx((sp + se) / 2)


def in_folder(recordings, place):
    """A `folder` corpus of recordings in ICBHI's layout."""
    place.mkdir()
    for sound in recordings:
        for path in (sound, sound.with_suffix(".txt")):
            shutil.copy(path, place)
    return place


def test_recordings_of_the_training_set_in_another_corpus_are_a_leak(run, small_corpus, tmp_path, capsys, no_pages):
    copies = in_folder(sorted(small_corpus.rglob("*.wav")), tmp_path / "copies")
    before = read(run / "run.json")["held_out"]
    asked = ["--corpus", "folder", "--data-dir", str(copies), "--protocol", "none", "--split", "all"]
    assert main(["evaluate", str(run), *asked]) == 0
    assert "leak: all has recordings that this model was trained on: 1" in capsys.readouterr().out
    record = read(run / "evaluation-folder-all" / "run.json")  # not over the results on the run's own splits
    assert len(record["corpus"]["provenance"]["leaks"]) >= 1 and read(run / "run.json")["held_out"] == before


def test_a_run_on_own_recordings_is_scored_on_those_of_another_place(tiny_recipe, small_corpus, tmp_path, capsys):
    sounds = sorted(small_corpus.rglob("*.wav"))
    here, there = (in_folder(part, tmp_path / name) for name, part in (("here", sounds[:8]), ("there", sounds[8:])))
    corpus = {"name": "folder", "data_dir": str(here), "protocol": "patient-60-20-20"}
    run = train(Recipe(**(tiny_recipe | {"corpus": corpus, "output_dir": str(tmp_path / "run")})))
    asked = ["evaluate", str(run), "--data-dir", str(there), "--protocol", "none", "--out", str(tmp_path / "out")]
    assert main([*asked, "--split", "test"]) == 2
    one_line(capsys, "not the corpus and split", "name their corpus too (--corpus folder)")
    asked += ["--split", "all", "--corpus", "folder"]
    assert main(asked) == 0
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["patient_id"].nunique() == 8
    assert main([word for word in asked if word not in ("--out", str(tmp_path / "out"))]) == 2
    one_line(capsys, "was trained on another folder", "--out")
    in_folder(sounds, tmp_path / "both")
    assert main([*asked, "--data-dir", str(tmp_path / "both")]) == 2
    one_line(capsys, "all has recordings that this model was trained on", "leave them out")


def test_labels_of_another_column_are_found_in_the_corpus(small_corpus, tmp_path, tiny_run, no_pages):
    table = load_corpus("synthetic", small_corpus, protocol="none")["all"]
    names = sorted(set(table["diagnosis"]))
    model = LaennecForAudioClassification.from_pretrained(tiny_run / "model")
    config = type(model.config)(
        encoder_config=model.config.encoder_config, problem_type="single_label", id2label=dict(enumerate(names))
    )
    torch.manual_seed(0)
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    LaennecForAudioClassification(config).save_pretrained(tmp_path / "model")
    corpus = {"name": "synthetic", "data_dir": str(small_corpus), "protocol": "patient-60-20-20"}
    scored = score(tmp_path / "model", corpus=corpus, out=tmp_path / "out")
    frame = pd.read_parquet(scored.folder / "predictions.parquet")
    assert list(frame["label"]) == list(frame["diagnosis"])
    config.id2label = dict(enumerate("abcdefgh"[: len(names)]))
    LaennecForAudioClassification(config).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="no column holds the truth for the labels"):
        score(tmp_path / "model", corpus=corpus, out=tmp_path / "out2")
