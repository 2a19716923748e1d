"""Recipes of every kind on the small corpus, for tests of training that must pass with all of them."""

from pathlib import Path
from typing import Any

NOISE = {"noise": {"probability": 0.5}}
DRAWS = {
    **NOISE,
    "shift": {"probability": 0.5},
    "spec": {"time_masks": 1, "max_time_width": 4, "freq_masks": 1, "max_freq_width": 4},
}
MIXUP = {"mix": {"method": "mixup", "domain": "features"}}
FOUR = {"target": {"problem_type": "single_label", "column": "label"}}
PROJECTION = {"head": {"projection_dim": 8, "dropout": 0.2}}


def ways(ast: Path) -> dict[str, dict[str, Any]]:
    """Settings of each kind of recipe, which replace those of the tiny recipe.

    Args:
        ast: A folder with a tiny AST.
    """
    on_ast = {"features": {"preset": "ast"}}

    def an_ast(**how: Any) -> dict[str, Any]:
        return {**on_ast, "encoder": {"type": "ast", "weights": str(ast), **how}}

    return {
        "draws and mixing": {"augment": {**DRAWS, **MIXUP}},
        "mobilenet": {
            "features": {"preset": "efficientat"},
            "encoder": {"type": "mobilenet", "config": {"width_mult": 0.1}},
            "augment": {**DRAWS, "gain": {"probability": 0.5}},
            "train": {"moving_average": 0.5},
        },
        "ast": {**an_ast(), "augment": DRAWS, "head": {"dropout": 0.3, "threshold_rule": "youden"}},
        "lora": {
            **an_ast(trainable="lora", lora={"rank": 2, "dropout": 0.1}),
            "augment": {**NOISE, "mix": {"method": "patch_mix", "domain": "tokens"}},
        },
        "last layers": {**an_ast(trainable="last_n", train_last_layers=1), "train": {"gradient_checkpointing": True}},
        "frozen": {
            "encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "trainable": "frozen"},
            "augment": {**NOISE, "copies": 2, "concatenate_probability": 0.5},
            "head": {"hidden_dim": 4, "dropout": 0.3, "threshold_rule": "f1", "calibration": "platt"},
        },
        "views, pairs and a sampler": {
            "augment": DRAWS,
            "loss": {
                "task": "ce",
                "task_views": "all",
                "auxiliary": {
                    "supcon": {"weight": 0.5, "views": 2},
                    "age_sex": {"loss": "supcon", "labels": "age_band+sex", "missing": "own_group"},
                    "stethoscope": {"loss": "supcon", "labels": "device", "detach_other_views": True},
                },
            },
            "sampler": {"name": "classes_times_samples", "classes": 2, "samples": 4},
            **FOUR,
            **PROJECTION,
        },
        "alternation": {
            "schedule": {"name": "alternating", "pretrain_epochs": 1},
            "loss": {"auxiliary": {"add": {"weight": 0.2}}},
            "augment": NOISE,
        },
        "balance and warm-up": {
            "loss": {
                "auxiliary": {"add": {"weight": 0.2, "warm_up": 0.5}, "supcon": {"views": 1, "on": "projection"}},
                "balance": 0.5,
            },
            "sampler": {"name": "device_balanced", "samples": 3},
            "augment": NOISE,
            **PROJECTION,
        },
        "two stages": {
            "schedule": {"name": "two_stage", "pretrain_epochs": 2},
            "loss": {"task": "ce", "class_weights": "balanced", "auxiliary": {"supcon": {"views": 1}}},
            "sampler": {"name": "patient_balanced", "patients": 4, "samples": 2},
            "augment": NOISE,
            **FOUR,
            **PROJECTION,
        },
        "tuplets": {
            "loss": {"task": "ce", "auxiliary": {"tuplet": {"weight": 0.1}}},
            "sampler": {"name": "anchor_positive", "negatives": 4},
            "augment": NOISE,
            **FOUR,
        },
        "devices": {
            "loss": {"auxiliary": {"device_adversarial": {"weight": 0.1, "labels": "patient"}}},
            "sampler": {"name": "metadata_matched", "columns": ["sex"], "missing": "own_group"},
            "augment": {**NOISE, "concatenate_probability": 0.5},
        },
        "clusters of groups": {
            "features": {"preset": "song2021", "length": "repeat", "duration_s": 2.0},
            "encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "group_frames": 20},
            "loss": {"auxiliary": {"clustering": {"clusters": 3, "dim": 4}, "cluster_similarity": {"dim": 5}}},
            "augment": {"mix": {"method": "group_mix", "domain": "features"}},
            "sampler": {"name": "length_bucketed"},
        },
        "contrast of mixtures": {
            **an_ast(),
            "features": {"preset": "ast", "length": "repeat", "duration_s": 2.0},
            "loss": {"task": "ce", "auxiliary": {"patch_mix": {"weight": 0.5, "on": "projection"}}},
            "augment": {"mix": {"method": "patch_mix"}},
            **FOUR,
            **PROJECTION,
        },
        "sharp steps": {"train": {"sam_rho": 0.05, "epoch_cosine": True, "optimizer": "adam"}, "augment": NOISE},
        "accumulated, weighted, impatient": {
            "loss": {"task": "focal", "class_weights": "balanced"},
            "train": {"gradient_accumulation_steps": 2, "patience": 1, "epochs": 4, "learning_rate": 0.05},
            "augment": NOISE,
        },
        "context and bf16": {
            "features": {"preset": "song2021", "length": "natural", "context_cycles": 1},
            "train": {"bf16": True},
            "augment": NOISE,
        },
    }


def settings_of(tiny_recipe: dict[str, Any], way: dict[str, Any], **train: Any) -> dict[str, Any]:
    """The tiny recipe with the settings of one kind of recipe, and further training settings."""
    return {**tiny_recipe, **way, "train": {**tiny_recipe["train"], **way.get("train", {}), **train}}
