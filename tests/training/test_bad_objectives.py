"""Bad labels, metadata and settings of losses and samplers, through the command line: one line, exit code 2."""

import logging
import shutil

import pytest
import torch
import yaml

from laennec.cli.main import main
from runs import one_line

SMALL = {
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
    "train": {"epochs": 1, "max_steps": 1, "batch_size": 8, "selection_metric": "loss"},
}


@pytest.fixture
def train(tmp_path, small_corpus):
    """Run `laennec train` on a corpus with these settings; a copy of the small one unless another is named."""

    def run(spoil=None, corpus=None, out="run", **settings):
        folder = shutil.copytree(small_corpus, tmp_path / f"corpus of {out}")
        if spoil is not None:
            spoil(folder)
        corpus = corpus or {"name": "synthetic", "data_dir": str(folder), "protocol": "patient-60-20-20"}
        recipe = SMALL | {"name": "bad", "corpus": corpus} | settings
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / out)])

    return run


def without_sounds(folder):
    for path in folder.glob("*.txt"):
        rows = [line.split("\t")[:2] for line in path.read_text().splitlines() if line.strip()]
        if len(rows[0]) == 2 and "_" in path.stem and path.with_suffix(".wav").exists():
            path.write_text("".join(f"{start}\t{end}\t0\t0\n" for start, end in rows))


def test_a_corpus_of_one_class_is_refused(train, capsys):
    assert train(without_sounds) == 2
    one_line(capsys, "training cycles have the same label (crackle 0, wheeze 0)", "choose another")


def test_a_prediction_outside_the_label_names_is_refused(train, capsys):
    target = {"problem_type": "single_label", "column": "label", "names": ["normal", "crackle", "wheeze"]}
    assert train(target=target, loss={"task": "ce"}) == 2
    one_line(capsys, "the label 'both' of column 'label' is none of normal, crackle, wheeze", "target.names")


def test_more_class_weights_than_classes_are_refused(train, capsys):
    assert train(loss={"class_weights": [1, 2, 3]}) == 2
    one_line(capsys, "loss.class_weights has 3 numbers; there are 2 labels")


@pytest.mark.parametrize("weight", [-1, float("inf"), float("nan")])
def test_an_auxiliary_loss_is_never_driven_up(train, capsys, weight):
    assert train(loss={"auxiliary": {"add": {"weight": weight}}}) == 2
    one_line(capsys, "weight")


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, 1, 1], [1, 1, 1, float("nan")]])
def test_lambdas_of_the_wrong_number_are_refused(train, capsys, weights):
    assert train(loss={"auxiliary": {"add": {"weights": weights}}}) == 2
    one_line(capsys, "loss.auxiliary.add: ADD needs four weights (mu_pos, sigma_pos, mu_neg, sigma_neg), not")


def test_cycles_without_metadata_are_named_and_dropped_or_kept_as_asked(train, shared_data, tmp_path, capsys, caplog):
    """Real ICBHI recordings: patient 223 has neither age nor sex in the published table."""
    folder = tmp_path / "database"
    folder.mkdir()
    for stem in sorted({p.stem for p in (shared_data / "icbhi2017_subset").glob("*.flac")})[::3]:
        for path in (shared_data / "icbhi2017_subset").glob(f"{stem}.*"):
            (folder / path.name).symlink_to(path)
    corpus = {
        "name": "icbhi2017", "data_dir": str(folder), "protocol": "patient-60-20-20", "allow_missing": True,
        "tables_dir": str(unknown_ages(shared_data / "icbhi2017_tables", tmp_path / "tables")),
    }  # fmt: skip
    sampler = {"name": "metadata_matched", "columns": ["age_band", "sex"]}
    with caplog.at_level(logging.WARNING):
        assert train(corpus=corpus, sampler=sampler) == 0
    said = next(record.getMessage() for record in caplog.records if "age_band" in record.getMessage())
    assert "unknown for" in said and "#0" in said and "own_group keeps them" in said
    capsys.readouterr()


def unknown_ages(tables, copy):
    """The published tables with every third patient's age and sex taken away."""
    shutil.copytree(tables, copy)
    for path in copy.rglob("*emographic*"):
        lines = path.read_text().splitlines()
        changed = [
            " ".join([line.split()[0], "NA", "NA", *line.split()[3:]]) if place % 3 == 0 and line.split() else line
            for place, line in enumerate(lines)
        ]
        path.write_text("\n".join(changed) + "\n")
    return copy


def test_an_unknown_column_is_refused(train, shared_data, tmp_path, capsys):
    folder = tmp_path / "sprsound"
    for kind in ("wav", "json"):
        (folder / "train" / kind).mkdir(parents=True)
        for path in sorted((shared_data / "sprsound" / "train" / kind).iterdir())[::60]:
            (folder / "train" / kind / path.name).symlink_to(path)
    corpus = {"name": "sprsound", "data_dir": str(folder), "protocol": "patient-60-20-20"}
    auxiliary = {"x": {"loss": "supcon", "labels": "device", "views": 1}}
    assert train(corpus=corpus, loss={"auxiliary": auxiliary}) == 2
    one_line(capsys, "loss.auxiliary.x.labels is 'device', which is the same for all training cycles", "another column")
    assert train(corpus=corpus, out="other", sampler={"name": "metadata_matched", "columns": ["diagnosis"]}) == 2
    one_line(capsys, "sampler.columns is 'diagnosis', but diagnosis is unknown for all", "choose another column")


def test_batches_without_a_positive_pair_stop_before_training(train, capsys, tmp_path):
    assert train(loss={"auxiliary": {"opl": {}}}, train=SMALL["train"] | {"batch_size": 1}) == 2
    one_line(
        capsys, "loss.auxiliary.opl", "no batch of the first epoch holds two cycles of one class", "set sampler.name"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("auxiliary", [{}, {"add": {}}])
def test_an_embedding_that_is_not_finite_names_the_step_and_the_recording(train, capsys, monkeypatch, auxiliary):
    from laennec.training.objective import Objective

    honest = Objective.forward

    def spoilt(self, outputs, *arguments):
        # what an overflow in the encoder leaves: one row of the batch
        row = torch.zeros_like(outputs.embeddings)
        row[2] = float("nan")
        outputs.embeddings = outputs.embeddings + row
        outputs.logits = outputs.logits + row[:, :1]
        return honest(self, outputs, *arguments)

    monkeypatch.setattr(Objective, "forward", spoilt)
    assert train(loss={"auxiliary": auxiliary}) == 2
    one_line(capsys, "step 1: the embedding of ", "_1b1_", "#0", "is not finite", "lower train.learning_rate")
