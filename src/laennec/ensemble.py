"""Ensembles: several models of one kind as one model.

Decisions: the ensemble predicts the mean of its members' calibrated log-odds (for single-label models: of their
log-probabilities, up to a constant that all classes share), so that the scale of a member's logits does not weight it.
The mean of heads is itself a head on the concatenated embeddings of the members, with their hidden layers concatenated.
Where the members' encoders are the same, as frozen ones are, one of them is kept. The members' own heads are kept too,
to find the spans on which they disagree.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.configuration import LaennecConfig
from laennec.encoders import EnsembleConfig, EnsembleEncoder, encoder_digest
from laennec.errors import InputError
from laennec.head import Head
from laennec.modeling import LaennecForAudioClassification

# setting that members must share -> its key in a recipe
_SHARED = {
    "label_names": "labels", "problem_type": "target.problem_type", "pooling": "head.pooling",
    "concatenated_context": "features.context_cycles", "features_fingerprint": "features",
    "head_hidden_dim": "head.hidden_dim", "span": "corpus.level",
}  # fmt: skip


def ensemble_models(models: Sequence[LaennecForAudioClassification]) -> LaennecForAudioClassification:
    """One model that predicts the mean of several; it is not calibrated and has no thresholds yet.

    Args:
        models: Two or more that differ in their weights alone. Adapters are merged into their encoders.

    Returns:
        A model in evaluation mode with weights of its own. Its `logits` are the mean of the members' calibrated
        logits; those of auxiliary tasks are the mean of the members' logits.

    Raises:
        InputError: There are less than two, they differ in more than weights, or their heads normalise an embedding.
    """
    if len(models) < 2:
        raise InputError(f"an ensemble needs two models or more, not {len(models)}")
    first = models[0]
    for model in models:
        if model.config.lora:
            model.merge_adapters()
        if model.config.head_layer_norm:
            raise InputError("head.layer_norm is set, which members of an ensemble cannot have; set it to false")
        if model.config.head_relu:
            raise InputError("head.relu is set, which members of an ensemble cannot have; set it to false")
        for name, setting in _SHARED.items():
            if getattr(model.config, name) != getattr(first.config, name):
                raise InputError(f"the models differ in {setting}; members may differ in their weights alone")
        if _tasks(model.config) != _tasks(first.config):
            raise InputError("the models differ in tasks; members may differ in their weights alone")
        if _sizes(model.encoder) != _sizes(first.encoder):
            raise InputError(
                "the models' encoders differ in kind, size, layers or groups of frames; members may differ in their "
                "weights alone"
            )
    shared = len({encoder_digest(model.encoder) for model in models}) == 1
    members = [copy.deepcopy(model.encoder).cpu() for model in models[: 1 if shared else None]]
    config = copy.deepcopy(first.config)
    encoder = members[0]
    if not shared:
        encoder = EnsembleEncoder(EnsembleConfig(encoder_config=encoder.config, members=len(members)), members)
        config.frozen_encoder, config.encoder_digest = False, None
    if config.encoder_digest is None:  # no file holds this encoder
        config.base_model_name_or_path = config.base_model_revision = None
    config.encoder_config = encoder.config
    config.trained_layers, config.projection_dim = None, 0
    config.forget_fits()
    config.tasks = _tasks(first.config)
    config.head_hidden_dim, config.head_members = first.config.head_hidden_dim * len(models), len(models)
    ensemble = LaennecForAudioClassification(config, encoder)
    parts = 2 if config.concatenated_context else 1
    _mean([model.head for model in models], [calibration(model.config) for model in models], ensemble.head, parts)
    for name in ensemble.tasks:
        into: Any = ensemble.tasks[name]
        _mean([model.tasks[name] for model in models], [None] * len(models), into, parts)
    return ensemble.eval()


def member_logits(model: LaennecForAudioClassification, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of each member of an ensemble: (spans, dim) -> (members, spans, labels)."""
    with torch.inference_mode():
        given = torch.from_numpy(embeddings).to(model.head.mean.device)
        logits: NDArray[np.float32] = model.head.by_member(given).float().cpu().numpy()
    return logits


def forget_weights(model: Any, selection_set: str | None) -> None:
    """Reset what holds for a model's present weights alone, before they are trained: fits, source, members."""
    model.config.forget_fits()
    model.config.selection_set = selection_set
    model.name_or_path = model.config.name_or_path = ""
    if model.head.members:
        model.config.head_members = model.head.members = 0
        del model.head.member_weight, model.head.member_bias


def _tasks(config: LaennecConfig) -> dict[str, Any]:
    """Auxiliary tasks without their fitted values."""
    return {
        name: {key: value for key, value in task.items() if key not in ("logit_adjustment", "smoothing")}
        for name, task in config.tasks.items()
    }


def _sizes(encoder: Any) -> dict[str, Any]:
    made = [type(encoder).__name__, getattr(encoder.config, "geometry", None)]
    return {"": made} | {name: value.shape for name, value in encoder.state_dict().items()}


def calibration(config: LaennecConfig) -> tuple[Tensor, Tensor]:
    """Temperatures and intercepts of the labels, (labels,) float64 each."""
    settings = (config.per_label(name).values() for name in ("temperatures", "intercepts"))
    divisors, offsets = (torch.tensor([*values], dtype=torch.float64) for values in settings)
    return divisors, offsets


def _mean(heads: Sequence[Any], calibrations: Sequence[tuple[Tensor, Tensor] | None], into: Head, parts: int) -> None:
    """Set the weights of a head to the mean of others; an embedding has `parts` vectors of the encoder."""
    count, hidden = len(heads), isinstance(into.hidden, nn.Sequential)
    inputs, biases, weights, offsets = [], [], [], []
    for number, (head, calibration) in enumerate(zip(heads, calibrations, strict=True)):
        entrance, last = (head.hidden[0] if hidden else head.classifier), head.classifier
        # the first layer with the standardisation folded in
        weight = entrance.weight.double() / head.spread.double()
        bias = entrance.bias.double() - weight @ head.mean.double()
        slope, offset = (last.weight.double(), last.bias.double()) if hidden else (weight, bias)
        if calibration is not None:
            slope, offset = slope / calibration[0][:, None], offset / calibration[0] + calibration[1]
        inputs.append(_placed(weight, number, count, parts, into.mean.numel()))
        biases.append(bias)
        weights.append(_placed(slope, number, count, 1 if hidden else parts, into.classifier.in_features))
        offsets.append(offset)
    with torch.no_grad():
        if isinstance(into.hidden, nn.Sequential):
            layer: Any = into.hidden[0]
            layer.weight.copy_(torch.cat(inputs))
            layer.bias.copy_(torch.cat(biases))
        own, shifts = torch.stack(weights), torch.stack(offsets)
        into.classifier.weight.copy_(own.mean(0))
        into.classifier.bias.copy_(shifts.mean(0))
        if into.members:
            into.member_weight.copy_(own)
            into.member_bias.copy_(shifts)


def _placed(weight: Tensor, number: int, count: int, parts: int, width: int) -> Tensor:
    """A member's weight with zeros for the other members: (out, parts * dim) -> (out, width)."""
    if weight.shape[1] == width:  # the members share their encoder
        return weight
    whole = weight.new_zeros(len(weight), parts, count, weight.shape[1] // parts)
    whole[:, :, number] = weight.unflatten(1, (parts, -1))
    return whole.flatten(1)
