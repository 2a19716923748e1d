"""Export a run as transformers' own ASTForAudioClassification, which loads without laennec.

Decisions: a run is exported only if the stock classes give its logits: a nearly equal model would be another model
under the same name. Stock AST pads with frames of log-mel 0 without a mask and classifies after a layer norm, which
needs `features.length: zero_frames` and `head.layer_norm: true`. Standardisation and calibration are folded into the
last layer, so the sigmoid (or softmax) of a stock logit is the calibrated probability.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, AutoModelForAudioClassification

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.presets import PRESETS
from laennec.encoders.ast import AstEncoder
from laennec.ensemble import calibration
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification

# stock computes its features in float64 with numpy, or with torchaudio
TOLERANCE = 1e-5
_FREE = ("mean", "std", "num_mel_bins")
_NOT_STOCK = ("time_positions", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype")


def differences(model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> list[str]:
    """Properties of a model that stock AST does not have, each with the recipe setting that avoids it."""
    config = model.config
    wrong = []
    if not isinstance(model.encoder, AstEncoder):
        wrong.append(f"its encoder is {type(model.encoder).__name__} (encoder.type: ast, encoder.group_frames: 0)")
    front, stock = asdict(extractor.front), asdict(PRESETS["ast"])
    if other := [name for name in stock if name not in _FREE and front[name] != stock[name]]:
        wrong.append(f"its features differ in {other[0]} (features.preset: ast)")
    if extractor.length != "zero_frames":
        wrong.append(
            f"its cycles have the length rule {extractor.length!r} (features.length: zero_frames, duration_s: 10.24)"
        )
    if extractor.recording_filter:
        wrong.append("its recordings are filtered (features.filter_kind: null)")
    if config.concatenated_context:
        wrong.append("it uses concatenated context (features.context_cycles: 0)")
    if config.pooling != "encoder":
        wrong.append("it pools by the masked mean (head.pooling: encoder)")
    if not config.head_layer_norm:
        wrong.append("its head has no layer norm (head.layer_norm: true)")
    if config.head_relu:
        wrong.append("its head has a ReLU (head.relu: false)")
    if config.head_hidden_dim:
        wrong.append("its head has a hidden layer (head.hidden_dim: 0)")
    return wrong


def check_stock(run: str | Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> None:
    """Raise for a run that stock AST cannot express."""
    if wrong := differences(model, extractor):
        raise InputError(f"{run}: no stock export: {'; '.join(wrong)}; train with these settings, or use --format full")


def to_stock(
    model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The same model in transformers' own classes; it must have no `differences`, and merged adapters."""
    frames = extractor.frames(extractor.front.min_samples)
    front = extractor.front
    encoder, ours = model.encoder, model.config
    values = {k: v for k, v in encoder.config.to_dict().items() if k not in _NOT_STOCK and not k.startswith("_")}
    config = ASTConfig(
        **values
        | {
            "max_length": frames,
            "num_mel_bins": front.num_mel_bins,
            "problem_type": ours.problem_type,
            "id2label": dict(ours.id2label),
            "label2id": dict(ours.label2id),
            "thresholds": ours.per_label("thresholds"),
            **({"second_thresholds": ours.second_thresholds} if ours.second_thresholds else {}),
        }
    )
    stock = AutoModelForAudioClassification.from_config(config).eval()
    state = dict(encoder.audio_spectrogram_transformer.state_dict())
    state["embeddings.position_embeddings"] = _positions(encoder, frames, front.num_mel_bins)
    stock.audio_spectrogram_transformer.load_state_dict(state)
    head = model.head
    with torch.no_grad():
        divisor, offset = calibration(model.config)
        weight = head.classifier.weight.double() / head.spread.double()
        bias = head.classifier.bias.double() - weight @ head.mean.double()
        stock.classifier.dense.weight.copy_(weight / divisor[:, None])
        stock.classifier.dense.bias.copy_(bias / divisor + offset)
        stock.classifier.layernorm.load_state_dict(head.norm.state_dict())
    made = ASTFeatureExtractor(
        sampling_rate=front.sampling_rate,
        num_mel_bins=front.num_mel_bins,
        max_length=frames,
        mean=front.mean,
        std=front.std,
    )
    return stock, made


def _positions(encoder: AstEncoder, frames: int, mels: int) -> Tensor:
    """The position embeddings of inputs with this number of frames, (1, 2 + bands * steps, dim)."""
    bands, steps = encoder.token_grid(frames, mels)
    known = encoder._embeddings.get_shape(encoder.config)[1]
    with torch.no_grad():
        return encoder._positions(bands, known, steps, torch.tensor([steps])).detach().clone()


def compare(
    folder: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, tolerance: float = TOLERANCE
) -> None:
    """Load the export and verify its calibrated logits for short and long sounds."""
    stock = ASTForAudioClassification.from_pretrained(folder).eval()
    front_end = ASTFeatureExtractor.from_pretrained(folder)
    divisor, offset = calibration(model.config)
    rate = extractor.sampling_rate
    draw = np.random.Generator(np.random.Philox(key=3))
    for seconds in (0.5, 2.7, 1.2 * float(extractor.duration_s or 0.0)):
        sound = 0.1 * draw.standard_normal(round(seconds * rate)).astype(np.float32)
        with torch.inference_mode():
            wanted = model.eval()(**extractor(sound, sampling_rate=rate)).logits / divisor + offset
            got = stock(**front_end(sound, sampling_rate=rate, return_tensors="pt")).logits
        apart = float((got - wanted).abs().max())
        if not apart <= tolerance * max(1.0, float(wanted.abs().max())):
            raise InputError(
                f"{folder}: the stock classes differ from the run (logits by {apart:.2e}); nothing was exported; use "
                "--format full"
            )
