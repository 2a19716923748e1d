"""Every published table, from its study file to the rendered table, on small twins of its corpora."""

import dataclasses
import json
import re

import pytest
from docs.render import ROOT

import audio_twins
from laennec.cli.main import main
from laennec.study import load_study, run_study
from laennec.training.recipe import Recipe

STUDIES = {path.stem: path for path in sorted((ROOT / "recipes" / "studies").glob("paper_*.yaml"))}


@pytest.fixture(scope="module")
def corpora(small_corpus, some_recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    return {
        "ICBHI_final_database": small_corpus,
        "physionet2016": audio_twins.physionet2016(folder / "physionet2016", some_recordings),
        "ashraq/esc50": audio_twins.esc50_github(folder / "esc50", some_recordings),
        "speech_commands_v0.02": audio_twins.speech_commands(folder / "speech", some_recordings),
        "IEMOCAP_full_release": audio_twins.iemocap(folder / "iemocap", some_recordings),
    }


def stand_ins(recipe, corpora, tiny_ast, shared_root):
    """Settings that put a twin and a tiny encoder in the place of a corpus and a download, for two steps."""
    key = recipe.corpus.options.get("repo") or recipe.corpus.data_dir.rpartition("/")[2]
    flags = {
        "corpus.data_dir": str(corpora[key]),
        "train.max_steps": 2,
        "train.epochs": 1,
        "train.batch_size": min(recipe.train.batch_size, 8),
        "schedule.pretrain_epochs": min(recipe.schedule.pretrain_epochs, 1),
    }
    if key == "ICBHI_final_database":
        flags["corpus.allow_missing"] = True
    if "repo" in recipe.corpus.options:
        flags["corpus.options"] = {k: v for k, v in recipe.corpus.options.items() if k != "repo"}
    if recipe.features.duration_s:
        flags["features.duration_s"] = 1.0
    if recipe.pretrain:
        flags |= {"pretrain.max_steps": 2, "pretrain.batch_size": 4, "pretrain.missing": "own_group"}
        flags["train.selection_metric"] = "loss"  # not every diagnosis has a patient in validation
    if recipe.encoder.type == "cnn":
        flags["encoder.config"] = {"channels": [4, 8]}
    elif recipe.encoder.type == "resnet":
        flags["encoder.config"] = {"hidden_sizes": [4, 8, 8, 8], "embedding_size": 4, "depths": [1, 1, 1, 1]}
    elif recipe.encoder.type == "audiomae":
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
        flags |= {"encoder.weights": None, "encoder.config": sizes}
    elif recipe.encoder.type == "ast":
        flags["encoder.weights"] = str(tiny_ast)
    elif recipe.encoder.type == "beats":
        flags["encoder.weights"] = str(shared_root / "conformance" / "beats_tiny.pt")
    return flags


def small(study, corpora, tiny_ast, shared_root, place):
    """The study with a few cells: one of each recipe and corpus, published ones first."""
    published = study.published.values
    cells, kinds = [], set()
    for cell in sorted(study.cells, key=lambda cell: cell.method not in published):
        recipe = Recipe.from_yaml(cell.recipe, **cell.settings)
        what = cell.recipe if published else recipe.encoder.trainable
        kind = (what, recipe.encoder.type, recipe.corpus.name, bool(cell.pretrained_as))
        if kind in kinds or len(kinds) == 4:
            continue
        kinds.add(kind)
        settings = dict(cell.settings) | stand_ins(recipe, corpora, tiny_ast, shared_root)
        settings.pop("corpus.label_fraction", None)
        cells.append(dataclasses.replace(cell, settings=settings))
    places = {"output_dir": place / "runs", "results": place / "results.json"}
    return study.model_copy(update={"cells": tuple(cells), "baseline": None, **places})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", STUDIES)
def test_a_published_table_is_rendered_beside_ours(name, corpora, tiny_ast, shared_root, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("laennec.study.run.run_step", lambda command, folder, say: str(main(command) or "") or None)
    monkeypatch.setattr(
        "laennec.evaluation.evaluate.write_report", lambda place, *_: (place / "report.html").write_text("")
    )
    whole = load_study(STUDIES[name])
    study = small(whole, corpora, tiny_ast, shared_root, tmp_path)
    done = run_study(study)
    assert not done.failed and len(done.runs) == len(study.cells)
    page = (tmp_path / "runs" / "published.md").read_text()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.split("Published: ")[0].splitlines()}
    for cell in study.cells:
        row = rows[cell.method]
        for printed in whole.published.values.get(cell.method, {}).values():
            assert printed in row
        assert whole.published.split in row or "split" in whole.published.values.get(cell.method, {})
        assert re.search(r"\d+\.\d|not run", row) and "validation" in row
    assert whole.published.source in page
    kept = json.loads((tmp_path / "results.json").read_text())["study"]["published"]
    assert kept["values"] == whole.published.values


@pytest.mark.parametrize("name", STUDIES)
def test_a_dry_run_says_what_is_missing_and_how_long_it_takes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if name not in ("paper_song2021_table2", "paper_frozen_ast"):  # the others count the same networks again
        monkeypatch.setattr("laennec.study.outlook._forward_pass", lambda recipe, seconds: (0.1, 1e9))
    assert main(["study", str(STUDIES[name]), "--dry-run"]) == 0
    said = capsys.readouterr().out
    study = load_study(STUDIES[name])
    assert f"{len(study.cells)} cells: 0 finished" in said
    hours = re.search(r"about (\S+) hours for all on one thread of this processor .* (\S+) hours on an NVIDIA", said)
    assert float(hours[1]) > 0.1
    assert re.search(r"missing: data: .*https://\S+ \(licence: ", said)
    for recipe in (Recipe.from_yaml(cell.recipe, **cell.settings) for cell in study.cells):
        if recipe.encoder.weights and not recipe.pretrain:
            assert f"missing: weights: {recipe.encoder.weights}" in said
    if name == "paper_soni2021":
        lines = [line for line in said.splitlines() if line.startswith("laennec pretrain")]
        assert len(lines) == 14


def test_a_study_of_the_package_runs_by_its_name_and_leaves_its_results_with_its_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "paper_song2021_table2", "--dry-run"]) == 0
    assert "laennec train icbhi2017_official/song2021" in capsys.readouterr().out
    assert str(load_study("paper_song2021_table2").results) == "runs/studies/paper_song2021_table2/results.json"
    assert main(["study", "paper_song2021_tabel2"]) == 2
    assert "did you mean 'paper_song2021_table2'?" in capsys.readouterr().err
