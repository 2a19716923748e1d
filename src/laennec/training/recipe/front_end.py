"""Whether the features of a recipe are the ones its encoder was made for.

Decisions: a front end that fits in shape can still be another one (a checkpoint for 8 kHz speech, or for sound that
is not standardised, or BEATs' scale for AST), and would give embeddings that are quietly worse. What a
preprocessor_config.json beside the weights says is compared before anything is computed; where there is none, trained
weights want the front end that their authors trained them with. Random weights take any that fits in shape. Nothing is
changed behind a recipe's back.
"""

from pathlib import Path
from typing import Any

from laennec.audio.presets import PRESETS
from laennec.encoders import CnnEncoder, TransformersEncoder
from laennec.encoders.pretrained_audio import published_features
from laennec.errors import InputError
from laennec.training.recipe.recipe import Recipe

# what published weights of our own networks were trained with
_MADE_FOR = {"ast": "ast", "beats": "beats", "mobilenet": "efficientat"}


def refuse_other_features(recipe: Recipe, encoder: Any) -> None:
    """Refuse features that the encoder was not made for.

    Args:
        recipe: Its feature, encoder and augmentation settings are what errors name.
        encoder: Loaded by the recipe's settings.

    Raises:
        InputError: Another preset, number of mel bins, sampling rate or standardisation than the encoder's, or feature
            masks on waveforms.
    """
    given, kind, weights = recipe.features.preset, recipe.encoder.type, recipe.encoder.weights
    front = PRESETS[given]
    in_folder = weights is not None and not Path(weights).is_file()
    published = published_features(str(weights), recipe.encoder.revision) if in_folder else {}
    if isinstance(encoder, TransformersEncoder):
        if given not in encoder.presets:
            raise InputError(
                f"features.preset is {given!r}, but this {kind} encoder was made for {' or '.join(encoder.presets)}; "
                f"set features.preset: {encoder.presets[0]}"
            )
    else:
        _refuse_another_preset(recipe, published.get("preset"))
        _refuse_mel_bins(recipe, encoder)
    if front.is_waveform and recipe.augment.spec is not None:
        raise InputError(
            f"augment.spec masks mel bins, and features.preset {given!r} has none; leave augment.spec out, or use "
            "augment.noise, shift, stretch, pitch or gain"
        )
    rate = published.get("sampling_rate")
    if rate is not None and rate != front.sampling_rate:
        raise InputError(
            f"{weights}: the checkpoint was made for {rate} Hz, features.preset {given!r} gives "
            f"{front.sampling_rate} Hz; give a checkpoint for {front.sampling_rate} Hz"
        )
    standardised = published.get("do_normalize")
    if front.is_waveform and standardised is not None:
        wanted = "waveform" if standardised else "waveform-raw"
        if given != wanted:
            raise InputError(
                f"{weights}: the checkpoint says do_normalize: {str(bool(standardised)).lower()}; set "
                f"features.preset: {wanted}"
            )


def _refuse_another_preset(recipe: Recipe, saved: Any) -> None:
    """Refuse trained weights of our own networks under another preset than the one beside them, or their authors'."""
    given, weights = recipe.features.preset, recipe.encoder.weights
    wanted = saved if saved in PRESETS else _MADE_FOR.get(recipe.encoder.type)
    if weights is None or wanted is None or given == wanted:
        return
    rates = [PRESETS[name].sampling_rate for name in (wanted, given)]
    raise InputError(
        f"{weights}: these weights were trained on features of preset {wanted!r} ({rates[0]} Hz), features.preset is "
        f"{given!r} ({rates[1]} Hz); set features.preset: {wanted}"
    )


def _refuse_mel_bins(recipe: Recipe, encoder: Any) -> None:
    """Refuse features with more or fewer mel bins than the encoder takes; a CNN takes any number."""
    front, takes = PRESETS[recipe.features.preset], getattr(encoder.config, "num_mel_bins", None)
    if isinstance(encoder, CnnEncoder):
        takes = None
    if front.is_waveform or (takes is not None and takes != front.feature_size):
        has = "sound itself" if front.is_waveform else f"{front.feature_size} mel bins"
        kind = recipe.encoder.type
        remedy = f"features.preset: {_MADE_FOR.get(kind, 'efficientat')}"
        if recipe.encoder.weights is None and takes is not None and not front.is_waveform:
            remedy += f", or encoder.config.num_mel_bins: {front.feature_size}"
        raise InputError(
            f"features.preset {recipe.features.preset!r} gives {has}, but this {kind} encoder takes "
            f"{'mel bins' if takes is None else f'{takes} mel bins'}; set {remedy}"
        )
