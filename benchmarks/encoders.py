"""How much time natural length saves with a frozen transformer.

Decisions: both sides have the same weights and cycles; the other side is transformers' encoder as usual, with every
cycle padded to the 30 s of Whisper's position embeddings.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.row import Row, Setting, fastest, needs
from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.encoders import load_encoder
from laennec.encoders.transformers_audio import sinusoids
from laennec.training.embeddings import length_batches

_CYCLES = 16


def natural_length(setting: Setting) -> list[Row]:
    """Frozen Whisper base on real cycles: natural length against 30 s, one thread, without feature extraction."""
    torch.set_num_threads(1)
    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    # spread over the corpus, so that lengths are those of the corpus
    cycles = list(CycleWaveforms(table.select(range(0, len(table), len(table) // _CYCLES)[:_CYCLES]), 16000))
    encoder = load_encoder(_whisper_beside(setting.weights), type="whisper", **_size(setting.weights))
    padded_encoder: Any = load_encoder(None, type="whisper", **_size(None)).model
    state = encoder.model.state_dict()
    state["embed_positions.weight"] = sinusoids(1500, int(encoder.config.hidden_size))
    padded_encoder.load_state_dict(state)
    natural = LaennecFeatureExtractor("whisper")
    filled = LaennecFeatureExtractor("whisper", length="zero", duration_s=30.0)
    batches = [
        natural([cycles[row] for row in rows], sampling_rate=16000) for rows in length_batches([len(c) for c in cycles])
    ]
    clips = filled(cycles, sampling_rate=16000)["input_values"].transpose(1, 2).split(4)

    def ours() -> None:
        with torch.inference_mode():
            for batch in batches:
                encoder(**batch)

    def theirs() -> None:
        with torch.inference_mode():
            for part in clips:
                padded_encoder(part)

    own, other = fastest(ours, theirs, repeats=min(setting.repeats, 3))
    seconds = sum(map(len, cycles)) / 16000 / len(cycles)
    rates = [len(cycles) / took for took in (own, other)]
    note = f"{len(cycles)} cycles of {seconds:.1f} s on average at their own length; theirs is filled up to 30 s"
    return [Row("frozen Whisper base", *rates, "cycles/s", other / own, ">= 3", note)]


def _whisper_beside(weights: str | None) -> Path | None:
    """Whisper's encoder in a folder beside the other weights; None for random weights, which take the same time."""
    folder = Path(weights).parent / "whisper_base_encoder" if weights else None
    return folder if folder is not None and folder.is_dir() else None


def _size(weights: str | None) -> dict[str, Any]:
    """The size of Whisper base, if no checkpoint gives it."""
    if _whisper_beside(weights) is not None:
        return {}
    return {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
