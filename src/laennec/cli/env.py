"""`laennec env`: versions for a bug report, and three checks of what laennec needs.

Decisions: each check does the real thing once (decode a sound, write to the cache, run a model), because a version
number does not say whether a library works. Only a failed check makes the exit code 2.
"""

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import shutil
from collections.abc import Callable

from laennec.terminal import say

_PACKAGES = (
    *("torch", "transformers", "datasets", "accelerate", "peft", "huggingface_hub", "evaluate"),
    *("soundfile", "soxr", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "safetensors", "pydantic"),
    *("onnxruntime", "gradio", "onnx", "optuna", "tensorboard"),
)
_RATE_HZ = 8000


def flags(parser: argparse.ArgumentParser) -> None:
    """`laennec env` has no flags."""


def run(_: argparse.Namespace) -> int:
    """Print versions and checks; 2 where a check fails."""
    from laennec import __version__

    lines = {"laennec": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    lines |= {name: _version(name) for name in _PACKAGES}
    lines |= {"CPU cores": str(os.cpu_count()), "accelerator": _accelerator()}
    for name, value in lines.items():
        say(f"- {name}: {value}")
    say("")
    failed = 0
    for name, check, remedy in _CHECKS:
        try:
            say(f"ok      {name}: {check()}")
        except Exception as error:  # any failure is what this check reports
            failed += 1
            said = " ".join(str(error).split())[:200]
            say(f"FAILED  {name}: {type(error).__name__}: {said}", f"        what to do: {remedy}")
    return 2 if failed else 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _accelerator() -> str:
    try:
        import torch
    except ImportError:
        return "unknown: torch cannot be imported"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda})"
    if torch.backends.mps.is_available():
        return "MPS"
    return "none, models run on the CPU" + (
        ""
        if torch.version.cuda or not os.path.exists("/dev/nvidia0")
        else "; torch is a CPU build beside an NVIDIA GPU"
    )


def _audio() -> str:
    """Write a tone as WAV and FLAC and read it back at twice the rate."""
    import numpy as np
    import soundfile

    from laennec.audio.recording import read_recording

    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(_RATE_HZ) / _RATE_HZ)).astype(np.float32)
    for kind in ("WAV", "FLAC"):
        file = io.BytesIO()
        soundfile.write(file, tone, _RATE_HZ, format=kind)
        file.seek(0)
        waveform = read_recording(file, 2 * _RATE_HZ).waveform
        if len(waveform) != 2 * len(tone) or abs(float(np.std(waveform)) - float(np.std(tone))) > 0.01:
            raise ValueError(f"{kind}: the decoded tone differs from the one that was written")
    return "WAV and FLAC are decoded and resampled"


def _cache() -> str:
    """Write a megabyte where caches are kept."""
    from laennec.cache import cache_root
    from laennec.files import atomic_write

    folder = cache_root()
    probe = folder / ".probe"
    with atomic_write(probe, "wb") as file:
        file.write(bytes(1 << 20))
    probe.unlink()
    held = 0
    for entry in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process has removed it
            held += entry.stat().st_size
    free = shutil.disk_usage(folder).free
    return f"{folder} can be written to; it holds {held / 1e9:.1f} GB, {free / 1e9:.0f} GB are free"


def _model() -> str:
    """Run a small model forward and backward on every device."""
    import torch

    from laennec.encoders import load_encoder

    places = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for place in places:
        output = load_encoder(None, type="cnn").to(place)(torch.zeros(1, 64, 64, device=place)).pooler_output
        output.sum().backward()
        if not bool(torch.isfinite(output).all()):
            raise ValueError(f"a forward pass on {place} is not finite")
    return f"a forward and a backward pass run on {' and '.join(places)}"


_CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("audio", _audio, "pip install --force-reinstall soundfile soxr"),
    ("cache", _cache, "set LAENNEC_CACHE to a folder with free space that can be written to"),
    ("model", _model, "install torch again; where torchaudio is installed for another torch: pip uninstall torchaudio"),
)
