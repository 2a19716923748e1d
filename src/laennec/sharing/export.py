"""Stage 10, export: a trained model as files that other people can load.

Decided here: nothing is said to be exported before it was read back and gave the same logits. A head-only export
leaves the encoder out and names its base with a digest, so it needs an encoder that was never trained; anything else
is exported in full. Weights that only training needs (the projection of auxiliary losses) stay behind.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.errors import InputError
from laennec.model import LaennecForAudioClassification
from laennec.training.score import load_model
from laennec.writing import folder_aside, refuse_others

FORMATS = ("head", "full")
_WRITTEN = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    format: str = "full",
    base: str | None = None,
    base_name: str | None = None,
) -> Path:
    """Write a run's model in a form to share, and check what was written.

    Args:
        run: The run's folder.
        out: Where to; None: `export-<format>` in the run's folder. A folder that was exported before is replaced.
        format: "head" (a few kB; the base is fetched by name at loading) or "full".
        base: Where the base of a head-only run lies now.
        base_name: The name that a head-only export gives its base, e.g. the Hub id of a base that was trained on as a
            local file.

    Returns:
        The folder.

    Raises:
        InputError: No such run or format, a head-only export of a trained encoder, or a disk that cannot be written to.
    """
    if format not in FORMATS:
        raise InputError(f"unknown export format {format!r}; it can be {', '.join(FORMATS)} (--format)")
    model, extractor = load_model(run, base)
    if format == "head" and not (model.config.frozen_encoder and model.config.base_model_name_or_path):
        why = (
            "its encoder was trained"
            if not model.config.frozen_encoder
            else "its encoder has random weights and no name"
        )
        raise InputError(f"{run}: no head-only export: {why}; use --format full")
    out = Path(out) if out is not None else Path(run) / f"export-{format}"
    refuse_others(out, _WRITTEN, "choose another --out")
    model.projection = None
    model.config.projection_dim = 0
    here = base or model.config.base_model_name_or_path
    if base_name:
        model.config.base_model_name_or_path = base_name
    with folder_aside(out) as folder:
        model.save_pretrained(folder, head_only=format == "head")
        extractor.save_pretrained(folder)
        _compare(folder, model, extractor, here if format == "head" else None)
    return out


def _compare(
    folder: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, base: str | None
) -> None:
    """Load what was written and require the same logits on a fixed sound."""
    again = LaennecForAudioClassification.from_pretrained(folder, base=base)
    front_end = LaennecFeatureExtractor.from_pretrained(folder)
    sound: Any = (
        np.random.Generator(np.random.Philox(key=2)).standard_normal(3 * extractor.sampling_rate).astype(np.float32)
        * 0.1
    )
    if extractor.context_cycles:
        sound = InContext(sound, before=[sound[::-1].copy()], after=[sound[: len(sound) // 2]])
    model.eval()
    with torch.inference_mode():
        wanted = model(**extractor(sound, sampling_rate=extractor.sampling_rate)).logits
        got = again(**front_end(sound, sampling_rate=front_end.sampling_rate)).logits
    if not torch.equal(wanted, got):
        raise InputError(
            f"{folder}: what was written gives other logits than the run ({(wanted - got).abs().max():.2e} apart); "
            "nothing was exported; check the disk and export again"
        )
