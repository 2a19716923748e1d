"""`laennec export`: export the model of a run."""

import argparse
from pathlib import Path

from laennec.cli.common import add_options, chosen, refuse_missing_model, without_library_bars
from laennec.files import model_folder
from laennec.hub import export_format
from laennec.terminal import say
from laennec.untrusted import read_json


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec export`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--format",
        default="full",
        help="full (default), head (a few kB; the base encoder is loaded by name), lora (head and adapters), stock "
        "(ASTForAudioClassification of transformers), onnx or onnx-int8 (onnxruntime, input is the waveform), "
        "openvino (likewise, for OpenVINO), full-onnx (full and onnx in one folder), space (a web page that serves the "
        "model)",
    )
    parser.add_argument("--out", help="output folder (default: export-FORMAT in the folder of the run)")
    add_options(parser, "--base", "--base-name", "--base-revision")


def run(options: argparse.Namespace) -> int:
    """Export the model, and print its size."""
    export_format(options.format)
    refuse_missing_model(options.run_folder)
    model_folder(options.run_folder)
    from laennec.hub.export import export_run

    without_library_bars()
    names = ("out", "format", "base", "base_name", "base_revision")
    out = export_run(options.run_folder, **chosen(options, *names))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    say(f"exported model: {out} ({size / 1000:.1f} kB, verified by loading it)")
    if (facts := int8_facts(out)) is not None:
        say(facts)
    return 0


def int8_facts(folder: Path) -> str | None:
    """The effect of int8 on AUROC and size, in one line; None for other formats."""
    path = folder / "onnx.json"
    facts = read_json(path).get("int8") if path.is_file() else None
    if facts is None:
        return None
    changes = ", ".join(
        f"{name} {facts['auroc_int8'][name]:.4f} instead of {value:.4f}" for name, value in facts["auroc_float"].items()
    )
    sizes = f"{facts['bytes_int8'] / 1000:.0f} kB instead of {facts['bytes_float'] / 1000:.0f} kB"
    return f"int8: AUROC on {facts['cycles']} validation cycles: {changes}; {sizes}"
