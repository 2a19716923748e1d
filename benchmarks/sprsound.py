"""Embeddings of SPRSound's train patients, for the studies that train heads on them. Test splits are not read."""

from typing import Any

import numpy as np
import pandas as pd

from laennec.cache import cache_root
from laennec.corpora import load_corpus
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
    recipe.encoder.weights, recipe.encoder.trainable, recipe.encoder.layers = weights, "frozen", list(layers)
    recipe.features.context_cycles = context_cycles
    table = load_corpus("sprsound", data_dir, protocol="none")["all"]
    table = table.select([row for row, part in enumerate(table["part"]) if part == "train"])
    extractor = make_extractor(recipe.features)
    split = make_split("train", table, recipe, extractor, None, False)
    model = make_model(recipe, split.targets.names)
    values = embed_cycles(model, extractor, split.dataset, split.keys(), EmbeddingCache(cache_root(), model, extractor))
    return values, table.select_columns(["cycle_id", "recording_id", "patient_id", *LABELS]).to_pandas()
