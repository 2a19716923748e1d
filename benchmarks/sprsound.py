"""Embeddings of SPRSound's train patients, for the studies that train heads on them. Test splits are not read."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from laennec.cache import cache_root
from laennec.corpora import load_corpus
from laennec.encoders.masks import TimeMask
from laennec.training.data.split_data import make_extractor, make_split
from laennec.training.embeddings import EmbeddingCache, embed_cycles
from laennec.training.recipe import Recipe
from laennec.training.run import make_model

LABELS = ("crackle", "wheeze")


def embedded_train_split(
    data_dir: str, weights: str, layers: Any = (), context_cycles: int = 0
) -> tuple[np.ndarray[Any, Any], pd.DataFrame]:
    """Embeddings (events, dim) by a frozen encoder, and the rows of the events: ids, patients and labels."""
    recipe = Recipe(name="sprsound")
    recipe.encoder.layers, recipe.features.context_cycles = list(layers), context_cycles
    model, extractor, split, rows = _train_split(recipe, data_dir, weights)
    cache = EmbeddingCache(cache_root(), model, extractor)
    return embed_cycles(split.dataset, split.keys(), cache), rows


def train_split_before_last_layers(
    data_dir: str, weights: str, layers: int, corpus: str = "sprsound"
) -> tuple[np.ndarray[Any, Any], nn.Module, pd.DataFrame]:
    """Inputs of a mobilenet's last layers for events of two seconds, these layers, and the rows of the events.

    Args:
        data_dir: Folder of the corpus.
        weights: Weights of the mobilenet.
        layers: Number of last blocks; the last convolution comes after them.
        corpus: "sprsound", or another corpus, of which all cycles are used.

    Returns:
        float32 (events, channels, frequency, time), the layers, and rows as in `embedded_train_split`.
    """
    recipe = Recipe(name=corpus)
    recipe.features.preset, recipe.features.length, recipe.features.duration_s = "efficientat", "repeat", 2.0
    model, extractor, split, rows = _train_split(recipe, data_dir, weights, corpus)
    encoder, seen = model.encoder, []
    first = encoder.blocks[-layers]
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))
    with torch.no_grad():
        for row in range(len(rows)):
            made = extractor([split.dataset.waveforms[row]], sampling_rate=extractor.sampling_rate, filtered=True)
            model.embed(made["input_values"])
    hook.remove()
    return np.concatenate(seen), LastLayers(encoder.blocks[-layers:], encoder.last), rows


class LastLayers(nn.Module):
    """Last layers of a mobilenet: (batch, channels, frequency, time) of equal lengths -> embeddings (batch, dim)."""

    def __init__(self, blocks: nn.ModuleList, last: nn.Module) -> None:
        super().__init__()
        self.blocks, self.last = blocks, last

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings: the mean over frequency and time."""
        mask = TimeMask.of(None)
        for block in self.blocks:
            x, mask = block(x, mask)
        return self.last(x, mask).mean((2, 3))


def _train_split(
    recipe: Recipe, data_dir: str, weights: str, corpus: str = "sprsound"
) -> tuple[Any, Any, Any, pd.DataFrame]:
    """A frozen model, its feature extractor, the split and its rows."""
    recipe.encoder.weights, recipe.encoder.trainable = weights, "frozen"
    table = load_corpus(corpus, data_dir, protocol="none", **{} if corpus == "sprsound" else {"allow_missing": True})[
        "all"
    ]
    if corpus == "sprsound":
        table = table.select([row for row, part in enumerate(table["part"]) if part == "train"])
    extractor = make_extractor(recipe.features)
    split = make_split("train", table, recipe, extractor, None, False)
    rows = table.select_columns(["cycle_id", "recording_id", "patient_id", "device", "age_years", *LABELS]).to_pandas()
    return make_model(recipe, split.targets.names).eval(), extractor, split, rows
