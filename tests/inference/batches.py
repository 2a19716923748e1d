"""Recordings and results that the tests of batches have in common."""

import shutil
from pathlib import Path

import torch

from laennec.audio.cycles import cut
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.evaluation.evaluate import load_model
from laennec.inference.batch.run import Predictor


class Counting(Predictor):
    """Remembers what it was asked to compute."""

    def __call__(self, path, annotation=None, listener=None):
        self.computed = [*getattr(self, "computed", []), Path(path).name]
        return super().__call__(path, annotation, listener)


def copied(corpus, folder, *names):
    """Recordings of a corpus with their annotations under other names; one whose name ends in "bad" is no sound."""
    sounds = iter(sorted(corpus.glob("*.wav")))
    for name in names:
        if name.endswith("bad"):
            (folder / f"{name}.wav").write_text("no sound")
            continue
        sound = next(sounds)
        for suffix in (".wav", ".txt"):
            shutil.copy(sound.with_suffix(suffix), folder / f"{name}{suffix}")
    return folder


def content(folder):
    """Name and bytes of each file."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def by_hand(source, path, spans, base=None):
    """Outputs of a model for spans, one at a time (read, filter, cut, features, model), and its configuration."""
    model, extractor = load_model(source, base)
    settings = extractor.recording_filter
    filter_ = ButterworthFilter(**settings) if settings else None
    recording = read_recording(path, extractor.sampling_rate, filter=filter_)
    rows = []
    for start, end in spans(recording.duration_s):
        sound = cut(recording.waveform, recording.sampling_rate, start, end)
        with torch.inference_mode():
            rows.append((start, end, model(**extractor(sound, sampling_rate=extractor.sampling_rate, filtered=True))))
    return rows, model.config
