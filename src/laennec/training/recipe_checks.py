"""Recipes whose values, each of the right type, could not be followed or would mean nothing.

Decisions: what can be said of a recipe alone is said when it is read, in one line that names the setting; what
depends on the corpus waits for it. Settings that would have no effect are refused like wrong ones.
"""

import difflib
import math

from laennec.training.recipe_settings import ConfigError, Recipe

_CHOICES: dict[str, tuple[str, ...]] = {
    "target.problem_type": ("multi_label", "single_label"),
    "head.pooling": ("encoder", "mean"),
    "head.calibration": ("none", "temperature", "platt"),
    "loss.task": ("bce", "ce", "focal"),
    "loss.task_views": ("first", "all"),
    "sampler.name": (
        *("shuffle", "length_bucketed", "anchor_positive", "classes_times_samples"),
        *("patient_balanced", "device_balanced", "metadata_matched"),
    ),
    "sampler.missing": ("drop", "own_group"),
    "schedule.name": ("joint", "alternating", "two_stage"),
    "train.optimizer": ("adamw", "adam"),
    "train.lr_schedule": ("constant", "linear", "cosine"),
    "train.selection_metric": ("icbhi_score", "sprsound_score", "auroc_macro", "accuracy", "uar", "f1_macro", "loss"),
    "encoder.type": (
        *("mobilenet", "cnn", "ast", "beats", "statistics"),
        *("whisper", "wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-bert"),
        "clap",
    ),
    "encoder.trainable": ("full", "frozen", "last_n", "lora"),
    "features.preset": (
        *("ast", "beats", "song2021", "efficientat", "whisper", "whisper-128"),
        *("w2v-bert", "clap", "clap-fused", "waveform", "waveform-raw"),
    ),
}

_MINIMA: dict[int, tuple[str, ...]] = {
    1: (
        *("train.batch_size", "train.gradient_accumulation", "train.epochs", "train.evaluation_batch_size"),
        *("train.threads", "augment.copies"),
    ),
    0: (
        *("train.workers", "train.save_steps", "train.patience", "train.max_grad_norm", "train.weight_decay"),
        *("train.learning_rate", "schedule.pretrain_learning_rate", "schedule.head_learning_rate"),
        *("schedule.pretrain_epochs", "head.hidden_dim", "head.projection_dim", "loss.task_weight", "loss.focal_gamma"),
    ),
}


def check_recipe(recipe: Recipe, where: str) -> None:
    """Refuse values that would fail later, or fail to mean anything.

    Args:
        recipe: All settings, each of the right type.
        where: What the message begins with, such as the recipe's file.

    Raises:
        ConfigError: One of them, named with what it can be.
    """
    for key, choices in _CHOICES.items():
        group, name = key.split(".")
        value = getattr(getattr(recipe, group), name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: {key} is {value!r}; it can be {', '.join(choices)} (did you mean {near!r}?)")
    task, problem = recipe.loss.task, recipe.target.problem_type
    if (task, problem) in (("bce", "single_label"), ("ce", "multi_label")):
        right = "bce or focal" if problem == "multi_label" else "ce or focal"
        raise ConfigError(f"{where}: loss.task is {task!r}, but a {problem} head needs {right}")
    check_head(recipe, where)
    for minimum, keys in _MINIMA.items():
        for key in keys:
            group, name = key.split(".")
            value = getattr(getattr(recipe, group), name)
            if value is not None and not (value >= minimum and math.isfinite(value)):
                raise ConfigError(f"{where}: {key} is {value:g}; it must be at least {minimum}")
    if not 0 <= recipe.seed < 2**32:
        raise ConfigError(f"{where}: seed is {recipe.seed}; it must be a whole number from 0, below 2^32")
    if not 0 <= recipe.head.dropout < 1:
        raise ConfigError(f"{where}: head.dropout is {recipe.head.dropout:g}; it must lie in [0, 1)")
    if not 0 <= recipe.augment.concatenate_probability <= 1:
        given = f"{recipe.augment.concatenate_probability:g}"
        raise ConfigError(f"{where}: augment.concatenate_probability is {given}; it must lie in [0, 1]")
    if not 0 < recipe.corpus.validation_fraction < 1:
        raise ConfigError(f"{where}: corpus.validation_fraction must lie between 0 and 1")
    if not 0 < recipe.corpus.label_fraction <= 1 or recipe.corpus.label_draw < 0:
        raise ConfigError(
            f"{where}: corpus.label_fraction is {recipe.corpus.label_fraction:g}, label_draw "
            f"{recipe.corpus.label_draw}; give a fraction above 0 and at most 1, and a draw from 0"
        )
    _check_trainable(recipe, where)
    if recipe.encoder.frozen and recipe.loss.auxiliary:
        raise ConfigError(
            f"{where}: loss.auxiliary has nothing to train while encoder.frozen is true; set one of them otherwise"
        )
    _check_context(recipe, where)
    if recipe.encoder.group_frames < 0 or recipe.encoder.group_step < 1:
        raise ConfigError(f"{where}: encoder.group_frames must not be negative, encoder.group_step at least 1")
    if recipe.encoder.frozen and recipe.encoder.group_frames:
        raise ConfigError(f"{where}: encoder.group_frames is for an encoder that is trained; set encoder.frozen: false")
    _check_meetings(recipe, where)
    _check_rules(recipe, where)


def check_head(recipe: Recipe, where: str) -> None:
    """Refuse operating points that a head cannot have.

    Raises:
        ConfigError: An unknown rule, a sensitivity that no threshold reaches, or Platt for classes.
    """
    head, single = recipe.head, recipe.target.problem_type == "single_label"
    if head.threshold_rule not in (None, "youden", "f1", "icbhi", "sensitivity"):
        raise ConfigError(
            f"{where}: head.threshold_rule is {head.threshold_rule!r}; "
            "it can be youden, f1, icbhi, sensitivity or left out"
        )
    if not 0 < head.sensitivity <= 1:
        raise ConfigError(f"{where}: head.sensitivity is {head.sensitivity:g}; it must lie above 0 and at most at 1")
    if single and head.calibration == "platt":
        raise ConfigError(
            f"{where}: head.calibration is platt, which is for yes/no labels; a single_label head takes temperature"
        )


def _check_context(recipe: Recipe, where: str) -> None:
    """Refuse neighbours where there are none, and mixtures whose neighbours would be nobody's."""
    key, k = "features.context_cycles", recipe.features.context_cycles
    if k < 0:
        raise ConfigError(f"{where}: {key} is {k}; it must be a whole number from 0")
    if not k:
        return
    if recipe.corpus.level == "record":
        raise ConfigError(f"{where}: {key} is {k}, but with corpus.level: record a recording is one row without others")
    for name, given in (
        ("augment.mix", recipe.augment.mix is not None),
        ("augment.concatenate_probability", recipe.augment.concatenate_probability > 0),
    ):
        if given:
            raise ConfigError(
                f"{where}: {name} puts cycles of several recordings together, and {key} needs the neighbours of one; "
                "leave one of them out"
            )


def _check_trainable(recipe: Recipe, where: str) -> None:
    """Bring `frozen` and `trainable` together, and refuse what contradicts them."""
    e = recipe.encoder
    if e.frozen and e.trainable in ("last_n", "lora"):
        raise ConfigError(f"{where}: encoder.frozen is true, but encoder.trainable is {e.trainable}; drop one of them")
    e.frozen = e.frozen or e.trainable == "frozen"
    e.trainable = "frozen" if e.frozen else e.trainable
    if (e.trainable == "last_n") != (e.train_last_layers != 0):
        raise ConfigError(
            f"{where}: encoder.trainable is {e.trainable} and encoder.train_last_layers {e.train_last_layers}; "
            "last_n needs a number of layers, and nothing else has use for one"
        )
    if e.trainable in ("last_n", "lora") and e.weights is None:
        raise ConfigError(
            f"{where}: encoder.trainable is {e.trainable}, which would leave random weights as they are; give "
            "encoder.weights"
        )
    if e.frozen and recipe.sampler.name == "length_bucketed":
        raise ConfigError(
            f"{where}: sampler.name is length_bucketed, but batches of a frozen encoder hold embeddings, which have no "
            "length; set sampler.name: shuffle"
        )


def _auxiliary_kinds(recipe: Recipe) -> dict[str, str]:
    """Which loss each entry of loss.auxiliary is: its key `loss`, or else its name."""
    given = recipe.loss.auxiliary.items()
    return {name: str(values.get("loss", name)) if isinstance(values, dict) else name for name, values in given}


def _check_meetings(recipe: Recipe, where: str) -> None:
    """Refuse losses, samplers and mixtures that contradict one another."""
    kinds, mix, s = _auxiliary_kinds(recipe), recipe.augment.mix, recipe.sampler
    if "tuplet" in kinds.values() and s.name != "anchor_positive":
        raise ConfigError(f"{where}: the tuplet loss needs sampler.name: anchor_positive")
    if s.name == "metadata_matched" and not s.columns:
        raise ConfigError(f"{where}: sampler.name is metadata_matched; name sampler.columns, e.g. [age_band, sex]")
    by_cycle = ("device_adversarial", "clustering", "cluster_similarity", "reconstruction")
    alone = [name for name, kind in kinds.items() if kind not in by_cycle]
    if recipe.train.gradient_accumulation > 1 and alone:
        raise ConfigError(
            f"{where}: loss.auxiliary.{alone[0]} looks at pairs of a batch, and under train.gradient_accumulation it "
            "would see those of each small batch only: raise train.batch_size or use more processes instead"
        )
    contrast = [name for name, kind in kinds.items() if kind == "patch_mix"]
    if contrast and (mix is None or mix.method == "mixup"):
        raise ConfigError(
            f"{where}: loss.auxiliary.{contrast[0]} needs augment.mix with method: patch_mix (or group_mix)"
        )
    if mix is None:
        return
    if recipe.encoder.frozen:
        raise ConfigError(
            f"{where}: augment.mix comes before the encoder, which runs once while encoder.frozen is true"
        )
    if recipe.loss.task == "focal" and (not contrast or recipe.loss.task_views == "all"):
        raise ConfigError(f"{where}: the focal loss is not defined for the soft labels of augment.mix; use ce or bce")
    knows_none = ("clustering", "cluster_similarity", "reconstruction")
    without_class = [name for name, kind in kinds.items() if kind not in ("add", "patch_mix", *knows_none)]
    if without_class and not contrast:
        raise ConfigError(
            f"{where}: loss.auxiliary.{without_class[0]} needs one class or group for each cycle, and augment.mix "
            "leaves none; of the auxiliary losses add knows soft labels"
        )


def _check_rules(recipe: Recipe, where: str) -> None:
    """Refuse optimisation rules that cannot be followed."""
    t = recipe.train
    if t.sam_rho is not None and (t.sam_rho < 0 or t.gradient_accumulation > 1):
        raise ConfigError(
            f"{where}: train.sam_rho must not be negative, and its climb needs the gradient of the whole batch: set "
            "train.gradient_accumulation to 1"
        )
    if len(t.betas) != 2 or not all(0 <= beta < 1 for beta in t.betas):
        raise ConfigError(f"{where}: train.betas is {t.betas}; it must be two numbers in [0, 1)")
    if t.moving_average is not None and not 0 <= t.moving_average < 1:
        raise ConfigError(f"{where}: train.moving_average is {t.moving_average}; it must lie in [0, 1)")
    if not 0 <= t.warmup_fraction < 1:  # from 1 on, transformers would count steps
        raise ConfigError(f"{where}: train.warmup_fraction is {t.warmup_fraction:g}; it must lie in [0, 1)")
    if t.max_steps != -1 and t.max_steps < 1:
        raise ConfigError(f"{where}: train.max_steps is {t.max_steps}; it must be at least 1, or -1 for no limit")
    if t.epoch_cosine and t.warmup_fraction:
        raise ConfigError(f"{where}: train.epoch_cosine has no warm-up; set train.warmup_fraction to 0")
