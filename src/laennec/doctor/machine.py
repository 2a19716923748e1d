"""Every stage, doctor: processor, memory, threads, shared memory, open files, accelerator.

Decisions: limits are those of this process (its cores, its control group), not those of the machine it is on. A GPU
is judged by a pass that ran on it, and one that torch cannot use is looked for, because training on the CPU beside it
by mistake costs days.
"""

import os
import platform
import shutil
from pathlib import Path

from laennec.doctor.finding import Finding, Verdict, finding, gigabytes, note, ok, problem

_ROOM = "Machine"
_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")
_MIN_SHARED_BYTES = 1e9
_MIN_OPEN_FILES = 1024
_MIN_MEMORY_BYTES = 2e9
_MIN_GPU_BYTES = 4e9


def examine() -> list[Finding]:
    """Look at what laennec runs on."""
    return [
        finding(_ROOM, "processor", _processor, "see whether the container allows reading /proc"),
        finding(_ROOM, "memory", _memory, "see whether the container allows reading /proc"),
        finding(_ROOM, "threads", _threads, "set OMP_NUM_THREADS to the number of cores"),
        finding(_ROOM, "shared memory", _shared_memory, "set train.workers: 0"),
        finding(_ROOM, "open files", _open_files, "ulimit -n 4096"),
        finding(
            _ROOM, "accelerator", _accelerator, "see the driver (nvidia-smi), or hide the GPU: CUDA_VISIBLE_DEVICES="
        ),
        finding(_ROOM, "model", _model, "install torch again (pip install --force-reinstall torch)"),
    ]


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and its control group's share."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, float(quota) / float(period))
    except (OSError, ValueError):
        return cores


def _processor() -> Verdict:
    from laennec.training.record import processor_name

    cores, present = usable_cores(), os.cpu_count() or 1
    share = f"{present} cores" if cores >= present else f"{cores:g} of {present} cores usable"
    return ok(f"{processor_name()}, {share}, {platform.system()} {platform.machine()}")


def _memory() -> Verdict:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no /proc: macOS, Windows
        return ok(f"not known on {platform.system()}")
    amounts = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
    total, free = amounts["MemTotal"], amounts["MemAvailable"]
    limit = _limit_of_group()
    if limit is not None and limit < total:
        total, free = limit, min(free, limit)
    found = f"{gigabytes(free)} of {gigabytes(total)} free"
    if free < _MIN_MEMORY_BYTES:
        return note(found, "close other programs, or set smaller batches (train.batch_size)")
    return ok(found)


def _limit_of_group() -> float | None:
    try:
        return float((_CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # none, or "max"
        return None


def _threads() -> Verdict:
    import torch

    threads, cores, asked = torch.get_num_threads(), usable_cores(), os.environ.get("OMP_NUM_THREADS")
    found = f"torch uses {threads} on {cores:g} cores (OMP_NUM_THREADS {'is ' + asked if asked else 'is not set'})"
    if threads > max(cores, 1):
        return note(found, f"threads that wait for a core slow every step: set OMP_NUM_THREADS={max(int(cores), 1)}")
    return ok(found)


def _shared_memory() -> Verdict:
    if not _SHARED_MEMORY.is_dir():
        return ok(f"no {_SHARED_MEMORY} on {platform.system()}: batches of worker processes take other ways")
    use = shutil.disk_usage(_SHARED_MEMORY)
    found = f"{gigabytes(use.free)} of {gigabytes(use.total)} free at {_SHARED_MEMORY}"
    if use.free < _MIN_SHARED_BYTES:
        remedy = "worker processes pass batches through it: docker run --shm-size=2g, or train.workers: 0"
        return note(found, remedy)
    return ok(found)


def _open_files() -> Verdict:
    try:
        import resource
    except ImportError:  # Windows
        return ok("no limit to be asked for here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    found = "no limit" if soft == unlimited else f"{soft} at once"
    if soft != unlimited and soft < _MIN_OPEN_FILES:
        most = "4096" if hard == unlimited else str(min(hard, 4096))
        return note(found, f"many workers and tables may need more: ulimit -n {most}")
    return ok(found)


def _accelerator() -> Verdict:
    import torch

    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return ok("MPS (Apple); bf16 and compiled layers are not tried there")
        return _unused_gpu() or ok("none: models run on the CPU")
    names, full = [], []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{torch.cuda.get_device_name(index)}, {gigabytes(free)} of {gigabytes(total)} free")
        full += [index] if free < _MIN_GPU_BYTES else []
    half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
    found = f"{'; '.join(names)}; CUDA {torch.version.cuda}, {half}"
    if full:
        return note(found, f"GPU {', '.join(map(str, full))} is nearly full: see nvidia-smi for who uses it")
    return ok(found)


def _unused_gpu() -> Verdict | None:
    """A GPU that is there and that torch does not see."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ok("none: CUDA_VISIBLE_DEVICES hides what there may be")
    if not any(Path(place).exists() for place in ("/dev/nvidia0", "/proc/driver/nvidia/gpus")):
        return None
    if torch.version.cuda is None:
        return note(
            f"an NVIDIA GPU is there, but torch {torch.__version__} is a build for the CPU",
            "install the build of torch for CUDA (pip install --force-reinstall torch, without a CPU index)",
        )
    return note(
        f"an NVIDIA GPU is there, but CUDA {torch.version.cuda} of torch {torch.__version__} cannot use it",
        "see nvidia-smi: the driver may be too old for this build, or the container may not have been given the GPU",
    )


def _model() -> Verdict:
    import torch

    from laennec.configuration import LaennecConfig
    from laennec.encoders import load_encoder
    from laennec.modeling import LaennecForAudioClassification

    encoder = load_encoder(None, type="cnn")
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
    places = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for place in places:
        logits = model.to(place)(torch.zeros(1, 64, 64, device=place)).logits
        logits.sum().backward()
        if not bool(torch.isfinite(logits).all()):
            return problem(f"a forward pass on {place} is not finite", "install torch again, or another version of it")
    return ok(f"a forward and backward pass runs on {' and '.join(places)}")
