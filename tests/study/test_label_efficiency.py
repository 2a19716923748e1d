"""Label efficiency from the command line: cells like any training, written once, resumed, and refused where mixed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from laennec.cli.main import main
from laennec.encoders import encoder_digest, load_encoder
from laennec.evaluation.evaluate import load_model, score
from laennec.study import label_efficiency as module
from laennec.training.pretraining.dataset import PRETRAINING
from laennec.training.pretraining.run import pretrain
from laennec.training.recipe import Recipe
from laennec.training.run import train

QUICK = ["--train.epochs", "1", "--draws", "1", "--label-fraction", "0.3"]


def read(path):
    return json.loads(path.read_text())


def one_line(capsys, *said):
    err = capsys.readouterr().err
    assert err.startswith("laennec: ") and err.count("\n") == 1, err
    for part in said:
        assert str(part) in err, err


@pytest.fixture
def no_picture(monkeypatch):
    """Leave out the picture, which takes as long as a cell here; one test looks at it."""
    monkeypatch.setattr("laennec.evaluation.plots.save_picture", lambda *_: None)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, whose encoder was trained."""
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation-*", "export-*"))


@pytest.fixture(scope="module")
def linear_run(tiny_recipe, shared_root, tmp_path_factory):
    """A linear head on a released, frozen encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(
            **(
                tiny_recipe
                | {
                    "features": {"preset": "efficientat"},
                    "encoder": {
                        "type": "mobilenet",
                        "weights": str(shared_root / "weights" / "mn04_as_mAP_432.pt"),
                        "trainable": "frozen",
                    },
                    "head": {"threshold_rule": "youden", "dropout": 0.2},
                }
            )
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "linear")
        return train(recipe)


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """Both modes, two fractions, two draws, of a run whose encoder was trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("labels") / "run")
        wanted = ["--label-fraction", "1.0,0.3", "--draws", "2", "--train.epochs", "1"]
        assert main(["evaluate", str(run), *wanted]) == 0
    return run, ["evaluate", str(run), *wanted]


def test_every_cell_and_the_table_are_written(made):
    run, _ = made
    folder = run / "label-efficiency-test"
    kinds = {"label_efficiency.json", "label_efficiency.csv", "label_efficiency.parquet", "label_efficiency.png"}
    assert {p.name for p in folder.iterdir()} == kinds | {"cells", "encoder"}
    names = {f"{m}-{f}-{d}" for m in ("linear", "finetune") for f in (0.3, 1.0) for d in (0, 1)}
    assert {p.name for p in (folder / "cells").iterdir()} == names
    for cell in (folder / "cells").iterdir():
        assert {p.name for p in cell.iterdir()} == {"predictions.parquet", "result.json"}
    record, table = read(folder / "label_efficiency.json"), pd.read_parquet(folder / "label_efficiency.parquet")
    pd.testing.assert_frame_equal(table, pd.read_csv(folder / "label_efficiency.csv"), check_dtype=False)
    assert any("4 patients: too few for an interval" in note for note in record["notes"])
    assert list(dict.fromkeys(zip(table["mode"], table["fraction"], strict=True))) == [
        ("linear", 0.3), ("linear", 1.0), ("finetune", 0.3), ("finetune", 1.0)
    ]  # fmt: skip
    assert set(table["draws"]) == {2} and record["selection_set"] == "validation"
    assert any("TRAINED ON ALL LABELS" in note for note in record["notes"])
    assert (
        record["corpus"]["provenance"]["split_fingerprint"]
        == read(run / "run.json")["corpus"]["provenance"]["split_fingerprint"]
    )
    # one figure again, from the answers of the cells
    from laennec.evaluation import predictions_metrics

    values = []
    for draw in (0, 1):
        cell = folder / "cells" / f"finetune-0.3-{draw}"
        answers, result = pd.read_parquet(cell / "predictions.parquet"), read(cell / "result.json")
        settings = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}
        values.append(predictions_metrics(answers, **settings, thresholds=result["thresholds"])["values"])
    for figure in ("roc_auc_macro", "wheeze.roc_auc", "icbhi.Score"):
        row = table[(table["mode"] == "finetune") & (table["fraction"] == 0.3) & (table["figure"] == figure)].iloc[0]
        assert row["mean"] == pytest.approx(np.mean([v[figure] for v in values]))


def test_cells_start_from_the_runs_encoder_and_only_finetune_moves_it(made):
    run, _ = made
    model, _ = load_model(run)
    start = load_encoder(run / "label-efficiency-test" / "encoder")
    assert encoder_digest(start) == encoder_digest(model.encoder)
    cells = run / "label-efficiency-test" / "cells"
    linear, tuned = (read(cells / f"{mode}-0.3-0" / "result.json") for mode in ("linear", "finetune"))
    assert [run["config"]["encoder"]["trainable"] for run in (linear, tuned)] == ["frozen", "full"]
    assert linear["config"]["encoder"]["weights"] == tuned["config"]["encoder"]["weights"]
    assert linear["cycles"] == tuned["cycles"] < linear["cycles_an_epoch"]
    answers = [
        pd.read_parquet(cells / f"{m}-0.3-0" / "predictions.parquet")["logit_crackle"] for m in ("linear", "finetune")
    ]
    assert not np.allclose(*answers)


def test_a_restart_trains_only_what_is_missing(made, no_picture, capsys):
    run, command = made
    cells = run / "label-efficiency-test" / "cells"
    before = {p: p.read_bytes() for p in cells.rglob("*.parquet")}
    times = {p: p.stat().st_mtime_ns for p in cells.rglob("result.json")}
    table = (run / "label-efficiency-test" / "label_efficiency.csv").read_bytes()
    looked = len(read(run / "run.json")["evaluations"])
    lost = cells / "finetune-0.3-1"
    shutil.rmtree(lost)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count(" of the labels, draw ") == 1 and "1/1 finetune, 30 % of the labels, draw 1" in said
    assert {p: p.read_bytes() for p in cells.rglob("*.parquet")} == before
    assert [p for p, t in times.items() if p.stat().st_mtime_ns != t] == [lost / "result.json"]
    assert (run / "label-efficiency-test" / "label_efficiency.csv").read_bytes() == table
    assert read(run / "run.json")["evaluations"][-1]["label_efficiency"] == 1
    assert main(command) == 0
    assert len(read(run / "run.json")["evaluations"]) == looked + 1


def test_an_interrupted_cell_goes_on_and_ends_the_same(made, run, no_picture, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    wanted = ["evaluate", str(run), *QUICK, "--mode", "finetune"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "predictions_table", interrupted)
        assert main(wanted) == 130
    cell = run / "label-efficiency-test" / "cells" / "finetune-0.3-0"
    assert [p.name.split("-")[0] for p in cell.iterdir()] == ["unfinished"]
    assert not (run / "label-efficiency-test" / "label_efficiency.json").exists()
    assert main(wanted) == 0
    whole = made[0] / "label-efficiency-test" / "cells" / "finetune-0.3-0" / "predictions.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(cell / "predictions.parquet"), pd.read_parquet(whole))


def test_all_labels_of_a_linear_run_are_that_run(linear_run, tmp_path, no_picture, monkeypatch):
    """One code path: draw 0 of every label answers as the run itself does, to the bit."""
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    out = tmp_path / "labels"
    command = ["evaluate", str(linear_run), "--label-fraction", "1.0", "--draws", "1", "--mode", "linear"]
    assert main([*command, "--out", str(out)]) == 0
    own = pd.read_parquet(score(linear_run, out=tmp_path / "own", draws=0).folder / "predictions.parquet")
    own = own.drop(columns=["level_db", "bandwidth_hz"])  # what the floors of a run look at
    pd.testing.assert_frame_equal(pd.read_parquet(out / "cells" / "linear-1.0-0" / "predictions.parquet"), own)
    record, fitted = read(out / "label_efficiency.json"), read(linear_run / "run.json")["operating_points"]
    assert record["cells"][0]["thresholds"] == pytest.approx(fitted["thresholds"])
    assert record["rows"][-1]["values"] == [read(tmp_path / "own" / "metrics.json")["values"]["icbhi.Score"]]
    assert not (out / "encoder").exists() and not any("TRAINED ON ALL" in note for note in record["notes"])


def test_a_folder_with_a_recipe_and_an_encoder_is_enough(run, tmp_path, no_picture):
    """The encoder of a model, and the same one in a folder of its own, are one start."""
    folder = tmp_path / "encoder alone"
    load_model(run)[0].encoder.save_pretrained(folder / "encoder")
    shutil.copy(run / "run.json", folder / "run.json")
    for source in (folder, run):
        assert main(["evaluate", str(source), *QUICK, "--mode", "linear"]) == 0
    one, two = (
        pd.read_parquet(r / "label-efficiency-test" / "cells" / "linear-0.3-0" / "predictions.parquet")
        for r in (folder, run)
    )
    pd.testing.assert_frame_equal(one, two)


def test_what_pretraining_leaves_is_enough(tiny_recipe, tmp_path, no_picture, capsys):
    recipe = Recipe(**(tiny_recipe | {"pretrain": {"epochs": 1, "batch_size": 8, "views": ["split"]}}))
    recipe.output_dir = str(tmp_path / "pretrained")
    run = pretrain(recipe)
    assert main(["evaluate", str(run), *QUICK, "--mode", "linear,finetune"]) == 0
    record = read(run / "label-efficiency-test" / "label_efficiency.json")
    assert [cell["mode"] for cell in record["cells"]] == ["linear", "finetune"]
    assert record["cells"][0]["config"]["encoder"]["weights"] == str(run / "encoder")
    assert not any("TRAINED ON ALL" in note for note in record["notes"])
    assert [e["split"] for e in read(run / "pretrain.json")["evaluations"]] == ["test"]
    # an encoder that has met patients of the scored part is refused
    capsys.readouterr()
    note = read(run / "encoder" / PRETRAINING)
    met = pd.read_parquet(run / "label-efficiency-test" / "cells" / "linear-0.3-0" / "predictions.parquet")[
        "patient_id"
    ]
    (run / "encoder" / PRETRAINING).write_text(json.dumps(note | {"patients": [*note["patients"], met[0]]}))
    assert main(["evaluate", str(run), *QUICK, "--out", str(tmp_path / "other")]) == 2
    one_line(capsys, "pre-trained on patients of test", met[0])
    assert not (tmp_path / "other").exists()


def test_cells_of_other_settings_or_another_encoder_are_refused(run, no_picture, capsys):
    assert main(["evaluate", str(run), *QUICK, "--mode", "linear"]) == 0
    capsys.readouterr()
    other = ["--label-fraction", "0.5", "--draws", "1", "--mode", "linear", "--train.epochs", "2"]
    assert main(["evaluate", str(run), *other]) == 2
    one_line(capsys, "linear-0.3-0", "other settings of linear", "--out")
    # another mode has settings of its own
    assert main(["evaluate", str(run), *QUICK, "--mode", "finetune", "--train.epochs", "2"]) == 0
    assert len(read(run / "label-efficiency-test" / "label_efficiency.json")["cells"]) == 2
    model, _ = load_model(run)
    for parameter in model.encoder.parameters():
        parameter.data += 0.01
    model.save_pretrained(run / "model")
    capsys.readouterr()
    assert main(["evaluate", str(run), *QUICK, "--mode", "linear"]) == 2
    one_line(capsys, "another encoder")


BAD = [
    (["--label-fraction", "0"], "above 0 and at most 1"),
    (["--label-fraction", "0.1,1.5"], "'1.5'"),
    (["--label-fraction", "0.01"], "too few for the"),
    (["--label-fraction", "0.5", "--mode", "probe"], "linear, finetune or both"),
    (["--label-fraction", "0.5", "--draws", "0"], "--draws 0"),
    (["--label-fraction", "0.5", "--draws", "-3"], "--draws -3"),
    (["--label-fraction", "0.5", "--split", "tset"], "no part 'tset'"),
    (["--label-fraction", "0.5", "--split", "validation"], "held out"),
    (["--label-fraction", "0.5", "--corpus.protocol", "official"], "share the run's data"),
    (["--label-fraction", "0.5", "--train.epochs", "many"], "train.epochs"),
    (["--label-fraction", "0.5", "--train.epochs"], "no value"),
    (["--label-fraction", "0.5", "--smoothing", "auto"], "do not go together"),
    (["--mode", "linear"], "give --label-fraction too"),
    (["--label-fraction", "0.5", "--protocol", "recording-80-20"], "not the corpus and split"),
]


def test_the_encoder_of_a_frozen_run_is_moved_by_finetuning(linear_run, tmp_path, no_picture):
    command = ["evaluate", str(linear_run), *QUICK, "--mode", "linear,finetune", "--train.max_steps", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    cells = [tmp_path / "out" / "cells" / f"{mode}-0.3-0" for mode in ("linear", "finetune")]
    assert [read(c / "result.json")["config"]["encoder"]["trainable"] for c in cells] == ["frozen", "full"]
    one, two = (pd.read_parquet(c / "predictions.parquet")["logit_crackle"] for c in cells)
    assert not np.allclose(one, two)


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_what_cannot_be_done_is_one_line_and_writes_nothing(run, flags, said, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["evaluate", str(run), *flags]) == 2
    one_line(capsys, said)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_folder_without_run_or_encoder_is_one_line(run, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "nowhere"), "--label-fraction", "0.5"]) == 2
    one_line(capsys, "nowhere", "no run.json or pretrain.json")
    assert main(["evaluate", str(run / "model"), "--label-fraction", "0.5"]) == 2
    one_line(capsys, "no run.json or pretrain.json")
    shutil.rmtree(run / "model")
    assert main(["evaluate", str(run), "--label-fraction", "0.5"]) == 2
    one_line(capsys, "no encoder there")
    (run / "run.json").write_text("{}")
    assert main(["evaluate", str(run), "--label-fraction", "0.5"]) == 2
    one_line(capsys, "holds no recipe")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    (run / "run.json").unlink()
    assert not (run / "label-efficiency-test").exists()


def test_results_of_others_are_never_replaced(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert main(["evaluate", str(run), *QUICK, "--out", str(tmp_path / "mine")]) == 2
    one_line(capsys, "holds other files (thesis.txt)")


def test_settings_are_for_trainings_alone(run, capsys):
    """Without fractions there is nothing to train, so a setting is a mistyped flag."""
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--train.epochs", "1"])
    assert "unknown argument --train.epochs" in capsys.readouterr().err
