"""Scoring by several processes.

Decisions: what takes time is decoding and embedding, which processes share through the caches: each takes the next
recording, and the next shard of embeddings, that no other one works on. So the others only embed what the first one is
about to read; it alone scores and writes, and it makes what a dead one left.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from laennec.audio.features import LaennecFeatureExtractor
from laennec.evaluation.baselines import middle_segments, segment_length_s
from laennec.modeling import LaennecForAudioClassification
from laennec.packed_model import PackedModel
from laennec.processes import alongside
from laennec.training.data.windows import predict_windows
from laennec.training.recipe import Recipe


def embed_for_scoring(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    splits: Any,
    split: str,
    recipe: Recipe,
    windows: tuple[float, float] | None,
) -> None:
    """Embed what scoring a split reads."""
    from laennec.evaluation.evaluate import predict_split

    data = predict_split(model, extractor, splits[split], split, recipe)[2]
    segments = middle_segments(data.table, segment_length_s(splits.get("train", data.table)))
    predict_split(model, extractor, segments, split, recipe)
    if windows is not None:
        predict_windows(model, extractor, splits[split], split, recipe, *windows)


def helpers(
    jobs: int, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, *scored: Any
) -> AbstractContextManager[None]:
    """Processes that embed beside this one, as long as the block lasts."""
    return alongside(partial(_embed, PackedModel.of(model, extractor), scored) if jobs > 1 else print, jobs - 1)


def _embed(packed: PackedModel, scored: tuple[Any, ...]) -> None:
    embed_for_scoring(*packed.unpack(), *scored)
