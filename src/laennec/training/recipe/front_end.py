"""Check that the features of a recipe are those of its encoder.

Decisions: features of the right shape can still be wrong (a checkpoint for 8 kHz, or for waveforms that are not
standardised, or BEATs' scale for AST) and would silently give worse embeddings. The preprocessor_config.json beside the
weights is compared before anything is computed; without one, trained weights need the preset that the encoder class
names. Random weights accept any features of the right shape. Settings are never changed silently.
"""

from pathlib import Path
from typing import Any

from laennec.audio.presets import PRESETS
from laennec.encoders import AudioEncoder, CnnEncoder, TransformersEncoder
from laennec.encoders.weights.checkpoints import published_features
from laennec.errors import InputError
from laennec.training.recipe.recipe import Recipe


def refuse_other_features(recipe: Recipe, encoder: Any) -> None:
    """Refuse features that the encoder was not trained with."""
    given, weights = recipe.features.preset, recipe.encoder.weights
    kind = recipe.encoder.class_ or recipe.encoder.type
    front = PRESETS[given]
    in_folder = weights is not None and not Path(weights).is_file()
    published = published_features(str(weights), recipe.encoder.revision) if in_folder else {}
    if isinstance(encoder, TransformersEncoder) and encoder.presets:
        if given not in encoder.presets:
            raise InputError(
                f"features.preset is {given!r}, but this {kind} encoder was made for {' or '.join(encoder.presets)}; "
                f"set features.preset: {encoder.presets[0]}"
            )
    else:
        _refuse_another_preset(recipe, published.get("preset"), getattr(encoder, "preset", None))
        if isinstance(encoder, AudioEncoder):
            _refuse_mel_bins(recipe, encoder)
        else:
            _refuse_other_shape(recipe, encoder)
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
                f"{weights}: the checkpoint has do_normalize: {str(bool(standardised)).lower()}; set "
                f"features.preset: {wanted}"
            )


def _refuse_another_preset(recipe: Recipe, saved: Any, own: str | None) -> None:
    """Refuse trained weights with another preset than the one saved beside them, or that of the encoder class."""
    given, weights = recipe.features.preset, recipe.encoder.weights
    wanted = saved if saved in PRESETS else own
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
        has = "a waveform" if front.is_waveform else f"{front.feature_size} mel bins"
        kind = recipe.encoder.class_ or recipe.encoder.type
        remedy = f"features.preset: {getattr(encoder, 'preset', None) or 'efficientat'}"
        if recipe.encoder.weights is None and takes is not None and not front.is_waveform:
            remedy += f", or encoder.config.num_mel_bins: {front.feature_size}"
        raise InputError(
            f"features.preset {recipe.features.preset!r} gives {has}, but this {kind} encoder takes "
            f"{'mel bins' if takes is None else f'{takes} mel bins'}; set {remedy}"
        )


def _refuse_other_shape(recipe: Recipe, encoder: Any) -> None:
    """Refuse features of another shape than those of the front end that a user's own encoder names."""
    front, own = PRESETS[recipe.features.preset], PRESETS.get(str(getattr(encoder, "preset", None)))
    if own is None or (front.is_waveform, front.feature_size) == (own.is_waveform, own.feature_size):
        return
    raise InputError(
        f"features.preset is {recipe.features.preset!r}, but the encoder {recipe.encoder.class_} was made for "
        f"{encoder.preset!r}; set features.preset: {encoder.preset}"
    )
