"""Stage 8, training: whether the features of a recipe are the ones its encoder was made for.

Decided here: a front end that fits in shape can still be another one (a checkpoint for 8 kHz speech, or for sound that
is not standardised), and would give embeddings that are quietly worse. What a published preprocessor_config.json says
is compared before anything is computed. Nothing is changed behind a recipe's back.
"""

from typing import Any

from laennec.audio.presets import PRESETS
from laennec.encoders import TransformersEncoder
from laennec.encoders.pretrained_audio import published_features
from laennec.training.settings import ConfigError, Recipe


def refuse_other_features(recipe: Recipe, encoder: Any) -> None:
    """Refuse features that the encoder was not made for.

    Args:
        recipe: Its feature, encoder and augmentation settings are what errors name.
        encoder: Encoders other than transformers' are not looked at: their own front ends are checked by their shapes.

    Raises:
        ConfigError: Another preset, another sampling rate or standardisation than the checkpoint's, or feature masks
            on waveforms.
    """
    if not isinstance(encoder, TransformersEncoder):
        return
    given, kind = recipe.features.preset, recipe.encoder.type
    if given not in encoder.presets:
        raise ConfigError(
            f"features.preset is {given!r}, but this {kind} encoder was made for {' or '.join(encoder.presets)}; set "
            f"features.preset: {encoder.presets[0]}"
        )
    front = PRESETS[given]
    if front.is_waveform and recipe.augment.spec is not None:
        raise ConfigError(
            f"augment.spec masks mel bins, and features.preset {given!r} has none; leave augment.spec out, or use "
            "augment.noise, shift, stretch, pitch or gain"
        )
    published = published_features(recipe.encoder.weights, recipe.encoder.revision) if recipe.encoder.weights else {}
    rate = published.get("sampling_rate")
    if rate is not None and rate != front.sampling_rate:
        raise ConfigError(
            f"{recipe.encoder.weights}: the checkpoint was made for {rate} Hz, features.preset {given!r} gives "
            f"{front.sampling_rate} Hz; give a checkpoint for {front.sampling_rate} Hz"
        )
    standardised = published.get("do_normalize")
    if front.is_waveform and standardised is not None:
        wanted = "waveform" if standardised else "waveform-raw"
        if given != wanted:
            raise ConfigError(
                f"{recipe.encoder.weights}: the checkpoint says do_normalize: {str(bool(standardised)).lower()}; set "
                f"features.preset: {wanted}"
            )
