"""A trained model as files that other people can load.

Decisions: nothing is said to be exported before it was read back and gave the same logits. A head-only export
leaves the encoder out and names its base with a digest, so it needs an encoder that was never trained; so does a LoRA
export, which adds the adapters in peft's own form. Anything else is exported in full, adapters merged into the weights
beside which they were trained. Weights that only training needs (the projection of auxiliary losses) stay behind. A
run's model card goes with its model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.files import atomic_folder, refuse_other_files
from laennec.hub import onnx, stock
from laennec.hub.card import write_card
from laennec.modeling import LaennecForAudioClassification

FORMATS = ("head", "full", "lora", "stock", "onnx", "onnx-int8", "space")
_WRITTEN = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter",
    "*.onnx",
    "*.onnx.data",
    "onnx.json",
    "README.md",
    ".eval_results",
)
# merging adds products of small matrices in another order
_MERGED_TOLERANCE = 1e-3


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    format: str = "full",
    base: str | None = None,
    base_name: str | None = None,
    base_revision: str | None = None,
) -> Path:
    """Write a run's model in a form to share, and check what was written.

    Args:
        run: The run's folder.
        out: Where to; None: `export-<format>` in the run's folder. A folder that was exported before is replaced.
        format: "head" (a few kB; the base is fetched by name at loading), "lora" or "adapter" (head and adapters,
            likewise), "full", or "stock" (transformers' own AST classes, for those who have no laennec), "onnx",
            "onnx-int8" (for onnxruntime, from the sound on), or "space" (a folder that serves the page, as a Space of
            the Hub too).
        base: Where the base of a head-only or LoRA run lies now.
        base_name: The name that a head-only or LoRA export gives its base, e.g. the Hub id of a base that was trained
            on as a local file.
        base_revision: The commit, tag or branch of that base; None keeps the one that was trained on.

    Returns:
        The folder.

    Raises:
        InputError: No such run or format, a head-only export of a trained encoder, or a disk that cannot be written to.
    """
    format = {"adapter": "lora"}.get(format, format)
    if format not in FORMATS:
        raise InputError(f"unknown export format {format!r}; it can be {', '.join(FORMATS)} (--format)")
    if format == "space":
        from laennec.hub.space import write_space

        return write_space(run, out, base)
    model, extractor = load_model(run, base)
    _refuse_format(run, model, format)
    if format == "stock":
        stock.refuse_other_files(run, model, extractor)
    out = Path(out) if out is not None else Path(run) / f"export-{format}"
    refuse_other_files(out, _WRITTEN, "choose another --out")
    model.projection = None
    model.config.projection_dim = 0
    here = base or model.config.base_model_name_or_path
    if base_name:
        model.config.base_model_name_or_path = base_name
    if base_revision:
        model.config.base_model_revision = base_revision
    if format not in ("head", "lora") and model.config.lora:
        _merge(run, model, extractor)
    with atomic_folder(out) as folder:
        if format.startswith("onnx"):
            onnx.write_onnx(folder, model, extractor, run, int8=format == "onnx-int8")
            extractor.save_pretrained(folder)
        elif format == "stock":
            for part in stock.to_stock(model, extractor):
                part.save_pretrained(folder)
            stock.compare(folder, model, extractor)
        else:
            model.save_pretrained(folder, head_only=format != "full")
            extractor.save_pretrained(folder)
            _compare(folder, model, extractor, here if format != "full" else None)
        if (Path(run) / "run.json").exists():
            write_card(run, folder)
    return out


def _refuse_format(run: str | Path, model: LaennecForAudioClassification, format: str) -> None:
    """Refuse forms that leave out what a model needs, or name what it does not have."""
    named, adapters = model.config.base_model_name_or_path, bool(model.config.lora)
    if format == "lora" and not adapters:
        raise InputError(f"{run}: no LoRA export: the run has no adapters; use --format full (or head)")
    if format == "head" and not (model.config.frozen_encoder and named):
        why = (
            "its encoder was trained"
            if not model.config.frozen_encoder
            else "its encoder has random weights and no name"
        )
        other = "lora or full" if adapters else "full"
        raise InputError(f"{run}: no head-only export: {why}; use --format {other}")


def _merge(run: str | Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> None:
    """Merge the adapters, and require nearly the same logits on a fixed sound."""
    before = _answer(model, extractor)
    model.merge_adapters()
    apart = float((_answer(model, extractor) - before).abs().max())
    if not apart <= _MERGED_TOLERANCE * max(1.0, float(before.abs().max())):
        raise InputError(f"{run}: merged adapters give other logits ({apart:.2e} apart); use --format lora")


def _answer(model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> torch.Tensor:
    """The logits of a fixed sound."""
    draw = np.random.Generator(np.random.Philox(key=2))
    sound: Any = draw.standard_normal(3 * extractor.sampling_rate).astype(np.float32) * 0.1
    if extractor.context_cycles:
        sound = InContext(sound, before=[sound[::-1].copy()], after=[sound[: len(sound) // 2]])
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**extractor(sound, sampling_rate=extractor.sampling_rate)).logits
    return logits


def _compare(
    folder: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, base: str | None
) -> None:
    """Load what was written and require the same logits on a fixed sound."""
    again = LaennecForAudioClassification.from_pretrained(folder, base=base)
    front_end = LaennecFeatureExtractor.from_pretrained(folder)
    wanted, got = _answer(model, extractor), _answer(again, front_end)
    if not torch.equal(wanted, got):
        raise InputError(
            f"{folder}: what was written gives other logits than the run ({(wanted - got).abs().max():.2e} apart); "
            "nothing was exported; check the disk and export again"
        )
