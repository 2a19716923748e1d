"""The recipe of an experiment: what can be set, how it is read, and which settings go together."""

from laennec.training.recipe.reading import find_recipe, full_key, recipe_folder, recipe_names
from laennec.training.recipe.recipe import Recipe, setting_keys, settings_help
from laennec.training.recipe.settings import (
    AugmentSettings,
    CorpusSettings,
    EncoderSettings,
    FeatureSettings,
    HeadSettings,
    LoraSettings,
    LossSettings,
    MetadataSettings,
    MixSettings,
    OwnObject,
    SamplerSettings,
    ScheduleSettings,
    TargetSettings,
)
from laennec.training.recipe.step_settings import (
    LICENCES,
    CardSettings,
    EvaluationSettings,
    PretrainSettings,
    TrainSettings,
)

__all__ = [
    "LICENCES",
    "AugmentSettings",
    "CardSettings",
    "CorpusSettings",
    "EncoderSettings",
    "EvaluationSettings",
    "FeatureSettings",
    "HeadSettings",
    "LoraSettings",
    "LossSettings",
    "MetadataSettings",
    "MixSettings",
    "OwnObject",
    "PretrainSettings",
    "Recipe",
    "SamplerSettings",
    "ScheduleSettings",
    "TargetSettings",
    "TrainSettings",
    "find_recipe",
    "full_key",
    "recipe_folder",
    "recipe_names",
    "setting_keys",
    "settings_help",
]
