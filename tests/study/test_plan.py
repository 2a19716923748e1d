"""Study files: names, settings and commands of their runs, and errors before anything runs."""

import json
import shlex

import pytest
import yaml

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.study import load_study
from laennec.study.run import commands, ensemble_commands
from laennec.study.stale import refuse_other_pretraining
from laennec.training.recipe import Recipe
from laennec.training.record import write_record

RECIPE = {
    "name": "tiny",
    "corpus": {"name": "synthetic", "protocol": "patient-60-20-20"},
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
    "train": {"epochs": 1, "batch_size": 8, "selection_metric": "loss"},
    "head": {"threshold_rule": "youden"},
}


@pytest.fixture
def written(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))

    def write(**study):
        study = {"output_dir": str(tmp_path / "out"), "methods": [str(tmp_path / "tiny.yaml")], **study}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        return tmp_path / "study.yaml"

    return write


def test_methods_times_axes_times_seeds_are_the_cells(written):
    study = load_study(
        written(
            seeds=[0, 3],
            axes={"label_fractions": [0.1, 1.0], "rates": {"slow": {"train.learning_rate": 1e-4}, "fast": {}}},
        )
    )
    names = [cell.method for cell in study.cells]
    assert len(study.cells) == 8 and len({cell.name for cell in study.cells}) == 8
    assert names[0] == "tiny, label fraction 0.1, slow" and names[-1] == "tiny, label fraction 1, fast"
    assert [cell.seed for cell in study.cells[:2]] == [0, 3]
    assert study.cells[0].settings == {"corpus.label_fraction": 0.1, "train.learning_rate": 1e-4}
    assert dict(study.cells[0].places) == {"label_fractions": "label fraction 0.1", "rates": "slow"}


def test_a_baseline_without_axes_stands_for_the_method_with_the_same_values_of_the_axes(written, tmp_path):
    methods = [str(tmp_path / "tiny.yaml"), {"recipe": str(tmp_path / "tiny.yaml"), "name": "other"}]
    axes = {"label_fractions": [0.1, 1.0]}
    of_each = load_study(written(methods=methods, axes=axes, baseline="tiny")).baselines
    assert of_each == {
        f"{name}, label fraction {share}": f"tiny, label fraction {share}"
        for name in ("tiny", "other")
        for share in ("0.1", "1")
    }
    one = load_study(written(methods=methods, axes=axes, baseline="tiny, label fraction 1")).baselines
    assert set(one.values()) == {"tiny, label fraction 1"} and len(one) == 4
    assert load_study(written(methods=methods)).baselines == {}


def test_an_axis_with_one_value_is_not_in_the_name(written):
    study = load_study(written(axes={"train.epochs": [3]}))
    assert [cell.method for cell in study.cells] == ["tiny"] and study.cells[0].settings == {"train.epochs": 3}


def test_commands_have_the_settings_of_their_cell(written, tmp_path):
    study = load_study(
        written(
            seeds=[2],
            folds=[0, 1],
            methods=[{"recipe": str(tmp_path / "tiny.yaml"), "set": {"train": {"epochs": 4}, "loss.task": "focal"}}],
            score=["test", {"split": "test", "corpus": "sprsound", "data_dir": "d", "allow_missing": True}],
            evaluate={"smoothing": 0.5},
            axes={"label_fractions": [0.5], "corpus.protocol": ["patient-5fold"]},
        )
    )
    train, *evaluations = commands(study, study.cells[1])
    given = dict(zip(train[2::2], train[3::2], strict=True))
    again = Recipe.from_yaml(train[1], **{key[2:]: value for key, value in given.items()})
    assert (again.train.epochs, again.loss.task, again.seed, again.corpus.fold) == (4, "focal", 2, 1)
    assert (again.corpus.label_fraction, again.corpus.label_draw) == (0.5, 2)
    assert evaluations[0][1:4] == [given["--output_dir"], "--split", "test"] and evaluations[0][-2:] == [
        "--smoothing",
        "0.5",
    ]
    own, other = (shlex.join(words) for words in evaluations)
    assert "--corpus" not in own and own.split("--out ")[1].startswith(given["--output_dir"])
    assert "--corpus sprsound --data-dir d --allow-missing" in other and "evaluation-sprsound-test" in other


def test_a_pretrained_method_starts_from_its_own_encoder(written, tmp_path):
    method = {"recipe": str(tmp_path / "tiny.yaml"), "pretrain": True}
    study = load_study(written(methods=[method]))
    pretrain, train, _ = commands(study, study.cells[0])
    assert pretrain[0] == "pretrain" and train[0] == "train"
    assert train[train.index("--encoder.weights") + 1] == pretrain[pretrain.index("--output_dir") + 1] + "/encoder"


def test_a_pretraining_of_other_settings_is_refused(written, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    study = load_study(written(methods=[{"recipe": str(recipe), "pretrain": True}]))
    place = study.output_dir / study.cells[0].pretraining_name / "pretrain.json"
    write_record(place, {"config": Recipe.from_yaml(recipe).to_dict()})
    refuse_other_pretraining(study, study.cells[0])
    write_record(place, {"config": Recipe.from_yaml(recipe, seed=3).to_dict()})
    with pytest.raises(InputError, match="holds a pre-training with seed = 3, where the study says 0"):
        refuse_other_pretraining(study, study.cells[0])


def test_a_method_may_have_its_own_splits_to_score(written, tmp_path):
    here, there = str(tmp_path / "tiny.yaml"), {"split": "all", "corpus": "sprsound", "data_dir": "d"}
    methods = [{"recipe": here}, {"recipe": here, "name": "other", "score": there}]
    study = load_study(written(methods=methods, score=["validation", "test"]))
    asked = [[words for words in commands(study, cell) if words[0] == "evaluate"] for cell in study.cells]
    assert [words[words.index("--split") + 1] for words in asked[0]] == ["validation", "test"]
    assert [words[words.index("--split") + 1] for words in asked[1]] == ["all"] and "sprsound" in asked[1][0]


def test_a_method_may_be_smoothed_alone(written, tmp_path):
    methods = [{"recipe": str(tmp_path / "tiny.yaml"), "evaluate": {"smoothing": "auto"}}]
    methods += [{"recipe": str(tmp_path / "tiny.yaml"), "name": "other", "evaluate": {"smoothing": 0.2}}]
    study = load_study(written(methods=methods, evaluate={"spans": "windows"}))
    said = [" ".join(words) for cell in study.cells for words in commands(study, cell) if words[0] == "evaluate"]
    assert [line.partition("--smoothing ")[2].split()[0] for line in said] == ["auto", "0.2"]
    assert all("--spans windows" in line for line in said)


def test_all_ensembles_are_those_whose_runs_share_patients_and_labels(written, capsys):
    study = load_study(written(seeds=[0, 1], axes={"label_fractions": [0.1, 1.0]}, ensembles="all"))
    assert study.ensembles == ("tiny, label fraction 1",)
    (made, *scored) = ensemble_commands(study, study.members[0])
    assert made[0] == "ensemble" and made[made.index("--name") + 1] == "tiny, label fraction 1, ensemble of 2"
    assert [words[0] for words in scored] == ["evaluate"] and scored[0][1] == made[made.index("--out") + 1]
    assert load_study(written(ensembles="all")).ensembles == ()
    two = load_study(written(seeds=[0, 1], ensembles="all", baseline="tiny"))
    assert two.baselines == {"tiny": "tiny", "tiny, ensemble of 2": "tiny"}


def test_the_seeds_of_each_fold_form_an_ensemble(written):
    study = load_study(
        written(seeds=[0, 1], folds=[0, 3], ensembles="all", axes={"corpus.protocol": ["patient-5fold"]})
    )
    assert [[cell.name for cell in cells] for cells in study.members] == [
        ["tiny/0-fold0", "tiny/1-fold0"],
        ["tiny/0-fold3", "tiny/1-fold3"],
    ]
    made = [next(ensemble_commands(study, cells)) for cells in study.members]
    assert [words[-1].partition("/out/")[2] for words in made] == ["tiny-ensemble/2-fold0", "tiny-ensemble/2-fold3"]
    assert {words[words.index("--name") + 1] for words in made} == {"tiny, ensemble of 2"}  # pooled as one method


def test_cells_that_differ_in_labels_alone_share_a_pretraining(written, tmp_path):
    method = {"recipe": str(tmp_path / "tiny.yaml"), "pretrain": True}
    axes = {"label_fractions": [0.1, 1.0], "losses": {"one": {"pretrain.temperature": 0.1}, "two": {}}}
    study = load_study(written(methods=[method], axes=axes, seeds=[0, 1]))
    first = [next(commands(study, cell)) for cell in study.cells]
    assert all(command[0] == "pretrain" and "--corpus.label_fraction" not in command for command in first)
    assert len(study.cells) == 8 and len({tuple(command) for command in first}) == 4
    weights = [[*commands(study, cell)][1] for cell in study.cells]
    assert len({command[command.index("--encoder.weights") + 1] for command in weights}) == 4


def test_a_dry_run_prints_and_writes_nothing(written, tmp_path, capsys):
    assert main(["study", str(written(seeds=[0, 1])), "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "2 cells: 0 finished, 2 to run; the time is unknown until a cell is finished"
    assert len(lines) == 4 and all(line.startswith("laennec ") for line in lines)
    assert not (tmp_path / "out").exists()


def test_the_expected_time_ignores_finished_cells_without_a_measured_training(written, tmp_path, capsys):
    for seed, step in enumerate(["train", "evaluate"]):
        folder = tmp_path / "out" / "tiny" / str(seed)
        for record in (folder / "run.json", folder / "evaluation-test" / "run.json"):
            record.parent.mkdir(parents=True)
            record.write_text('{"evaluated": {"split": "test", "corpus": {"name": "synthetic"}}}')
        folder.with_name(f"{seed}.cost.json").write_text(json.dumps({step: {"seconds": 3600}}))
    assert main(["study", str(written(seeds=[0, 1, 2, 3])), "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "4 cells: 2 finished, 2 to run; about 2.0 hours at the pace of the finished ones"


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"methds": []}, "unknown key 'methds'; did you mean 'methods'"),
        ({"methods": [{"recip": "x"}]}, r"methods.0: unknown key 'recip'"),
        ({"methods": ["nothing.yaml"]}, "cannot read the recipe"),
        ({"baseline": "tinny"}, "no method of this study; did you mean 'tiny'"),
        ({"ensembles": ["other"]}, "no method of this study"),
        ({"ensembles": ["tiny"]}, "'tiny' have one seed; remove it from ensembles"),
        ({"folds": [0, 1]}, "folds: the protocol of tiny has none; set corpus.protocol: patient-5fold"),
        ({"axes": {"seed": [1, 2]}}, "tiny, seed 1: the study itself sets seed; give seeds instead"),
        ({"axes": {"names": {"a": {"name": "other"}, "b": {}}}}, "the study itself sets name; give name of the method"),
        ({"axes": {"label_fractions": [0.5], "corpus.label_draw": [1, 2]}}, "sets corpus.label_draw; give seeds"),
        ({"evaluate": {"smoothing": 3}}, "evaluate.smoothing"),
        ({"ensembles": ["tiny"], "splits": "own"}, "'tiny' have different splits"),
        ({"ensembles": ["tiny"], "axes": {"label_fractions": [0.1]}}, "'tiny' have different draws of labels"),
        ({"evaluate": 3}, "evaluate: is 3; it must be keys and values"),
        ({"seeds": [0, 0]}, "two runs are called"),
        ({"seeds": [-1]}, "seeds.0: is -1; it must be greater than or equal to 0"),
        ({"splits": "none"}, "splits: is 'none'; it must be 'shared' or 'own'"),
        (
            {"folds": [0, 7], "axes": {"corpus.protocol": ["patient-5fold"]}},
            "no fold 7; patient-5fold has",
        ),
        ({"axes": {"train.epoks": [1]}}, r"study\.yaml: tiny: unknown key 'train.epoks'; did you mean 'train.epochs'"),
        ({"axes": {"label_fractions": [0.0]}}, "label_fraction"),
        ({"axes": {"encoders": "mn04"}}, "must be a list of values"),
        ({"score": ["test", "test"]}, "the same split twice"),
    ],
)
def test_a_study_that_cannot_run_is_refused(written, study, words):
    with pytest.raises(InputError, match=words):
        load_study(written(**study))


@pytest.mark.parametrize(
    ("name", "other"),
    [("★", {}), ("..", {}), ("a-ensemble", {}), ("a-pretraining", {"pretrain": True})],
)
def test_a_method_whose_folder_is_not_its_own_is_refused(written, tmp_path, name, other):
    recipe = str(tmp_path / "tiny.yaml")
    methods = [{"recipe": recipe, "name": "a", **other}, {"recipe": recipe, "name": name}]
    with pytest.raises(InputError, match=rf"study\.yaml: the method '{name}' would have no folder of its own"):
        load_study(written(methods=methods, seeds=[0, 1], ensembles=["a"]))


def test_a_folder_with_another_run_is_refused(written, tmp_path, capsys):
    study = load_study(written())
    recipe = Recipe.from_yaml(study.cells[0].recipe, **{"train.epochs": 7, "name": "tiny"})
    folder = tmp_path / "out" / study.cells[0].name
    folder.mkdir(parents=True)
    from laennec.training.record import write_record

    write_record(folder / "recipe.json", recipe.to_dict())
    assert main(["study", str(tmp_path / "study.yaml"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "train.epochs = 7, where the study says 1" in said and said.count("\n") == 1


def test_each_seed_may_draw_its_own_split(written):
    study = load_study(written(seeds=[0, 4], splits="own"))
    given = [next(iter(commands(study, cell))) for cell in study.cells]
    assert [words[words.index("--corpus.split_seed") + 1] for words in given] == ["0", "4"]
    assert all("--corpus.split_seed" not in words for words in commands(load_study(written()), study.cells[0]))


def test_a_record_of_a_loss_on_clusters_is_that_of_its_recipe():
    """YAML reads a bare `on` as true, and a record keeps it as text: a study would refuse its own finished runs."""
    recipe = Recipe.from_yaml("sprsound/cycleguardian_mobilenet")
    assert recipe.loss.auxiliary["group_mix"]["on"] == "clusters"
    again = Recipe.from_record(json.loads(json.dumps(recipe.to_dict())))
    assert again.identity() == recipe.identity()
    old = json.loads(json.dumps(recipe.to_dict()).replace('"on": "clusters"', '"True": "clusters"'))
    assert Recipe.from_record(old).identity() == recipe.identity()
