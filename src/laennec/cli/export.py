"""`laennec export`: write a run's model in a form to share, and check it."""

import argparse
from pathlib import Path

from laennec.cli.common import say, without_library_bars
from laennec.untrusted import read_json


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec export`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--format",
        default="full",
        help="head (a few kB, names its base), lora (head and adapters), full (default), stock (transformers' own "
        "AST), onnx or onnx-int8 (for onnxruntime, from the sound on), space (a page that serves it)",
    )
    parser.add_argument("--out", help="folder (default: export-FORMAT in the run's folder)")
    parser.add_argument("--base", help="where the base of a head-only run lies now")
    parser.add_argument("--base-name", help="the name a head-only export gives its base, e.g. its Hub id")
    parser.add_argument("--base-revision", help="the commit, tag or branch of that base")


def run(options: argparse.Namespace) -> int:
    """Export, and say how large it became."""
    from laennec.hub.export import export_run

    without_library_bars()
    out = export_run(
        options.run_folder, options.out, options.format, options.base, options.base_name, options.base_revision
    )
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    say(f"exported model: {out} ({size / 1000:.1f} kB, read back and compared)")
    if (facts := int8_facts(out)) is not None:
        say(facts)
    return 0


def int8_facts(folder: Path) -> str | None:
    """What the bytes of an int8 file cost, in one line; None where there is none."""
    path = folder / "onnx.json"
    facts = read_json(path).get("int8") if path.is_file() else None
    if facts is None:
        return None
    losses = ", ".join(
        f"{name} {facts['auroc_int8'][name]:.4f} instead of {value:.4f}" for name, value in facts["auroc_float"].items()
    )
    sizes = f"{facts['bytes_int8'] / 1000:.0f} kB instead of {facts['bytes_float'] / 1000:.0f} kB"
    return f"int8: AUROC on {facts['cycles']} validation cycles: {losses}; {sizes}"
