"""Decode an untrusted file in a process of its own, with limits on time, memory and output.

Decisions: only the decoder reads untrusted bytes, so only the decoder is sandboxed. The process outputs a line of JSON
and raw float32 samples, which are checked, resampled and filtered here. It gets no environment variables that hold
secrets, can write only its output (an unnamed file of bounded size) and is killed at its time limit. On systems without
such limits (Windows), only the time limit applies.
"""

import contextlib
import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from laennec.audio.recording import (
    LARGEST_SAMPLE,
    MAX_SAMPLING_RATE_HZ,
    MIN_SAMPLING_RATE_HZ,
    ButterworthFilter,
    DecodeError,
    Recording,
    Waveform,
    read_header,
    read_recording,
    resample,
    too_few,
)

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

TIMEOUT_S = 20.0
_WAITING = 6  # wall-clock seconds for each CPU second, because the machine may be busy
MEMORY_MB = 1024
MOST_S = 3600.0
_MEGABYTE = 1 << 20
_MAX_LINE = 4096  # bytes of the first line of the output
_HEADER_ERROR = 4.0  # a header may overstate the length by this factor: MP3s without a length table are estimated
# what a process needs to start; tokens and keys are not passed on
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "LANG", "LC_ALL")


def read_recording_sandboxed(
    path: str | os.PathLike[str],
    sampling_rate: int | None = None,
    *,
    filter: ButterworthFilter | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_mb: int = MEMORY_MB,
    most_s: float = MOST_S,
) -> Recording:
    """Read a recording as `laennec.audio.recording.read_recording` does, with the decoder in a process of its own.

    Args:
        path: A file name.
        sampling_rate: Wanted rate in Hz; None keeps the recording's own.
        filter: Applied after resampling, at the final rate.
        timeout_s: Limit of decoding in seconds of CPU time; the wall-clock limit is six times as long.
        memory_mb: Memory limit of decoding beyond the bare interpreter, and size limit of its output, in MiB.
        most_s: Longest accepted recording, in seconds.

    Returns:
        What `read_recording` returns, bit for bit.

    Raises:
        DecodeError: As `read_recording`, or a limit was reached, or the decoder crashed.
    """
    name = os.fspath(path)
    if not (timeout_s > 0 and memory_mb > 0 and most_s > 0):
        raise ValueError(f"timeout_s={timeout_s}, memory_mb={memory_mb}, most_s={most_s}: limits must be positive")
    with tempfile.TemporaryFile() as output:
        code = _run_decoder(name, output, timeout_s, memory_mb, most_s)
        output.seek(0)
        waveform, source_rate = _read_output(output, name, code)
    rate = sampling_rate or source_rate
    result = resample(waveform, source_rate, rate)
    if len(result) == 0:
        raise too_few(name, len(waveform), source_rate, rate)
    result = filter.apply(result, rate) if filter else result
    return Recording(np.ascontiguousarray(result), rate, source_rate, name)


@contextlib.contextmanager
def plain_file(recording: Recording) -> Iterator[Path]:
    """Write a decoded recording as a float32 WAV that is safe for any reader; it is deleted at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="laennec-plain-") as folder:
        path = Path(folder) / "recording.wav"
        soundfile.write(path, recording.waveform, recording.sampling_rate, subtype="FLOAT")
        yield path


def _run_decoder(name: str, output: BinaryIO, timeout_s: float, memory_mb: int, most_s: float) -> int:
    """Run the decoder with its output going into a file; its exit code (negative for a signal)."""
    here = str(Path(__file__).parents[2])
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([here, *(p for p in sys.path if p and p != here)])
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # -S: the paths are known already; -P: nothing is imported from the working directory
    command = [sys.executable, "-S", "-P", "-B", "-m", __name__, name, str(timeout_s), str(memory_mb), str(most_s)]
    quiet, wait_s = subprocess.DEVNULL, _WAITING * timeout_s
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(command, stdin=quiet, stdout=output, stderr=quiet, env=environment, timeout=wait_s)
        if resource is None or ended.returncode != -signal.SIGXCPU:
            return ended.returncode
    reason = f"decoding takes longer than {timeout_s:g} s; cut it into shorter files or export it as WAV"
    raise DecodeError(name, reason)


def _read_output(output: BinaryIO, name: str, code: int) -> tuple[Waveform, int]:
    """The decoded samples and their rate; every part of the output is checked."""
    waveform, source_rate = np.zeros(0, np.float32), 0
    try:
        said = json.loads(output.readline(_MAX_LINE))
        if isinstance(said.get("reason"), str):
            raise DecodeError(name, said["reason"])
        source_rate, samples = int(said["source_rate"]), int(said["samples"])
        held = os.fstat(output.fileno()).st_size - output.tell()
        if code == 0 and samples > 0 and held == 4 * samples:
            waveform = np.frombuffer(output.read(), "<f4").astype(np.float32, copy=False)
    except DecodeError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        pass
    # a comparison with NaN is false
    whole = len(waveform) > 0 and max(-float(waveform.min()), float(waveform.max())) <= LARGEST_SAMPLE
    if not whole or not MIN_SAMPLING_RATE_HZ <= source_rate <= MAX_SAMPLING_RATE_HZ:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise DecodeError(name, f"the decoder failed ({how}); export it as WAV or FLAC")
    return waveform, source_rate


def _main(arguments: list[str]) -> int:
    """Entry point of the process: decode one file under limits, and write to standard output."""
    name, timeout_s, memory_mb, most_s = arguments[0], float(arguments[1]), int(arguments[2]), float(arguments[3])
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not enter the output
    _limit(timeout_s, memory_mb)
    too_large = f"decoding needs more than {memory_mb} MiB; cut it into shorter files"
    try:
        recording = _decoded(name, most_s)
        said = json.dumps({"source_rate": recording.source_sampling_rate, "samples": len(recording.waveform)})
        _send(output, said, np.ascontiguousarray(recording.waveform, "<f4").data.cast("B"))
        return 0
    except DecodeError as error:
        reason = too_large if isinstance(error.__cause__, MemoryError) else error.reason[: _MAX_LINE // 8]
    except MemoryError:
        reason = too_large
    except OSError as error:
        reason = too_large if error.errno == errno.EFBIG else f"its samples cannot be written ({error.strerror})"
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    _send(output, json.dumps({"reason": reason}), memoryview(b""))
    return 0


def _decoded(name: str, most_s: float) -> Recording:
    """The recording at its own rate; one that is certainly too long is refused before it is decoded."""
    rate, frames = read_header(name)
    recording = read_recording(name) if frames <= _HEADER_ERROR * most_s * rate else None
    if recording is None or recording.duration_s > most_s:
        said = f"{most_s / 60:g} minutes" if most_s >= 120 else f"{most_s:g} s"
        raise DecodeError(name, f"longer than {said}; cut it into shorter files")
    return recording


def _send(output: int, said: str, samples: memoryview) -> None:
    for part in (memoryview(said.encode() + b"\n"), samples):
        while len(part):
            part = part[os.write(output, part) :]


def _limit(timeout_s: float, memory_mb: int) -> None:
    if resource is None:
        return
    taken = _address_space()
    seconds = math.ceil(timeout_s) + 1
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: memory_mb * _MEGABYTE,
        resource.RLIMIT_CORE: 0,
        **({resource.RLIMIT_AS: taken + memory_mb * _MEGABYTE} if taken else {}),
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        ceiling = most + (kind == resource.RLIMIT_CPU)  # SIGXCPU comes before SIGKILL
        ceiling = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS does not limit address space
            resource.setrlimit(kind, (min(most, ceiling), ceiling))


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
