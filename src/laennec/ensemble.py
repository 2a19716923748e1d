"""Stage 6, model: several models of one kind as one.

Decided here: the joined model answers the mean of its members' calibrated log-odds (of one class of several: of their
log-probabilities, but for a number that all classes share), so that no member shouts the others down. That mean of
linear heads is itself a linear head on the members' embeddings side by side. Where the members' encoders are the same,
as frozen ones are, one of them is kept and the heads' mean is a head like theirs.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from laennec.configuration import LaennecConfig
from laennec.encoders import EnsembleConfig, EnsembleEncoder, encoder_digest
from laennec.errors import InputError
from laennec.head import Head
from laennec.model import LaennecForAudioClassification

# what members must share, and what it is called in a recipe
_SHARED = {
    "label_names": "labels", "problem_type": "target.problem_type", "pooling": "head.pooling",
    "joins_context": "features.context_cycles", "features_fingerprint": "features",
}  # fmt: skip


def join_models(models: Sequence[LaennecForAudioClassification]) -> LaennecForAudioClassification:
    """One model that answers the mean of several; it is not calibrated and has no thresholds yet.

    Args:
        models: Two or more that differ in their weights alone. Adapters are merged into their encoders.

    Returns:
        A model in evaluation mode with weights of its own. Its `logits` are the mean of the members' calibrated
        logits; those of further tasks are the mean of the members' logits.

    Raises:
        InputError: There are less than two, they differ in more than weights, or their heads are not linear.
    """
    if len(models) < 2:
        raise InputError(f"an ensemble needs two models or more, not {len(models)}")
    first = models[0]
    for model in models:
        if model.config.lora:
            model.merge_adapters()
        if model.config.head_hidden_dim or model.config.head_layer_norm:
            what = "hidden_dim" if model.config.head_hidden_dim else "layer_norm"
            raise InputError(f"head.{what} is set: the mean of such heads is no head; only linear heads can be joined")
        for name, setting in _SHARED.items():
            if getattr(model.config, name) != getattr(first.config, name):
                raise InputError(f"the models differ in {setting}; only what differs in its weights can be joined")
        if _questions(model.config) != _questions(first.config):
            raise InputError("the models differ in tasks; only what differs in its weights can be joined")
        if _sizes(model.encoder) != _sizes(first.encoder):
            raise InputError("the models' encoders differ in kind or size; only what differs in weights can be joined")
    shared = len({encoder_digest(model.encoder) for model in models}) == 1
    members = [copy.deepcopy(model.encoder).cpu() for model in models[: 1 if shared else None]]
    config = copy.deepcopy(first.config)
    encoder = members[0]
    if not shared:
        encoder = EnsembleEncoder(EnsembleConfig(encoder.config, len(members)), members)
        config.frozen_encoder, config.encoder_digest = False, None
    config.encoder_config = encoder.config
    config.trained_layers, config.projection_dim, config.operating_point = None, 0, {}
    config.temperatures, config.intercepts, config.thresholds = {}, {}, {}
    config.tasks = _questions(first.config)
    joined = LaennecForAudioClassification(config, encoder)
    parts = 2 if config.joins_context else 1
    _join([model.head for model in models], [_calibration(model.config) for model in models], joined.head, parts)
    for name in joined.tasks:
        into: Any = joined.tasks[name]
        _join([model.tasks[name] for model in models], [None] * len(models), into, parts)
    return joined.eval()


def _questions(config: LaennecConfig) -> dict[str, Any]:
    """Further tasks without what was fitted for them."""
    return {
        name: {key: value for key, value in task.items() if key not in ("leanings", "smoothing")}
        for name, task in config.tasks.items()
    }


def _sizes(encoder: Any) -> dict[str, Any]:
    return {"": type(encoder).__name__} | {name: value.shape for name, value in encoder.state_dict().items()}


def _calibration(config: LaennecConfig) -> tuple[Tensor, Tensor]:
    """Divisors and intercepts of the labels, (labels,) each."""
    names = config.label_names
    divisors = torch.tensor([config.temperatures.get(name, 1.0) for name in names], dtype=torch.float64)
    return divisors, torch.tensor([config.intercepts.get(name, 0.0) for name in names], dtype=torch.float64)


def _join(heads: Sequence[Any], calibrations: Sequence[tuple[Tensor, Tensor] | None], into: Head, parts: int) -> None:
    """Make a head the mean of others; `parts` vectors of an encoder make up an embedding."""
    weights, biases = [], []
    for head, calibration in zip(heads, calibrations, strict=True):
        # what the head does to an embedding that is not standardised
        weight = head.classifier.weight.double() / head.spread.double()
        bias = head.classifier.bias.double() - weight @ head.mean.double()
        if calibration is not None:
            weight, bias = weight / calibration[0][:, None], bias / calibration[0] + calibration[1]
        weights.append(weight.unflatten(1, (parts, -1)))
        biases.append(bias)
    own_width = weights[0].shape[1] * weights[0].shape[2]
    with torch.no_grad():
        if into.classifier.in_features == own_width:  # the members share their encoder
            weight = torch.stack(weights).mean(0)
        else:  # (labels, parts, dim) each -> (labels, parts, members, dim)
            weight = torch.stack(weights, 2) / len(heads)
        into.classifier.weight.copy_(weight.flatten(1))
        into.classifier.bias.copy_(torch.stack(biases).mean(0))
