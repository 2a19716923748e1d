"""What a million hours of auscultation would cost at the rates that were measured.

Decisions: everything is brought to one unit, seconds of sound a second, so that the slowest part can be read off.
What no machine here could measure stays blank; nothing is scaled from one machine to another. The ratio of FLAC is that
of annotated cycles, because recordings that were put together from cycles hold silence, which costs nothing.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.device import devices, gpu, not_measured, on, waiting
from benchmarks.material import cycle_lengths, noise
from benchmarks.row import Row, Setting, fastest, needs
from laennec.corpora.base import column_of

HOURS = 1_000_000
_DECODE, _FEATURES, _FLAC = "decode and resample", "features", "FLAC at {} kHz"
_KILOHERTZ = (4, 16)
_GPU = " on a GPU"
# what is done once with every second of sound, and the row that measured it (from the file, or from features on)
_JOBS = {
    "embed with mn04 (features included)": "encode once",
    "embed with AST-base": "AST-base forward",
    "one epoch of training AST-base": "AST-base fine-tuning",
}
# recordings that are decoded, cycles that features are computed of
RECORDINGS, CYCLES = 24, {"cpu": 64, "cuda": 1024}


def rates(setting: Setting) -> list[Row]:
    """Decoding, features and FLAC: what the cost page needs and no other row says."""
    return [_decoding(setting), *_features(setting), *(_flac(setting, rate) for rate in _KILOHERTZ)]


def _decoding(setting: Setting) -> Row:
    import soundfile

    from laennec.audio.recording import read_recording

    found = sorted(needs(setting, "icbhi2017_subset").glob("*.flac"))
    chosen = found[:: max(1, len(found) // RECORDINGS)][:RECORDINGS]
    seconds = sum(float(soundfile.info(path).duration) for path in chosen)
    (took,) = fastest(lambda: [read_recording(path, 16000) for path in chosen], repeats=setting.repeats)
    note = f"{len(chosen)} FLAC recordings of {seconds:.0f} s in all to 16 kHz, one thread"
    return Row(_DECODE, seconds / took, None, "x real time", None, "", note)


def _features(setting: Setting) -> list[Row]:
    import torch

    from laennec.audio.features import LaennecFeatureExtractor
    from laennec.training.embeddings import length_batches

    torch.set_num_threads(1)
    extractor = LaennecFeatureExtractor("ast")
    rows = []
    for device in devices():
        seconds, source = cycle_lengths(setting, CYCLES[device.type])
        sound = noise(seconds, 16000)
        size = 16 if device.type == "cpu" else 256
        batches = list(length_batches([len(s) for s in sound], size, 10**9))

        def side(batches: Any = batches, sound: Any = sound, device: Any = device) -> None:
            for batch in batches:
                extractor([sound[row] for row in batch], sampling_rate=16000, device=device)

        waiting(device, side)()
        (took,) = fastest(waiting(device, side), repeats=setting.repeats)
        what = "one thread" if device.type == "cpu" else "copied from memory that is not pinned"
        note = f"AST's filter bank of {len(sound)} cycles, {source}, {what}"
        rows.append(Row(f"{_FEATURES}{on(device)}", float(seconds.sum()) / took, None, "x real time", None, "", note))
    return rows if gpu() else [*rows, not_measured(_FEATURES + _GPU, "x real time")]


def _flac(setting: Setting, kilohertz: int) -> Row:
    """Bytes of FLAC over bytes of WAV, 16 bit, of real cycles whose recordings have all of the band."""
    import soundfile

    from laennec.corpora import CycleWaveforms, load_corpus

    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    wide = [row for row, rate in enumerate(column_of(table, "source_sampling_rate")) if rate >= 44100]
    table = table.select(wide[:: max(1, len(wide) // 200)])
    cycles = CycleWaveforms(table, kilohertz * 1000)
    sound = np.concatenate(list(cycles))
    file = io.BytesIO()
    soundfile.write(file, sound, kilohertz * 1000, format="FLAC", subtype="PCM_16")
    share = len(file.getvalue()) / (2 * len(sound))
    note = f"{len(table)} real cycles of 44.1 kHz recordings, resampled, 16 bit"
    return Row(_FLAC.format(kilohertz), share, None, "of WAV", None, "", note)


def as_page(rows: Sequence[Row], result: dict[str, Any]) -> str:
    """Rates, hours, storage and the part that binds, as Markdown; blanks where nothing was measured."""
    speed = {row.name: _real_time(row) for row in rows}
    share = {row.name: row.ours for row in rows}
    machine = result["hardware"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    lines = [
        *_rates_table(speed),
        "",
        f"Seconds of sound a second: one thread of {machine['processor']}; {gpus}. {_measured_of(rows)}".rstrip(),
        "",
        *_hours_table(speed),
        "",
        f"For {HOURS:,} hours at these rates, one thread or GPU alone. What binds:",
        "",
        *_binding(speed),
        "",
        *_storage_table(speed, share),
        "",
        "One channel of 16 bits; FLAC by the ratio measured on real cycles; the network carries what one GPU (where "
        "none was measured, one thread) eats of 16 kHz FLAC.",
    ]
    return "\n".join(lines)


def _measured_of(rows: Sequence[Row]) -> str:
    lengths = {row.sound_s for row in rows if row.name.startswith("AST-base") and row.sound_s}
    return f"Cycles of {min(lengths):.2f} s on average (ICBHI's lengths)." if lengths else ""


def _real_time(row: Row) -> float | None:
    """Seconds of sound a second."""
    if row.ours is None or row.unit == "x real time":
        return row.ours
    return row.ours * row.sound_s if row.unit == "cycles/s" and row.sound_s else None


def _said(value: float | None, unit: str = "", digits: int = 3) -> str:
    if value is None:
        return "not measured here"
    rounded = float(f"{value:.{digits}g}")
    return (f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}") + unit


def _flow(bytes_per_second: float | None, by: str) -> str:
    """Bytes a second in the unit that suits them."""
    if bytes_per_second is None:
        return _said(None)
    unit, size = next(
        (u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 0.0)) if bytes_per_second >= s / 10
    )
    return _said(bytes_per_second / (size or 1.0), f" {unit}/s ({by})")


def _rates_table(speed: dict[str, float | None]) -> list[str]:
    names = {"decode and resample FLAC to 16 kHz": _DECODE, "features (AST's filter bank)": _FEATURES} | _JOBS
    lines = ["| what | one thread | one GPU |", "|---|---|---|"]
    for what, name in names.items():
        beside = "on the CPU" if name == _DECODE else _said(speed.get(name + _GPU))
        lines.append(f"| {what} | {_said(speed.get(name))} | {beside} |")
    return lines


def _hours_table(speed: dict[str, float | None]) -> list[str]:
    lines = ["| job | hours of one thread | years of one thread | hours of one GPU |", "|---|---|---|---|"]
    for what, name in _JOBS.items():
        thread, device = speed.get(name), speed.get(name + _GPU)
        hours = None if thread is None else HOURS / thread
        years = None if hours is None else hours / (24 * 365.25)
        lines.append(
            f"| {what} | {_said(hours)} | {_said(years)} | {_said(None if device is None else HOURS / device)} |"
        )
    return lines


def _storage_table(speed: dict[str, float | None], share: dict[str, float | None]) -> list[str]:
    lines = ["| sampling rate | WAV | FLAC | FLAC / WAV |", "|---|---|---|---|"]
    for kilohertz in _KILOHERTZ:
        wav = HOURS * 3600 * kilohertz * 1000 * 2 / 1e12
        flac = share.get(_FLAC.format(kilohertz))
        lines.append(
            f"| {kilohertz} kHz | {_said(wav, ' TB')} | {_said(None if flac is None else wav * flac, ' TB')} "
            f"| {_said(flac)} |"
        )
    lines += ["", "| job | sound that the network carries |", "|---|---|"]
    flac = share.get(_FLAC.format(16))
    for what, name in _JOBS.items():
        eaten = speed.get(name + _GPU) or speed.get(name)
        by = "one GPU" if speed.get(name + _GPU) else "one thread"
        volume = None if eaten is None or flac is None else eaten * 16000 * 2 * flac
        lines.append(f"| {what} | {_flow(volume, by)} |")
    return lines


def _binding(speed: dict[str, float | None]) -> list[str]:
    """Which part is the slowest of each job, and how many threads of decoding feed a GPU: a line each."""
    said = []
    decode = speed.get(_DECODE)
    for what, name in _JOBS.items():
        for end in ("", _GPU):
            job, features = speed.get(name + end), speed.get(_FEATURES + end)
            if job is None or decode is None:
                said.append(f"- {what}, {'one GPU' if end else 'one thread'}: not measured here")
                continue
            parts = {"decoding": decode, "the encoder": job}
            if features is not None and "features included" not in what:
                parts["features"] = features
            if end:
                own = {part: rate for part, rate in parts.items() if part != "decoding"}
                slowest = min(own, key=lambda part: own[part])
                threads = _said(own[slowest] / decode)
                said.append(f"- {what}, one GPU: {slowest} binds where {threads} threads decode for it, else decoding")
                continue
            total = sum(1 / rate for rate in parts.values())
            shares = ", ".join(f"{part} {100 / rate / total:.3g} %" for part, rate in parts.items())
            slowest = min(parts, key=lambda part: parts[part])
            said.append(f"- {what}, one thread: {slowest} binds ({shares} of the time)")
    return said
