"""Models of whole recordings from training to prediction, and targets derived from the corpus."""

import json
import shutil

import pytest

from laennec.audio.recording import read_header
from laennec.configuration import LaennecConfig
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model, score
from laennec.hub.card import render_card
from laennec.inference.predictor import Predictor
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.fixture(scope="module")
def of_recordings(tiny_recipe, tmp_path_factory):
    """A run on whole recordings: normal against abnormal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        corpus = {**tiny_recipe["corpus"], "level": "recording"}
        recipe = Recipe(**{**tiny_recipe, "corpus": corpus, "target": {"column": "diagnosis"}})
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "recordings")
        return train(recipe)


def test_the_target_follows_from_the_corpus_and_stands_in_the_record(of_recordings):
    record = json.loads((of_recordings / "run.json").read_text())
    target = record["config"]["target"]
    assert (target["problem_type"], target["column"]) == ("single_label", "diagnosis")
    assert target["names"] == record["labels"] == LaennecConfig.load(of_recordings / "model").label_names
    assert record["config"]["loss"]["task"] == "ce" and record["span"] == "recording"
    assert json.loads((of_recordings / "recipe.json").read_text())["target"]["problem_type"] is None


def test_a_model_of_recordings_predicts_recordings(of_recordings, small_corpus):
    model, extractor = load_model(of_recordings)
    path = next(small_corpus.rglob("*.wav"))
    rate, frames = read_header(path)
    whole = Predictor(model, extractor)(path)
    assert whole.spans == [(0.0, frames / rate)] and whole.places == {"from": "recording"}
    windows = Predictor(model, extractor, window_s=2.0)(path)
    assert windows.places == {"from": "windows", "window_s": 2.0, "hop_s": 1.0} and len(windows.spans) > 2
    model.config.span = 2.5  # as for a model trained on windows
    assert Predictor(model, extractor).window_s == 2.5


def test_summary_and_card_of_a_model_of_recordings_speak_of_recordings(of_recordings, tmp_path, unpainted):
    run = shutil.copytree(of_recordings, tmp_path / "run")
    scored = score(run)
    assert " recordings of " in scored.summary and "cycles" not in scored.summary
    card = render_card(run).text
    predicts = next(line for line in card.splitlines() if line.startswith("| Predicts |"))
    assert predicts.endswith(" in recordings; exactly one label |") and "Each recording gets a probability" in card


def test_windows_of_a_model_of_recordings_are_not_scored(of_recordings, tmp_path):
    with pytest.raises(InputError, match="this model predicts whole recordings"):
        score(of_recordings, out=tmp_path / "scored", spans="windows")


def test_a_configuration_without_a_span_is_of_cycles():
    assert LaennecConfig().span == "cycle"
    with pytest.raises(ValueError, match="span is 'breath'"):
        LaennecConfig(span="breath")


def test_abnormal_is_a_target_of_cycles(tiny_recipe, tmp_path, capsys, unpainted):
    recipe = Recipe(**tiny_recipe, target={"column": "abnormal"}, output_dir=str(tmp_path / "run"))
    run = train(recipe)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "target: normal, abnormal (single_label: exactly one) of cycles"
    scored = score(run)
    assert "any_abnormal.Score" in scored.evaluation["values"]
    alone = score(run / "model", corpus=tiny_recipe["corpus"], out=tmp_path / "alone")
    assert alone.evaluation["values"] == scored.evaluation["values"]


def test_a_missing_diagnosis_table_is_pointed_to(tiny_recipe, small_corpus, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in [*small_corpus.rglob("*.wav"), *small_corpus.rglob("*_*_*_*_*.txt")]:
        (tmp_path / "folder" / path.name).symlink_to(path)
    corpus = {**tiny_recipe["corpus"], "data_dir": str(tmp_path / "folder")}
    recipe = Recipe(
        **{**tiny_recipe, "corpus": corpus, "target": {"column": "diagnosis"}, "output_dir": str(tmp_path / "run")}
    )
    with pytest.raises(
        InputError, match=r"unknown for all rows .* get ICBHI_Challenge_diagnosis.txt .* from https://.*put"
    ):
        train(recipe)
    patients = {path.name[:3] for path in small_corpus.rglob("*.wav")}
    (tmp_path / "folder" / "patient_diagnosis.csv").write_text("".join(f"{p},{'ab'[int(p) % 2]}\n" for p in patients))
    assert json.loads((train(recipe) / "run.json").read_text())["labels"] == ["a", "b"]
