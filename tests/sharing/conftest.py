"""A finished run on a real, frozen encoder."""

import pytest


@pytest.fixture(scope="session")
def released(shared_root):
    """A released checkpoint of EfficientAT's smallest MobileNet."""
    return shared_root / "weights" / "mn04_as_mAP_432.pt"


@pytest.fixture(scope="session")
def frozen_run(tiny_recipe, released, tmp_path_factory):
    """A head trained on the embeddings of the released encoder."""
    from laennec.training.config import recipe_from_dict
    from laennec.training.experiment import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = recipe_from_dict(
            tiny_recipe
            | {
                "features": {"preset": "efficientat", "filter_kind": "lowpass", "filter_cutoff_hz": 1500},
                "encoder": {"type": "mobilenet", "weights": str(released), "frozen": True},
                "head": {"threshold_rule": "youden"},
            }
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "frozen")
        return train(recipe)
