"""Read thousands of malformed recordings: each gives audio or a typed error, in seconds and with little memory.

    python tests/soak/decoders.py --files 6000 --out docs/results/reliability.json

The files are damaged copies of valid files of every container: cut off, header fields and chunk sizes overwritten, bits
flipped, NaN samples, no channels, 2^31 samples declared, suffix of another container. A worker process reads each file
as a whole, block by block, and its header alone. Faults of the reader are: the worker dies, it takes longer than 5 s,
it gives NaN, the ways of reading differ, or an error is not a `DecodeError` of one line. An intact file of each
container is read in between and must give its audio.
"""

import argparse
import io
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import keep, parser_of

LIMIT_S, LIMIT_MB, WAIT_S = 5, 1000, 60
KINDS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "PCM_U8"), ("WAV", "ULAW"),
    ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"),
    ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
)  # fmt: skip
WAYS = (
    "cut", "bits", "field", "chunk size", "channels", "declared", "rate", "insert", "shuffle", "tail", "joined",
    "empty", "sound",
)  # fmt: skip
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".caf", ".txt", "")


def valid(draw: random.Random, kind: str, subtype: str, finite: bool = False) -> bytes:
    """A second of sound, sometimes with NaN or infinite samples where the container allows them."""
    rate = draw.choice((8000, 16000, 24000, 48000) if subtype == "OPUS" else (4000, 8000, 16000, 44100))
    rate = 8000 if subtype == "MPEG_LAYER_III" else rate
    sound = np.random.default_rng(draw.randrange(2**31)).standard_normal((rate, draw.choice((1, 2)))) * 0.1
    if subtype in ("FLOAT", "DOUBLE") and not finite and draw.random() < 0.5:
        sound[draw.randrange(rate)] = draw.choice((np.nan, np.inf, -np.inf, 1e300))
    file = io.BytesIO()
    with np.errstate(over="ignore"):
        soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


def malformed(draw: random.Random, whole: bytes, way: str) -> bytes:
    """A file damaged in one way."""
    content = bytearray(whole)
    head = max(1, min(len(content) - 8, 120))
    at = draw.randrange(len(content))
    if way == "cut":
        del content[at if draw.random() < 0.5 else draw.randrange(head) :]
    elif way == "bits":
        for _ in range(draw.choice((1, 4, 64))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == "field":
        at = draw.randrange(head)
        content[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65535)))
    elif way == "chunk size":
        sizes = (0, 3, 2**31, 2**32 - 1, draw.randrange(2**32))
        for name in (b"data", b"fmt ", b"SSND", b"COMM", b"RIFF", b"FORM", b"ds64", b"desc", b"LIST", b"OggS"):
            if (at := whole.find(name)) >= 0 and draw.random() < 0.6:
                content[at + 4 : at + 8] = struct.pack(draw.choice("<>") + "I", draw.choice(sizes))
    elif way in ("channels", "rate", "declared"):
        _overwrite_promise(draw, whole, content, way)
    elif way == "insert":
        content[at:at] = draw.randbytes(draw.choice((1, 17, 4096)))
    elif way == "shuffle":
        size = draw.randrange(1, 512)
        content[at : at + size] = draw.randbytes(size)
    elif way == "tail":
        content += draw.randbytes(draw.randrange(1, 10000))
    elif way == "joined":
        content += whole[draw.randrange(64) :]
    elif way == "empty":
        content = bytearray(draw.choice((b"", b"\0", whole[:4], b"\0" * 4096)))
    return bytes(content)


def _overwrite_promise(draw: random.Random, whole: bytes, content: bytearray, way: str) -> None:
    """Overwrite channels, rate or length in the header, in containers that store it in one place."""
    channels, rate = draw.choice((0, 0, 3, 255, 65535)), draw.choice((0, 1, 7, 10**6, 2**31, 2**32 - 1))
    places = {  # marker -> offsets of (channels, rate, length) from it, and the byte order
        b"fmt ": (10, 12, None, "<"), b"COMM": (8, None, 10, ">"), b"desc": (36, None, None, ">"),
        b".snd": (20, 16, 8, ">"), b"data": (None, None, 4, "<"), b"fact": (None, None, 8, "<"),
        b"vorbis": (10, 11, None, "<"), b"OpusHead": (9, 12, None, "<"),
    }  # fmt: skip
    for sign, (channels_at, rate_at, length_at, order) in places.items():
        at = whole.find(sign)
        if at < 0:
            continue
        if way == "channels" and channels_at is not None:
            wide = "I" if sign in (b"desc", b".snd") else "B" if sign in (b"vorbis", b"OpusHead") else "H"
            written = struct.pack(order + wide, channels & (255 if wide == "B" else 65535))
            content[at + channels_at : at + channels_at + len(written)] = written
        elif way == "rate" and rate_at is not None:
            content[at + rate_at : at + rate_at + 4] = struct.pack(order + "I", rate)
        elif way == "declared" and length_at is not None:
            content[at + length_at : at + length_at + 4] = struct.pack(order + "I", draw.choice((2**31, 2**31 - 1)))
    if whole[:4] == b"fLaC":
        if way == "channels":
            content[20] ^= 0x0E
        elif way == "rate":
            content[18:20] = bytes(2)
        else:
            content[21:26] = draw.choice((b"\xff" * 5, b"\xf0\x80\0\0\0"))


def write_files(folder: Path, files: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Yield each file and how it was damaged; a file is deleted when the next one is requested."""
    draw = random.Random(seed)
    for number in range(files):
        kind, subtype = KINDS[number % len(KINDS)]
        way = WAYS[number // len(KINDS) % len(WAYS)]
        content = malformed(draw, valid(draw, kind, subtype, finite=way == "sound"), way)
        suffix = draw.choice(SUFFIXES) if draw.random() < 0.3 else f".{kind.lower()}"
        path = folder / f"{number:05d}{suffix}"
        path.write_bytes(content)
        yield path, way
        path.unlink()


def verdict(path: str | Path) -> str:
    """Result of reading a file: "audio", "typed error", or a fault of the reader."""
    from laennec.audio.recording import DecodeError, read_header, read_recording
    from laennec.audio.streaming import open_recording

    said: list[str] = []
    whole = blocks = None
    try:
        whole = read_recording(path, 16000).waveform
        if len(whole) == 0 or not np.isfinite(whole).all():
            return "samples that are no numbers, or none"
    except DecodeError as error:
        said.append(str(error))
    try:
        with open_recording(path, 16000) as stream:
            blocks = np.concatenate(list(stream.blocks()))
    except DecodeError as error:
        said.append(str(error))
    try:
        read_header(path)
    except DecodeError as error:
        said.append(str(error))
        if whole is not None:
            return "a header that is refused, of a sound that is read"
    if (whole is None) != (blocks is None) or (whole is not None and not np.array_equal(whole, blocks)):
        return f"read whole and in blocks it differs: {said}"
    if any("\n" in words or not words for words in said):
        return "more than a line"
    return "typed error" if whole is None else "audio"


WORKER = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT_MB} << 20, {LIMIT_MB} << 20))
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
from decoders import verdict
verdict("/dev/null")
print(flush=True)
for line in sys.stdin:
    try:
        said = verdict(line.rstrip("\\n"))
    except BaseException as error:
        said = f"{{type(error).__name__}}: {{error}}".replace("\\n", " ")[:200]
    print(said, flush=True)
"""


def start() -> subprocess.Popen[bytes]:
    """Start a worker and wait until its imports are done."""
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    assert worker.stdout is not None
    worker.stdout.readline()
    return worker


def answers_in_time(worker: subprocess.Popen[bytes]) -> bool:
    """Whether the worker answers within LIMIT_S of CPU time and WAIT_S of wall time (more, as machines may be busy)."""
    begun, until = computed_s(worker.pid), time.monotonic() + WAIT_S
    while time.monotonic() < until and computed_s(worker.pid) - begun < LIMIT_S:
        if select.select([worker.stdout], [], [], 0.2)[0]:
            return True
    return False


def computed_s(pid: int) -> float:
    """CPU time of a process in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_all(files: Iterator[tuple[Path, str]]) -> Iterator[tuple[Path, str, str]]:
    """Yield the result of each file; a worker that dies or hangs is replaced."""
    worker = None
    for path, way in files:
        worker = worker or start()
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(os.fsencode(f"{path}\n"))
        in_time = answers_in_time(worker)
        said = worker.stdout.readline().decode(errors="replace").strip() if in_time else f"longer than {LIMIT_S} s"
        if not said or not in_time:
            worker.kill()
            said, worker = said or f"crash ({worker.wait()})", None
        yield path, way, said
    if worker is not None:
        worker.communicate()


def main() -> None:
    """Read all files and write the row."""
    parser: argparse.ArgumentParser = parser_of(__doc__)
    parser.add_argument("--files", type=int, default=6000)
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for path, way, said in read_all(write_files(Path(scratch), options.files, options.seed)):
            fine = said == "audio" if way == "sound" else said in ("audio", "typed error")
            seen[said if fine else "against the reader"] += 1
            if not fine:
                print(f"{path.name} ({way}): {said}", flush=True)
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    figures = {
        "files": options.files, "audio": seen["audio"], "typed errors": seen["typed error"],
        "crashes, hangs, other errors": seen["against the reader"], "seconds a file at most": LIMIT_S, "peak MB": peak,
    }  # fmt: skip
    keep(
        options.out,
        "decoders",
        f"malformed recordings of {len(KINDS)} kinds: audio or a typed error, within {LIMIT_S} s and {LIMIT_MB} MB",
        figures,
        held=not seen["against the reader"] and peak <= LIMIT_MB and bool(seen["audio"] and seen["typed error"]),
    )


if __name__ == "__main__":
    main()
