"""A finished run on a real, frozen encoder."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from hub_process import HubUser

from hub_server import HubServer


@pytest.fixture(scope="session")
def released(shared_root):
    """A released checkpoint of EfficientAT's smallest MobileNet."""
    return shared_root / "weights" / "mn04_as_mAP_432.pt"


@pytest.fixture(scope="session")
def frozen_run(tiny_recipe, released, tmp_path_factory):
    """A head trained on the embeddings of the released encoder."""
    from laennec.training.recipe import Recipe
    from laennec.training.run import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(
            **(
                tiny_recipe
                | {
                    "features": {"preset": "efficientat", "filter_kind": "lowpass", "filter_cutoff_hz": 1500},
                    "encoder": {"type": "mobilenet", "weights": str(released), "trainable": "frozen"},
                    "head": {"threshold_rule": "youden"},
                }
            )
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "frozen")
        return train(recipe)


@pytest.fixture(scope="module")
def pushed_run(frozen_run, tmp_path_factory):
    """A run on a real frozen encoder, alone in its folder, scored, its card without open questions."""
    from laennec.evaluation.evaluate import score

    run = shutil.copytree(frozen_run, tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        score(run, draws=20)
    record = json.loads((run / "run.json").read_text())
    texts = ("authors", "contact", "intended_use", "users", "health_inequalities", "ethics", "funding", "conflicts")
    answers = dict.fromkeys((*texts, "registration", "patient_involvement", "next_steps"), "none")
    (run / "run.json").write_text(json.dumps(record | {"card": answers | {"licence": "mit"}}))
    return run


@pytest.fixture(scope="module")
def hub():
    """A Hub that runs here."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def user(hub, tmp_path_factory):
    """Someone who uses it."""
    with HubUser(hub, tmp_path_factory.mktemp("home")) as someone:
        yield someone


@pytest.fixture(scope="module")
def breath(tmp_path_factory):
    """Three seconds at a rate that is nobody's."""
    path = tmp_path_factory.mktemp("sound") / "breath.wav"
    draw = np.random.default_rng(1)
    soundfile.write(path, 0.1 * draw.standard_normal(3 * 11025), 11025, subtype="PCM_16")
    return path
