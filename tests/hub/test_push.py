"""Models on the Hub, both ways, through a Hub that runs here."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from hub_process import HubUser

from hub_server import OTHER_TOKEN
from laennec.cache import cache_root
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.hub.upload import check_repo_name
from laennec.inference.batch.run import Predictor

pytestmark = pytest.mark.usefixtures("unpainted")

FULL = {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}

# what somebody else does, who has never seen the run: the model and its front end by the Auto classes, and the pipeline
ELSEWHERE = """
import json, sys
import numpy as np, soundfile
import laennec.modeling
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
repo, path = sys.argv[1:]
model = AutoModelForAudioClassification.from_pretrained(repo).eval()
extractor = AutoFeatureExtractor.from_pretrained(repo)
pipe = pipeline("audio-classification", model=repo, device="cpu")
samples, rate = soundfile.read(path, dtype="float32")
content = open(path, "rb").read()
ways = [path, content, {"array": samples, "sampling_rate": rate}, {"raw": samples, "sampling_rate": rate},
        {"bytes": content, "path": None}]
print(json.dumps({
    "kind": type(pipe).__name__, "thresholds": model.config.thresholds, "rate": extractor.sampling_rate,
    "answers": [pipe(way) for way in ways], "batch": pipe([path, path], batch_size=2),
    "first": pipe({"array": samples, "sampling_rate": rate}, top_k=1),
}))
"""

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINS = """
import tempfile, laennec
corpus = laennec.load_corpus("synthetic", patients=10)
model = laennec.LaennecForAudioClassification.from_encoder(None, type="cnn", encoder_config={"channels": [4, 8]})
args = laennec.LaennecTrainingArguments(tempfile.mkdtemp(), max_steps=2, hub_model_id="tester/mine", report_to="none")
features = laennec.LaennecFeatureExtractor("song2021", length="natural")
trainer = laennec.LaennecTrainer(model, args, train_dataset=corpus["train"], processing_class=features)
trainer.train()
trainer.push_to_hub()
"""


def here(run, breath):
    """The run's own answer for the whole of a sound, as one cycle."""
    whole = run.parent / "whole.txt"
    whole.write_text(f"0\t{soundfile.info(breath).duration}\t0\t0\n")
    return Predictor(*load_model(run))(breath, whole)


def test_a_pushed_run_predicts_the_same_elsewhere(pushed_run, breath, hub, user):
    (pushed_run / "notes-about-patients.txt").write_text("stays here")
    said = user.types("push", pushed_run, "tester/lungs").done()
    assert f"pushed model: {hub.endpoint}/tester/lungs (" in said.out and "private" in said.out
    held = hub.files("tester/lungs")
    assert set(held) == FULL and hub.repos["model", "tester/lungs"].private
    for path in FULL - {".gitattributes"}:
        assert held[path] == (pushed_run / "export-full" / path).read_bytes()
    there = user.runs(ELSEWHERE, "tester/lungs", breath).json()
    answer = here(pushed_run, breath)
    assert there["kind"] == "LaennecPipeline"
    assert there["thresholds"] == load_model(pushed_run)[0].config.thresholds
    for said in (*there["answers"], *there["batch"]):
        assert [row["score"] for row in said] == sorted((row["score"] for row in said), reverse=True)
        for row in said:
            place = answer.labels.index(row["label"])
            assert abs(row["score"] - float(answer.probabilities[0, place])) < 1e-6
            assert row["present"] == bool(answer.present[0][place])
    assert there["first"] == there["answers"][0][:1]


def test_a_card_with_open_questions_is_not_pushed(frozen_run, pushed_run, hub, user, tmp_path):
    run = shutil.copytree(frozen_run, tmp_path / "run")
    user.types("push", run, "tester/open").refused("card.licence", "card.funding", "--answers FILE")
    assert ("model", "tester/open") not in hub.repos
    user.types("push", pushed_run, "tester/licensed", "--license", "cc-by-4.0").done()
    card = hub.files("tester/licensed")["README.md"].decode()
    assert "license: cc-by-4.0" in card and "tester/licensed" in card
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(pushed_run / "export-full" / name, tmp_path / "bare")
    user.types("push", tmp_path / "bare", "tester/open").refused("no readable model card")


def test_the_same_push_again_sends_nothing_and_opens_when_told_to(pushed_run, hub, user):
    user.types("push", pushed_run, "tester/twice").done()
    said = user.types("push", pushed_run, "tester/twice", "--public").done()
    assert "public" in said.out and not hub.repos["model", "tester/twice"].private
    assert len(hub.asked("^PUT /objects/model/tester%2Ftwice")) == 1
    assert len(hub.repos["model", "tester/twice"].commits) == 2  # the first is the empty repository's


def test_a_head_pulls_its_base_from_the_hub_and_takes_no_other(pushed_run, released, breath, hub, user, tmp_path):
    load_encoder(released).save_pretrained(tmp_path / "base")
    load_encoder(None, type="mobilenet").save_pretrained(tmp_path / "other")
    base = hub.add("somebody/mn04", tmp_path / "base")
    commit = base.branches["main"]
    line = ["push", pushed_run, "tester/head", "--format", "head"]
    user.types(*line).refused(released, "--base-name")
    user.types(*line, "--base-name", "somebody/mn04", "--base-revision", commit).done()
    held = hub.files("tester/head")
    assert set(held) == FULL and len(held["model.safetensors"]) < 20_000
    config = json.loads(held["config.json"])
    assert config["base_model_name_or_path"] == "somebody/mn04" and config["base_model_revision"] == commit
    assert len(config["encoder_digest"]) == 64
    # the owner replaces the weights: the revision still gives those of training
    files = {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()}
    base.commit("main", "other weights", files, frozenset({"model.safetensors"}))
    there = user.runs(ELSEWHERE, "tester/head", breath).json()
    assert abs(there["first"][0]["score"] - float(here(pushed_run, breath).probabilities[0].max())) < 1e-6
    # one that names a branch is refused by then, where no base of the head's digest is known
    shutil.rmtree(cache_root() / "bases")
    hub.add("tester/stray", held | {"config.json": json.dumps(config | {"base_model_revision": "main"}).encode()})
    stray = user.types("predict", "tester/stray", breath, "--out", tmp_path / "p")
    stray.refused("not the encoder this head was trained on", "somebody/mn04", "at revision main")


def test_what_is_made_around_an_encoder_of_the_hub_names_its_commit(hub, user, tmp_path):
    load_encoder(None, type="cnn", channels=[4, 8]).save_pretrained(tmp_path / "base")
    base = hub.add("somebody/cnn", tmp_path / "base")
    made = "import json, laennec; kind = laennec.LaennecForAudioClassification; made = kind.from_encoder('somebody/cnn'"
    for more in ("", ", layers=[1]"):
        script = f"{made}{more}); print(json.dumps(made.config.base_model_revision))"
        assert user.runs(script).json() == base.branches["main"]


def test_wrong_use_is_one_line(pushed_run, breath, hub, user, tmp_path):
    bare = shutil.copytree(pushed_run / "model", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    hub.add("tester/bare", bare)
    out = ["--out", tmp_path / "p"]
    user.types("push", pushed_run, "lungs").refused("lungs", "OWNER/lungs")
    user.types("push", pushed_run, "tester/lung sounds").refused("tester/lung sounds", "not a valid name")
    user.types("push", pushed_run, "tester/x", "--format", "onyx").refused("unknown format 'onyx'", "stock")
    user.types("push", pushed_run, "tester/x", "--format", "space").refused("--format space", "laennec export")
    user.types("push", tmp_path / "nowhere", "tester/x").refused("nowhere", "no such folder")
    user.types("push", bare, "tester/x").refused("bare", "preprocessor_config.json")
    user.types("push", bare, "tester/x", "--format", "full").refused("bare", "--format")
    user.types("predict", "tester/nothing", breath, *out).refused("tester/nothing", "no such repository")
    user.types("predict", "tester/bare", breath, *out).refused("tester/bare", "front end")
    assert ("model", "tester/x") not in hub.repos


def test_who_may_not_is_told_so_in_one_line(pushed_run, breath, hub, user, tmp_path):
    hub.add("tester/secret", pushed_run / "model", private=True)
    push, read = ("push", pushed_run, "tester/y"), ("predict", "tester/secret", breath, "--out", tmp_path / "p")
    user.types("push", pushed_run, "somebody/lungs").refused("somebody/lungs", "write access")
    user.types(*push, token=None).refused("tester/y", "no token", "hf auth login", "HF_TOKEN")
    user.types(*read, token=None).refused("tester/secret", "private", "HF_TOKEN")
    user.types(*push, token="hf_wrong").refused("tester/y", "token is wrong")
    user.types(*read, token="hf_wrong").refused("tester/secret", "token is wrong")
    user.types(*push, token=OTHER_TOKEN).refused("tester/y", "write access")
    user.types(*read, token=OTHER_TOKEN).refused("tester/secret", "private")
    assert ("model", "tester/y") not in hub.repos
    assert user.types(*read).done()


def test_without_a_network_a_folder_does(pushed_run, breath, hub, tmp_path):
    with HubUser(hub, tmp_path, HF_HUB_OFFLINE="1") as cut_off:
        out = ["--out", tmp_path / "p"]
        cut_off.types("push", pushed_run, "tester/z").refused("tester/z", "HF_HUB_OFFLINE")
        cut_off.types("predict", "tester/z", breath, *out).refused("tester/z", "local folder")
        cut_off.types("predict", pushed_run, breath, *out).done()


PUSHED_FROM_PYTHON = """
import sys
import laennec.modeling
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
model = AutoModelForAudioClassification.from_pretrained(sys.argv[1])
print(model.push_to_hub("tester/model"))
AutoFeatureExtractor.from_pretrained(sys.argv[1]).push_to_hub("tester/extractor")
bare = type(model)(model.config)
try:
    bare.name_or_path = ""
    bare.push_to_hub("tester/bare2")
except ValueError as error:
    print(error)
"""


def test_models_and_extractors_push_themselves(pushed_run, hub, user, tmp_path):
    folder = shutil.copytree(pushed_run / "model", tmp_path / "elsewhere")
    (folder / "secret.txt").write_text("stays here")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\nlicense: mit\ntags: [audio]\n---\nkept\n")
    said = user.runs(PUSHED_FROM_PYTHON, folder).done()
    assert f"{hub.endpoint}/tester/model\n" in said.out and "pass extractor=" in said.out
    held = hub.files("tester/model")
    assert set(held) == FULL and b"kept" in held["README.md"]
    # the base of this head lies in a file, so the weights went along
    assert len(held["model.safetensors"]) > 500_000 and not json.loads(held["config.json"])["head_only"]
    assert json.loads(held["preprocessor_config.json"]) == json.loads((folder / "preprocessor_config.json").read_text())
    assert set(hub.files("tester/extractor")) >= {"preprocessor_config.json"}
    assert all(hub.repos["model", f"tester/{name}"].private for name in ("model", "extractor"))


def test_a_branch_is_pushed_to_and_stale_files_of_ours_go(pushed_run, hub, user):
    repo = hub.add("tester/old", {"adapter/adapter_config.json": b"{}", "examples.md": b"theirs"})
    said = user.types("push", pushed_run, "tester/old", "--revision", "next").done()
    assert f"{hub.endpoint}/tester/old/tree/next" in said.out
    assert set(hub.files("tester/old", "next")) == (FULL - {".gitattributes"}) | {"examples.md"}
    assert set(repo.at("main").files) == {"adapter/adapter_config.json", "examples.md"}
    assert not repo.private  # one that was open stays open


def test_an_exported_folder_is_pushed_as_it_is(pushed_run, hub, user, tmp_path):
    user.types("export", pushed_run, "--out", tmp_path / "mine").done()
    (tmp_path / "mine" / "thesis.txt").write_text("stays here")
    (tmp_path / "mine" / "README.md").write_text(
        "---\nlibrary_name: transformers\nlicense: mit\ntags: [audio]\n---\nmine\n"
    )
    said = user.types("push", tmp_path / "mine", "tester/folder").done()
    assert set(hub.files("tester/folder")) == FULL and "thesis.txt" in said.err
    user.types("push", tmp_path / "mine", "tester/folder", "--format", "head").refused("--format")


NAMES = ("a/b/c", "a/", "/b", "a/b.git", "a/-b", "a/b--c", "a/b..c", "a/" + "b" * 97, "ä/b", "")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="OWNER/"):
        check_repo_name(name)


def test_names_pass():
    for name in ("a/b", "my-org/lung_sounds.v2", "A1/x"):
        check_repo_name(name)


def test_a_trainer_pushes_and_the_example_predicts_with_what_it_pushed(breath, hub, user):
    user.runs(TRAINS).done()
    held = set(hub.files("tester/mine"))
    assert held >= FULL and not any("checkpoint" in name or "training_args" in name for name in held)
    said = user.runs((EXAMPLES / "hub_model.py").read_text(), "tester/mine", breath).done().out.splitlines()
    assert {line.split()[1] for line in said} == {"crackle", "wheeze"} and str(breath) in said[0]
