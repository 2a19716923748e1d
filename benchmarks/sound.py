"""Speed and memory from recordings to features, against common libraries.

Decisions: the other side does the same work with common libraries, as their documentation says.
"""

import importlib
import tempfile
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
import soxr
import torch
from transformers import ASTFeatureExtractor

from benchmarks.device import gpu, not_measured, waiting
from benchmarks.material import cycle_lengths, noise
from benchmarks.row import PEAK_MEMORY, Row, Setting, fastest, in_a_new_process, needs, profiled
from laennec.audio.augmentation import PitchShift, TimeStretch, WaveformAugmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.corpora.base import column_of


def reading(setting: Setting) -> list[Row]:
    """Read, resample and cut the real ICBHI subset, against a bare soundfile + soxr loop."""
    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for path, start, end in zip(
        column_of(table, "recording_path"), column_of(table, "start_s"), column_of(table, "end_s"), strict=True
    ):
        spans.setdefault(path, []).append((start, end))
    kept: list[Any] = []

    def bare() -> None:
        kept.clear()
        for path, times in spans.items():
            samples, rate = soundfile.read(path, dtype="float32")
            samples = soxr.resample(samples, rate, 16000)
            kept.append([samples[int(s * 16000) : int(e * 16000)].copy() for s, e in times])

    # a new cache for each run; removing the caches is not timed
    with tempfile.TemporaryDirectory() as caches:
        ours, other = fastest(
            lambda: CycleWaveforms(table, 16000, cache_dir=tempfile.mkdtemp(dir=caches)).prepare(),
            bare,
            repeats=setting.repeats,
        )
        profile = profiled(CycleWaveforms(table, 16000, cache_dir=caches).prepare)
        (again,) = fastest(lambda: _read_all(table, caches), repeats=setting.repeats)
    n = len(table)
    note = f"{len(spans)} recordings, {n} cycles, into the cache; theirs: soundfile + soxr into memory; {profile}"
    return [
        Row("read + resample + cut", ours, other, "s", ours / other, "<= 1.2", note),
        Row("the same from the cache", again, other, "s", again / other, "no decoding", f"{n} cycles read back"),
    ]


def memory(setting: Setting) -> list[Row]:
    """Peak memory of preparing a quarter of the recordings and all of them, each in its own process."""
    folder = needs(setting, "icbhi2017_subset")
    script = (
        PEAK_MEMORY
        + """
import tempfile, warnings
warnings.simplefilter("ignore")
from laennec.corpora import CycleWaveforms, load_corpus
start = 0
table = load_corpus("icbhi2017", sys.argv[1], protocol="none")["all"]
names = sorted(set(table["recording_id"]))
kept = set(names[: int(len(names) * float(sys.argv[2]))])
rows = [i for i, name in enumerate(table["recording_id"]) if name in kept]
with tempfile.TemporaryDirectory() as cache:
    CycleWaveforms(table.select(rows), 16000, cache_dir=cache).prepare()
print(peak())
"""
    )

    def peak(share: float) -> float:
        return in_a_new_process(script, str(folder), str(share))[0]

    quarter, whole = peak(0.25), peak(1.0)
    note = "peak of the whole process, all recordings against the first quarter of them"
    return [Row("memory of reading", whole, quarter, "MB", whole / quarter, "does not grow with the corpus", note)]


def _read_all(table: Any, cache: str) -> None:
    waveforms = CycleWaveforms(table, 16000, cache_dir=cache)
    waveforms.prepare()
    for row in range(len(table)):
        waveforms[row]


def filter_bank(setting: Setting) -> list[Row]:
    """Batched fbank against transformers' ASTFeatureExtractor (numpy path) and torchaudio's, per cycle, one thread."""
    torch.set_num_threads(1)
    draw = np.random.Generator(np.random.Philox(key=1))
    rows = []
    for seconds in (2.7, 10.24):
        cycles = [draw.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1 for _ in range(32)]
        natural = LaennecFeatureExtractor("ast")
        with patch(f"{ASTFeatureExtractor.__module__}.is_speech_available", return_value=False):  # no torchaudio
            theirs = ASTFeatureExtractor()
            ours, other = fastest(
                partial(natural, cycles, sampling_rate=16000),
                partial(theirs, cycles, sampling_rate=16000, return_tensors="pt"),
                repeats=setting.repeats,
            )
        name, note = f"fbank of {seconds} s cycles", "32 cycles in a batch; theirs pads to 10.24 s"
        rows.append(Row(name, 1000 * ours / 32, 1000 * other / 32, "ms/cycle", other / ours, ">= 5", note))
        rows.append(_against_torchaudio(setting, natural, cycles, seconds))
    return [*rows, _filter_bank_on_gpu(setting)]


def _against_torchaudio(setting: Setting, extractor: Any, cycles: list[Any], seconds: float) -> Row:
    """The same at natural length against torchaudio, which transformers' AST uses if it is installed."""
    name = f"fbank of {seconds} s cycles, torchaudio"
    try:
        kaldi = importlib.import_module("torchaudio.compliance.kaldi")
    except (ImportError, OSError) as error:
        return Row(name, None, None, "", None, "> 1", f"not measured here: torchaudio cannot be imported ({error})")
    sounds = [torch.from_numpy(cycle)[None] for cycle in cycles]
    settings: dict[str, Any] = {"window_type": "hanning", "num_mel_bins": 128, "htk_compat": True}
    settings |= {"use_energy": False, "dither": 0.0}
    ours, other = fastest(
        partial(extractor, cycles, sampling_rate=16000),
        lambda: [kaldi.fbank(sound, **settings) for sound in sounds],
        repeats=setting.repeats,
    )
    count = len(cycles)
    note = f"{count} cycles in a batch; theirs: torchaudio.compliance.kaldi one by one, without normalisation"
    return Row(name, 1000 * ours / count, 1000 * other / count, "ms/cycle", other / ours, "> 1", note)


def _filter_bank_on_gpu(setting: Setting) -> Row:
    """The same on a GPU for cycles of ICBHI's lengths, copying included; the other side cannot use a GPU."""
    device = gpu()
    if device is None:
        return not_measured("fbank on a GPU", "ms/cycle", ">= 5")
    seconds, source = cycle_lengths(setting, 256)
    cycles = noise(seconds, 16000)
    ours = waiting(device, partial(LaennecFeatureExtractor("ast"), cycles, sampling_rate=16000, device=device))
    theirs = partial(ASTFeatureExtractor(), cycles, sampling_rate=16000, return_tensors="pt")
    ours()
    own, other = fastest(ours, theirs, repeats=setting.repeats)
    note = f"256 cycles in a batch, {source}, copying included; theirs pads to 10.24 s, on the CPU"
    return Row("fbank on a GPU", 1000 * own / 256, 1000 * other / 256, "ms/cycle", other / own, ">= 5", note)


def augmentation(setting: Setting) -> list[Row]:
    """Stretch and pitch shift of real cycles, on one thread."""
    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"].select(range(64))
    cycles = list(CycleWaveforms(table, 16000))
    draws = WaveformAugmentation(stretch=TimeStretch(1.0), pitch=PitchShift(1.0))
    (took,) = fastest(
        lambda: [draws(c, 16000, seed=0, epoch=0, cycle_index=i) for i, c in enumerate(cycles)], repeats=setting.repeats
    )
    note = f"each of {len(cycles)} real cycles stretched and shifted in pitch"
    return [Row("stretch and pitch", len(cycles) / took, None, "cycles/s", None, ">= 20", note)]
