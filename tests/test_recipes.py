"""Every recipe is read and run for two steps, on the synthetic corpus where its own data is missing."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import audio_twins
import laennec
from laennec.audio.cycles import read_annotation
from laennec.encoders import load_encoder
from laennec.study import load_study
from laennec.study.search import Space
from laennec.training.pretraining.run import pretrain
from laennec.training.recipe import Recipe
from laennec.training.run import train

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("accelerate", "studies", "searches")
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name not in OTHERS)
STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))
SEARCHES = sorted((ROOT / "recipes" / "searches").glob("*.yaml"))
NAMES = [f"{p.parent.name}/{p.stem}" for p in RECIPES]


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory):
    """A tiny Whisper encoder with random weights, in the folder layout of a download."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    folder = tmp_path_factory.mktemp("whisper")
    load_encoder(None, type="whisper", **sizes).save_pretrained(folder)
    return folder


def stand_ins(recipe, small_corpus, tiny_ast, tiny_whisper, shared_root):
    """Flags that replace downloads and large corpora by small ones of the same kind."""
    flags = {
        "train.max_steps": 2,
        "train.batch_size": min(recipe.train.batch_size, 8),
        "schedule.pretrain_epochs": min(recipe.schedule.pretrain_epochs, 1),
    }
    if recipe.corpus.name in ("icbhi2017", "synthetic"):
        flags |= {"corpus.name": "synthetic", "corpus.data_dir": str(small_corpus)}
    elif recipe.corpus.corpora:
        flags["corpus.icbhi2017.data_dir"] = str(small_corpus)
    if recipe.loss.teacher:
        flags["loss.teacher"] = laennec.DEFAULT_MODEL
    if recipe.encoder.type == "ast":
        flags["encoder.weights"] = str(tiny_ast)
    elif recipe.encoder.type == "whisper":
        flags["encoder.weights"] = str(tiny_whisper)
    elif recipe.encoder.type == "beats":
        flags["encoder.weights"] = str(shared_root / "conformance" / "beats_tiny.pt")
    elif recipe.encoder.type == "cnn":
        flags["encoder.config.channels"] = [4, 8]
    elif recipe.encoder.weights:
        flags["encoder.weights"] = str(shared_root / "weights" / "mn04_as_mAP_432.pt")
    return flags


@pytest.fixture(scope="session")
def few_recordings(shared_data, tmp_path_factory):
    """SPRSound's layout with some real recordings of each split."""
    folder = tmp_path_factory.mktemp("sprsound")
    for part, step in (("train", 80), ("test_intra", 90)):
        for kind in ("wav", "json"):
            (folder / part / kind).mkdir(parents=True)
            for path in sorted((shared_data / "sprsound" / part / kind).iterdir())[::step]:
                (folder / part / kind / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def general_audio(some_recordings, tmp_path_factory):
    """Small copies of the general audio data sets, each in the layout that its recipes read."""
    folder = tmp_path_factory.mktemp("general_audio")
    github = audio_twins.esc50_github(folder / "github", some_recordings)
    return {
        "esc50": audio_twins.esc50_hub(folder / "esc50", github),
        "speech": audio_twins.speech_commands(folder / "speech_commands", some_recordings),
        "iemocap": audio_twins.iemocap(folder / "iemocap", some_recordings),
    }


def own_recordings(corpus, folder, whole):
    """A user's folder: the sounds of a corpus with one table, of cycles or of a diagnosis for each recording."""
    folder.mkdir()
    rows = ["recording,patient_id,diagnosis"] if whole else ["recording,start_s,end_s,label,patient_id"]
    for number, sound in enumerate(sorted(corpus.glob("*.wav"))):
        (folder / sound.name).symlink_to(sound)
        if whole:
            rows.append(f"{sound.name},{sound.name[:3]},{('healthy', 'asthma')[number % 2]}")
        for cycle in [] if whole else read_annotation(sound.with_suffix(".txt")):
            rows.append(f"{sound.name},{cycle.start_s},{cycle.end_s},{cycle.label},{sound.name[:3]}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_runs_for_two_steps(
    path, small_corpus, tiny_ast, tiny_whisper, few_recordings, general_audio, shared_root, tmp_path
):
    flags = stand_ins(Recipe.from_yaml(path), small_corpus, tiny_ast, tiny_whisper, shared_root)
    if Recipe.from_yaml(path).corpus.name == "sprsound":
        flags["corpus.data_dir"] = str(few_recordings)
    elif Recipe.from_yaml(path).corpus.corpora:
        flags["corpus.sprsound.data_dir"] = str(few_recordings)
    elif Recipe.from_yaml(path).corpus.name == "hub":
        flags["corpus.data_dir"] = str(general_audio[path.stem.split("_")[0]])
    elif Recipe.from_yaml(path).corpus.name == "folder":
        flags["corpus.data_dir"] = str(own_recordings(small_corpus, tmp_path / "own", path.stem == "diagnosis"))
    recipe = Recipe.from_yaml(path, **(flags | {"output_dir": str(tmp_path / "run")}))
    record = json.loads((train(recipe) / "run.json").read_text())
    terms = {name for row in record["history"] for name in row.get("loss_terms", {})}
    assert record["config"]["loss"]["task"] in terms
    assert all(any(term.startswith(name) for term in terms) for name in recipe.loss.auxiliary if name != "tuplet")
    assert record["config"]["train"]["max_steps"] == 2


@pytest.mark.parametrize("path", [p for p in RECIPES if "\npretrain:" in p.read_text()], ids=lambda p: p.stem)
def test_a_recipe_pre_trains_for_two_steps_and_trains_on_from_there(
    path, small_corpus, tiny_ast, tiny_whisper, few_recordings, shared_root, tmp_path
):
    flags = stand_ins(Recipe.from_yaml(path), small_corpus, tiny_ast, tiny_whisper, shared_root)
    # few recordings give small groups of equal age and sex
    flags |= {"pretrain.max_steps": 2, "pretrain.batch_size": 2}
    if Recipe.from_yaml(path).corpus.name == "sprsound":
        flags["corpus.data_dir"] = str(few_recordings)
    run = pretrain(Recipe.from_yaml(path, **(flags | {"output_dir": str(tmp_path / "pretrained")})))
    record = json.loads((run / "pretrain.json").read_text())
    assert record["history"][0]["loss_terms"]["ntxent"] > 0
    flags |= {"encoder.weights": str(run / "encoder"), "output_dir": str(tmp_path / "run")}
    flags.pop("encoder.config.channels", None)
    trained = json.loads((train(Recipe.from_yaml(path, **flags)) / "run.json").read_text())
    assert trained["pretraining"]["corpus_fingerprint"] == record["corpus"]["fingerprint"]


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_says_what_it_is_and_names_no_machine(path):
    values = yaml.safe_load(path.read_text())
    recipe = Recipe.from_yaml(path)
    assert values["description"] and recipe.name != "unnamed"
    for place in (*(one.data_dir for one in recipe.corpus.each), recipe.encoder.weights, recipe.output_dir):
        assert place is None or not Path(place).is_absolute()


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_begins_with_what_it_reproduces_and_the_published_figure(path):
    comment = " ".join(line.lstrip("# ") for line in path.read_text().split("\nname: ")[0].splitlines())
    assert path.read_text().startswith("# ") and len(comment) > 80
    assert any(character.isdigit() for character in comment) or "no published figure" in comment.lower()


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_can_be_planned_in_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study(path.stem).cells
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    assert study.cells and study.description and path.read_text().startswith("# ")
    assert not study.output_dir.is_absolute() and study.results.parts[:2] == ("docs", "results")
    assert study.published or study.results.is_file(), "a study without results is no evidence; run it"


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: p.stem)
def test_a_search_draws_what_its_recipe_can_have(path):
    """A search has the file name of its recipe in recipes/sprsound."""
    space, recipe = Space.read(path, "search"), Recipe.from_yaml(ROOT / "recipes" / "sprsound" / path.name)
    assert space.trials > 1 and path.read_text().startswith("# ")
    for key, setting in space.space.items():
        for value in setting.choices or [setting.low, setting.high]:
            assert recipe.with_overrides({key: value}) is not None


def test_the_page_on_recipes_names_every_folder_and_every_configuration():
    page = (ROOT / "recipes" / "README.md").read_text()
    folders = {p.name for p in (ROOT / "recipes").iterdir() if p.is_dir()} - {"accelerate"}
    assert all(f"]({name})" in page for name in folders)
    assert all(f"](accelerate/{p.name})" in page for p in (ROOT / "recipes" / "accelerate").glob("*.yaml"))
