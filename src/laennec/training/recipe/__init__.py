"""The recipe of an experiment: what can be set, how it is read, and which settings go together."""

from laennec.training.recipe.corpus_settings import CorpusSettings
from laennec.training.recipe.reading import find_recipe, full_key, recipe_folder, recipe_names
from laennec.training.recipe.recipe import Recipe, setting_keys, settings_help
from laennec.training.recipe.settings import (
    AugmentSettings,
    FeatureSettings,
    HeadSettings,
    LossSettings,
    MixSettings,
    TargetSettings,
)
from laennec.training.recipe.step_settings import LICENCES, CardSettings, PretrainSettings, TaskSettings

__all__ = [
    "LICENCES",
    "AugmentSettings",
    "CardSettings",
    "CorpusSettings",
    "FeatureSettings",
    "HeadSettings",
    "LossSettings",
    "MixSettings",
    "PretrainSettings",
    "Recipe",
    "TargetSettings",
    "TaskSettings",
    "find_recipe",
    "full_key",
    "recipe_folder",
    "recipe_names",
    "setting_keys",
    "settings_help",
]
