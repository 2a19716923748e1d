"""Distillation: the labels of training cycles are mixed with the probabilities of a teacher.

Decisions: the teacher predicts each training cycle once, without augmentation, and its calibrated probabilities are a
part of the labels, so every task loss, every augmentation and a frozen encoder work as without it. Validation and test
keep their labels, and so do the groups of auxiliary losses and samplers. A teacher that was trained on held-out
patients is refused, because these choose the epoch and the thresholds.

Reference: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from laennec.cache import cache_root
from laennec.errors import InputError
from laennec.training.data.split_data import SplitData, make_extractor, make_split
from laennec.training.devices import training_device
from laennec.training.embeddings import EmbeddingCache, embed_cycles
from laennec.training.initial import InitialModel
from laennec.training.recipe import Recipe
from laennec.training.tables import head_logits


def soften_labels(recipe: Recipe, training: SplitData, splits: Mapping[str, Any]) -> InitialModel | None:
    """Mix the probabilities of the recipe's teacher into the training labels, in place.

    Returns:
        The teacher, None without one.

    Raises:
        InputError: The teacher lacks a label, takes other input, or was trained on held-out patients.
    """
    if recipe.loss.teacher is None:
        return None
    source, weight, targets = recipe.loss.teacher, recipe.loss.teacher_weight, training.targets
    teacher = InitialModel.load(source)
    model, extractor, known = teacher.model, teacher.extractor, teacher.model.config.label_names
    if not model.config.is_multi_label or not set(targets.names) <= set(known):
        raise InputError(
            f"loss.teacher {source}: predicts {', '.join(known)}, not each of {', '.join(targets.names)} by itself; "
            "choose another teacher"
        )
    if extractor.context_cycles or extractor.recording_filter != make_extractor(recipe.features).recording_filter:
        takes = "concatenated context" if extractor.context_cycles else "recordings filtered in another way"
        raise InputError(f"loss.teacher {source}: takes {takes}; choose another teacher")
    teacher.refuse_seen_patients(splits)
    data = make_split("train", training.table, recipe, extractor, targets.names, train=False)  # at the teacher's rate
    model.to(training_device())  # type: ignore[arg-type]
    cache = EmbeddingCache(cache_root(), model, extractor)
    logits = head_logits(model.head, embed_cycles(data.dataset, data.keys(), cache))
    if not np.isfinite(logits).all():
        raise InputError(
            f"loss.teacher {source}: outputs NaN or infinity; check its weights, or choose another teacher"
        )
    probabilities = model.probabilities(torch.from_numpy(logits).to(training_device())).cpu().numpy()
    soft = probabilities[:, [known.index(name) for name in targets.names]]  # (cycles, labels)
    targets.labels = ((1 - weight) * targets.labels + weight * soft).astype(np.float32)
    return teacher
