"""The sampler that a recipe asks for."""

import logging
import os
from typing import Any

from laennec.corpora.base import column_of
from laennec.training.metadata_groups import GroupTable
from laennec.training.recipe import ConfigError, Recipe
from laennec.training.samplers import (
    AnchorPositiveSampler,
    ClassesTimesSamplesSampler,
    DeviceBalancedSampler,
    EpochSampler,
    LengthBucketSampler,
    MetadataMatchedSampler,
    PatientBalancedSampler,
    own_sampler,
)
from laennec.training.targets import Targets

_log = logging.getLogger(__name__)


def sampler_of_recipe(name: str, recipe: Recipe, targets: Targets, table: Any, lengths: Any = None) -> tuple[Any, int]:
    """A sampler by name, and how many rows a batch of it has (on one process).

    Args:
        name: As in sampler.name.
        recipe: All settings.
        targets: Labels of the training part.
        table: Cycle table of the training part, labelled rows only.
        lengths: Length of each of its rows; length_bucketed needs them.

    Raises:
        ConfigError: The corpus cannot fill such batches, or a column that the sampler needs is unknown.
    """
    if recipe.sampler.class_ is not None and name == recipe.sampler.name:
        return own_sampler(recipe.sampler, table, recipe.train.batch_size, recipe.seed, recipe.folders)
    groups = GroupTable(len(targets.class_ids), targets.metadata, recipe.metadata.age_edges_years)
    try:
        if name == "length_bucketed":
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            size, seed = recipe.train.batch_size, recipe.seed
            sampler: Any = LengthBucketSampler(lengths, size, seed, processes=processes)
        else:
            sampler = _built_in(name, recipe, targets, column_of(table, "patient_id"), groups)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"sampler.name is {name}: {error}") from error
    return sampler, sampler.rows_per_batch or recipe.train.batch_size


def _built_in(name: str, recipe: Recipe, targets: Targets, patients: list[str], groups: GroupTable) -> Any:
    size, seed, s = recipe.train.batch_size, recipe.seed, recipe.sampler
    if name == "anchor_positive":
        return AnchorPositiveSampler(targets.class_ids, size, seed=seed)
    if name == "patient_balanced":
        return PatientBalancedSampler(patients, s.patients, s.samples, seed=seed)
    if name == "classes_times_samples":
        return ClassesTimesSamplesSampler(targets.class_ids, s.classes, s.samples, seed=seed)
    if name not in ("metadata_matched", "device_balanced"):
        return EpochSampler(len(targets.class_ids), seed=seed)
    names = s.columns if name == "metadata_matched" else ["device"]
    where = "sampler.columns" if name == "metadata_matched" else "sampler.name: device_balanced"
    codes = groups.codes(names, s.missing, where)
    if (codes < 0).any():
        kept = "sampler.missing: own_group keeps them, as one group"
        _log.warning("sampler: %s %s; they are left out (%s)", ", ".join(names), groups.whose(codes), kept)
    columns = [groups.column(column, where) for column in names]
    if name == "metadata_matched":
        return MetadataMatchedSampler(columns, size, patients, s.missing, seed)
    return DeviceBalancedSampler(columns[0], s.devices, s.samples, s.missing, seed)
