"""One model on several corpora: from the recipe to the evaluation on each corpus."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from laennec.cli.main import main
from laennec.corpora import load_corpus, provenance
from laennec.corpora.synthetic import write_corpus
from laennec.errors import InputError
from laennec.evaluation.evaluate import score
from laennec.hub.card import write_card
from laennec.study.ensembles import ensemble_runs
from laennec.study.stale import fingerprint_of, refuse_other_run
from laennec.training.data.split_data import load_splits
from laennec.training.pretraining.dataset import refuse_seen_patients
from laennec.training.pretraining.run import pretrain
from laennec.training.recipe import Recipe
from laennec.training.run import train
from laennec.training.samplers import BalancedSampler
from laennec.training.tables import ValidationMetrics

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def settings(tiny_recipe, tmp_path_factory):
    """The tiny recipe on two corpora, one with fewer patients."""
    folder = tmp_path_factory.mktemp("corpora")
    sizes = {"recordings_per_patient": 1, "cycles_per_recording": 4, "max_rate_hz": 4000}
    corpora = [
        {"name": name, "data_dir": str(write_corpus(folder / name, patients=patients, seed=seed, **sizes))}
        for seed, (name, patients) in enumerate({"synthetic": 16, "icbhi2017": 10}.items())
    ]
    corpora[0]["protocol"], corpora[1]["protocol"] = "patient-60-20-20", "patient-5fold"
    chosen = {"train": tiny_recipe["train"] | {"selection_metric": "accuracy"}, "head": {"threshold_rule": "youden"}}
    return tiny_recipe | {"name": "both", "corpus": corpora} | chosen


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    return train(Recipe(**settings, output_dir=str(tmp_path_factory.mktemp("runs") / "both")))


def read(path):
    return json.loads(path.read_text())


def test_the_epoch_is_chosen_by_the_mean_over_the_corpora(run):
    record = read(run / "run.json")
    assert record["selection_metric"] == "accuracy (mean over synthetic and icbhi2017)"
    shown = [row["validation"] for row in record["history"]]
    for row in shown:
        assert row["accuracy"] == pytest.approx((row["synthetic_accuracy"] + row["icbhi2017_accuracy"]) / 2)
    assert record["best_metric"] == pytest.approx(max(row["accuracy"] for row in shown))
    assert record["corpus"]["name"] == "synthetic+icbhi2017"
    assert set(record["corpus"]["provenance"]["corpora"]) == {"synthetic", "icbhi2017"}
    predictions = pd.read_parquet(run / "predictions-validation.parquet")
    assert set(predictions["corpus"]) == {"synthetic", "icbhi2017"}


def test_a_balanced_sampler_draws_corpora_of_different_sizes_equally_often(settings, tmp_path, monkeypatch):
    drawn, order = [], BalancedSampler.order
    monkeypatch.setattr(BalancedSampler, "order", lambda self, epoch: drawn.append(order(self, epoch)) or drawn[-1])
    sampler = {"name": "balanced", "columns": ["corpus"]}
    recipe = Recipe(**(settings | {"sampler": sampler, "output_dir": str(tmp_path / "balanced")}))
    train(recipe)
    corpus = np.array(load_splits(recipe)["train"]["corpus"])
    assert np.ptp(np.unique(corpus, return_counts=True)[1]) > 1
    assert drawn and all(np.ptp(np.unique(corpus[rows], return_counts=True)[1]) <= 1 for rows in drawn)


def test_a_metric_that_one_corpus_leaves_undefined_cannot_choose_the_epoch():
    table = pd.DataFrame({"crackle": [0, 1, 0, 0], "wheeze": [1, 0, 0, 0], "corpus": ["a", "a", "b", "b"]})
    metrics = ValidationMetrics(table, "multi_label", ["crackle", "wheeze"])
    values = metrics(type("Outputs", (), {"predictions": np.array([[-1.0, 1], [1, -1], [1, -1], [-1, -1]])}))
    assert values["accuracy"] == pytest.approx((values["a_accuracy"] + values["b_accuracy"]) / 2)
    assert "roc_auc_macro" not in values and values["a_roc_auc_macro"] == 1
    with pytest.raises(InputError, match=r"undefined for the 2 validation cycles of b \(all or none have crackle, w"):
        metrics.refuse_undefined("auroc_macro")


def test_a_run_is_scored_on_all_corpora_or_on_one_of_them(run, settings, capsys, monkeypatch):
    monkeypatch.setattr(
        "laennec.evaluation.evaluate.write_report", lambda place, *_: (place / "report.html").write_text("")
    )
    everything = score(run)
    assert everything.folder.name == "evaluation-test"
    assert [row["value"] for row in everything.evaluation["subgroups"]["corpus"]] == ["icbhi2017", "synthetic"]
    one = score(run, corpus={"name": "icbhi2017"})
    assert one.folder.name == "evaluation-icbhi2017-test" and "protocol patient-5fold fold 0" in one.summary
    assert "this run was scored" not in one.summary  # it was scored once on all corpora and once on this one
    assert "this run was scored 2 times on test" in score(run, corpus={"name": "icbhi2017"}).summary
    shown = pd.read_parquet(everything.folder / "predictions.parquet")
    shown = shown[shown["corpus"] == "icbhi2017"].reset_index(drop=True)
    alone = pd.read_parquet(one.folder / "predictions.parquet")
    assert ["icbhi2017:" + name for name in alone["cycle_id"]] == list(shown["cycle_id"])
    assert alone["logit_crackle"].to_numpy() == pytest.approx(shown["logit_crackle"].to_numpy(), abs=1e-5)
    assert "was used to choose the epoch" in score(run, split="validation", corpus={"name": "synthetic"}).summary
    assert main(["evaluate", str(run), "--corpus", "icbhi2017", "--fold", "2"]) == 2
    assert "not the corpus and split that this run was trained on" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data-dir", "elsewhere"]) == 2
    assert "trained on synthetic+icbhi2017; name the corpus" in capsys.readouterr().err
    card = write_card(run, run).read_text()
    assert "### Split `icbhi2017 test`" in card and "of another corpus than" not in card


def test_one_corpus_at_a_time_where_several_make_no_sense(run, settings, tmp_path, capsys):
    with pytest.raises(InputError, match=r"pre-training takes one corpus, not synthetic.icbhi2017"):
        pretrain(Recipe(**(settings | {"pretrain": {"epochs": 1}})))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(settings))
    assert main(["embed", str(run), str(tmp_path / "both.yaml"), "--out", str(tmp_path / "e.parquet")]) == 2
    assert "a recipe of several corpora; embed one at a time" in capsys.readouterr().err
    record = read(run / "run.json")
    record["config"]["seed"] = 1
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="each in a folder of its own"):
        ensemble_runs([run, tmp_path / "second"], tmp_path / "e", data_dir="elsewhere")
    task = {"record": {"level": "record", "labels": ["Normal", "CAS"], "window_s": 1}}
    with pytest.raises(InputError, match=r"level is 'record'; synthetic.icbhi2017 has event"):
        train(Recipe(**(settings | {"tasks": task, "output_dir": str(tmp_path / "tasks")})))


def test_patients_of_pre_training_are_found_in_the_test_split_of_their_corpus(settings, tmp_path):
    recipe = Recipe(**settings)
    splits = load_splits(recipe)
    own = load_corpus(**{("corpus" if k == "name" else k): v for k, v in settings["corpus"][1].items()})
    note = provenance(own) | {"patients": [own["test"]["patient_id"][0]]}
    (tmp_path / "pretraining.json").write_text(json.dumps(note))
    with pytest.raises(InputError, match=r"pre-trained on patients of test \(icbhi2017:"):
        refuse_seen_patients(tmp_path, splits)
    (tmp_path / "pretraining.json").write_text(json.dumps(note | {"patients": [own["train"]["patient_id"][0]]}))
    assert refuse_seen_patients(tmp_path, splits)


def test_a_study_refuses_a_run_whose_second_corpus_has_changed(run, settings, tmp_path):
    class Planned:
        output_dir, splits = run.parent, "shared"

    class Cell:
        name, settings, method, seed, fold, pretrained_as = run.name, {}, "both", 0, None, ""
        recipe = tmp_path / "both.yaml"

    Cell.recipe.write_text(yaml.safe_dump(settings))
    refuse_other_run(Planned, Cell, fingerprint_of)
    with pytest.raises(InputError, match=r"of synthetic.icbhi2017 have changed"):
        refuse_other_run(Planned, Cell, lambda corpus: "x" if "icbhi" in corpus else fingerprint_of(corpus))


def test_missing_data_are_named_with_the_flag_of_their_corpus(settings, tmp_path, capsys):
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(tmp_path / "both.yaml"), "--corpus.icbhi2017.data_dir", "nowhere"]) == 2
    assert "nowhere: no such folder or archive; set --corpus.icbhi2017.data_dir" in capsys.readouterr().err


def test_a_split_that_cannot_be_made_names_its_corpus(settings):
    second = settings["corpus"][1] | {"protocol": "device-out", "fold": 99}
    with pytest.raises(InputError, match=r"^icbhi2017: protocol 'device-out': there is no device 99"):
        load_splits(Recipe(**(settings | {"corpus": [settings["corpus"][0], second]})))


def test_a_list_that_leaves_every_corpus_out_has_nothing_to_train_on(settings):
    left_out = [settings["corpus"][0] | {"protocol": "corpus-out"}, settings["corpus"][1] | {"protocol": "corpus-out"}]
    with pytest.raises(InputError, match=r"no cycles in split train under protocol synthetic: corpus-out, icbhi2017"):
        train(Recipe(**(settings | {"corpus": left_out})))
