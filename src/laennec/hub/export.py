"""Export a trained model as files that others can load.

Decisions: an export is complete only after it was read back and gave the same logits. A head-only or LoRA export names
its base with a digest, so it needs an encoder that was never trained; other exports have adapters merged. Weights that
only training needs are left out. A Space contains the source of this package, because a Space can only install
published packages; other packages are pinned to the installed versions.
"""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

import laennec
from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders.own import contains_own
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.files import atomic_folder, atomic_write, refuse_other_files
from laennec.hub import MODEL_FILES, export_format, onnx, stock
from laennec.hub.card import FILE as CARD
from laennec.hub.card import write_card
from laennec.hub.card_content import model_summary
from laennec.hub.evidence import read_evidence
from laennec.modeling import LaennecForAudioClassification
from laennec.rendering import render_template
from laennec.training.record import read_record

_WRITTEN = (CARD, *(name.split("/")[0] for name in MODEL_FILES))
_SPACE_FILES = ("README.md", "app.py", "requirements.txt", "model", "laennec")
_NOT_IN_SPACE = ("__pycache__", "*.pyc", "*.pyi")
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
    """Export a run's model, and check what was written.

    Args:
        run: The run's folder.
        out: Output folder; None: `export-<format>` in the run's folder. An earlier export is replaced.
        format: "head" (a few kB; the base is loaded by name), "lora" or "adapter" (head and adapters, likewise),
            "full", "full-onnx" (the ONNX file beside the weights, with which prediction starts in a second), "stock"
            (transformers' own AST classes, for users without laennec), "onnx" or "onnx-int8" (for onnxruntime, from the
            waveform on), "openvino" (likewise, for OpenVINO), or "space" (a folder that serves the page, also as a
            Space on the Hub).
        base: Path of the base model of a head-only or LoRA run.
        base_name: Name of the base model in a head-only or LoRA export, e.g. its Hub id if training used a local file.
        base_revision: Commit, tag or branch of the base model; None keeps the one used in training.

    Returns:
        The output folder.

    Raises:
        InputError: Unknown run or format, a head-only export of a trained encoder, or a folder that cannot be written.
    """
    format = export_format(format)
    if format == "space":
        return write_space(run, out, base)
    model, extractor = load_model(run, base)
    _check_format(run, model, format)
    if format == "stock":
        stock.check_stock(run, model, extractor)
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
    if (Path(run) / "run.json").exists():
        evidence = read_evidence(run)
        model.config.summary = model_summary(evidence)
        model.config.selection_set = evidence.run.get("selection_set")
    with atomic_folder(out) as folder:
        if format.startswith("onnx"):
            onnx.write_onnx(folder, model, extractor, run, int8=format == "onnx-int8")
            extractor.save_pretrained(folder)
        elif format == "openvino":
            onnx.write_openvino(folder, model, extractor, run)
        elif format == "stock":
            for part in stock.to_stock(model, extractor):
                part.save_pretrained(folder)
            stock.compare(folder, model, extractor)
        else:
            full = format in ("full", "full-onnx")
            model.save_pretrained(folder, head_only=not full)
            extractor.save_pretrained(folder)
            _compare(folder, model, extractor, None if full else here)
            if format == "full-onnx":
                onnx.write_onnx(folder, model, extractor, run)
        if (Path(run) / "run.json").exists():
            write_card(run, folder)
    return out


def write_space(run: str | Path, out: str | Path | None = None, base: str | None = None) -> Path:
    """Export a Space: README.md with its settings, app.py, requirements.txt, the model and the package."""
    from laennec.inference.page.app import DISCLAIMER, threshold_origin

    out = Path(out) if out is not None else Path(run) / "export-space"
    refuse_other_files(out, _SPACE_FILES, "choose another --out")
    model, _ = load_model(run, base)
    if contains_own(model.encoder.config):
        raise InputError(f"{run}: no space export: app.py cannot import your encoder class; use --format full or onnx")
    record = Path(run) / "run.json"
    name = str((read_record(record).get("name") if record.exists() else None) or Path(run).resolve().name)
    versions = {package: importlib.metadata.version(package).split("+")[0] for package in _packages_of_the_page()}
    with atomic_folder(out) as folder:
        export_run(run, folder / "model", "full", base)
        source = Path(laennec.__file__).parent
        shutil.copytree(source, folder / "laennec", ignore=shutil.ignore_patterns(*_NOT_IN_SPACE))
        readme = render_template(
            "space_readme.md",
            name=name,
            labels=model.config.label_names,
            origin=threshold_origin(model),
            gradio=versions["gradio"],
            disclaimer=DISCLAIMER,
        )
        texts = {
            "README.md": readme,
            "app.py": render_template("space_app.py.txt", name=name),
            "requirements.txt": "".join(f"{package}=={version}\n" for package, version in versions.items()),
        }
        for file_name, text in texts.items():
            with atomic_write(folder / file_name) as file:
                file.write(text)
    return out


def _packages_of_the_page() -> list[str]:
    required = [line.partition(";") for line in importlib.metadata.requires("laennec") or []]
    names = [
        re.split(r"[^\w.-]", name)[0]
        for name, _, only in required
        if "extra" not in only or "'app'" in only.replace('"', "'")
    ]
    return sorted(set(names))


def _check_format(run: str | Path, model: LaennecForAudioClassification, format: str) -> None:
    """Raise for a format that leaves out what the model needs, or that names a base it does not have."""
    named, adapters = model.config.base_model_name_or_path, bool(model.config.lora)
    if format == "lora" and not adapters:
        raise InputError(f"{run}: no LoRA export: the run has no adapters; use --format full (or head)")
    if format == "head" and not (model.config.frozen_encoder and named):
        trained = not model.config.frozen_encoder
        reason = "its encoder was trained" if trained else "its encoder has random weights and no name"
        other = "lora or full" if adapters else "full"
        raise InputError(f"{run}: no head-only export: {reason}; use --format {other}")


def _merge(run: str | Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> None:
    """Merge the adapters, and verify the logits of a fixed sound."""
    before = _fixed_logits(model, extractor)
    model.merge_adapters()
    apart = float((_fixed_logits(model, extractor) - before).abs().max())
    if not apart <= _MERGED_TOLERANCE * max(1.0, float(before.abs().max())):
        raise InputError(f"{run}: merged adapters change the logits by {apart:.2e}; use --format lora")


def _fixed_logits(model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> torch.Tensor:
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
    """Load the export and verify the logits of a fixed sound."""
    again = LaennecForAudioClassification.from_pretrained(folder, base=base)
    front_end = LaennecFeatureExtractor.from_pretrained(folder)
    wanted, got = _fixed_logits(model, extractor), _fixed_logits(again, front_end)
    if not torch.equal(wanted, got):
        raise InputError(
            f"{folder}: the exported model differs from the run (logits by {(wanted - got).abs().max():.2e}); "
            "nothing was exported; check the disk and export again"
        )
