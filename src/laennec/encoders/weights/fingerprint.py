"""The embedding of one fixed input, which shows whether an encoder was loaded correctly.

Decisions: a fingerprint holds outputs, not weights: with wrong settings or changed code, the right weights have the
right digest and give wrong embeddings. It is computed when an encoder is saved, kept in its configuration, and compared
when it is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laennec.errors import InputError

# long enough (2.6 s) that tokens far apart affect it
_FRAMES, _NUMBERS = 256, 16
# share of the recorded numbers' norm: rounding differs by less, one wrong bucket of relative positions by more
_TOLERANCE, _TOLERANCE_ON_DEVICE, _TOLERANCE_HALF = 0.002, 0.02, 0.2


def fixed_input(mels: int) -> Tensor:
    """Fixed synthetic features, (1, frames, mels) float32."""
    frame = torch.arange(_FRAMES, dtype=torch.float64)[:, None]
    mel = torch.arange(mels, dtype=torch.float64)[None, :]
    return (torch.sin(0.7 * frame + 0.31 * mel) + 0.5 * torch.cos(0.011 * frame * mel)).float()[None]


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients within the block; afterwards each module's mode is restored."""
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def fingerprint(encoder: Any) -> list[float] | None:
    """Some numbers of the embedding of the fixed input; None for weights on the meta device."""
    weight = next(encoder.parameters())
    if weight.is_meta:
        return None
    with evaluating(encoder), torch.autocast(weight.device.type, enabled=False):
        values = fixed_input(int(encoder.config.num_mel_bins)).to(weight.device)
        pooled = encoder(input_values=values).pooler_output[0].float().cpu()
    places = torch.linspace(0, len(pooled) - 1, min(_NUMBERS, len(pooled))).long()
    return [round(float(value), 5) for value in pooled[places]]


def record_fingerprint(encoder: Any) -> None:
    """Write an encoder's fingerprint into its configuration, if that has the attribute."""
    if hasattr(encoder.config, "fingerprint"):
        encoder.config.fingerprint = fingerprint(encoder)


def check_fingerprint(encoder: Any, source: str | Path) -> None:
    """Compare the embedding of the fixed input with the one from when the encoder was saved."""
    expected = getattr(encoder.config, "fingerprint", None)
    if not expected:
        return
    found = fingerprint(encoder)
    if found is None:
        return
    wanted, got = torch.tensor(expected), torch.tensor(found)
    weight = next(encoder.parameters())
    tolerance = _TOLERANCE if weight.device.type == "cpu" else _TOLERANCE_ON_DEVICE
    if weight.dtype in (torch.float16, torch.bfloat16):
        tolerance = _TOLERANCE_HALF
    if wanted.shape != got.shape or not float((got - wanted).norm()) <= tolerance * float(wanted.norm()):
        raise InputError(
            f"{source}: the encoder loads, but its outputs differ from when it was saved (config.json's fingerprint): "
            "weights, settings or the laennec release differ; get the checkpoint again, or install the release it was "
            "saved with"
        )


def make_contiguous(model: PreTrainedModel) -> PreTrainedModel:
    """Copy weights from a memory-mapped file that are not aligned to 64 bytes.

    Alignment changes the last bits of outputs, and a loaded model must equal the saved one to the bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
    return model
