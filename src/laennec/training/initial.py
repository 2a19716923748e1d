"""Start a training from a trained model (its encoder, and its head where the labels agree), or learn from a teacher.

Decisions: the recipe's front end must equal the model's, because an encoder on other features fails silently; no
setting is changed to fit. A head that is kept keeps its input scale too, so that training begins with the model's own
predictions. A run lists the patients and sounds that it was trained on in a separate file, which no export holds; a
model with such a file is refused if validation or test has one of them that the recipe does not train on. Exports hold
no patient ids, not even hashed: ids are short, so a hash is undone by trying all ids. A model card names corpus and
split, from which whoever has a public corpus can list the patients.

A teacher (distillation) predicts each training cycle once, without augmentation, and its calibrated probabilities are
mixed into the labels, so every task loss, every augmentation and a frozen encoder work as without it. Validation and
test keep their labels, and so do the groups of auxiliary losses and samplers. A teacher that was trained on held-out
patients is refused, because these choose the epoch and the thresholds.

Reference: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laennec.audio.features import LaennecFeatureExtractor
from laennec.cache import cache_root
from laennec.corpora.copies import describe_audio, find_described
from laennec.corpora.recordings import named
from laennec.encoders import Wrapper, encoder_digest
from laennec.errors import InputError, in_known_form
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.split_data import SplitData, make_extractor, make_split
from laennec.training.devices import training_device
from laennec.training.embeddings import EmbeddingCache, embed_cycles
from laennec.training.pretraining.dataset import check_note, patients_of, pretraining_note, seen_patients
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, write_record
from laennec.training.tables import head_logits

TRAINED_ON = "trained_on.json"  # in the folder of a run
_log = logging.getLogger(__name__)
_HEAD = ("problem_type", "pooling", "head_layer_norm", "head_relu", "concatenated_context")
_BOOKKEEPING = ("feature_extractor_type", "processor_class", "return_attention_mask", "padding_value", "padding_side")


@dataclass(frozen=True)
class InitialModel:
    """A trained model that a training starts from."""

    source: str
    model: LaennecForAudioClassification
    extractor: LaennecFeatureExtractor
    trained_on: list[dict[str, Any]]  # note of each training set, latest first; empty if unknown

    @classmethod
    def of(cls, recipe: Recipe) -> "InitialModel | None":
        """The model that a recipe names in `initial_model`, if any."""
        if recipe.initial_model is None:
            return None
        source = recipe.initial_model
        start = cls.load(source)
        if start.model.config.lora:
            start.model.merge_adapters()
        kind = getattr(start.encoder, "kind", None)
        if recipe.encoder.class_ is None and kind not in (None, recipe.encoder.type):
            raise InputError(
                f"{source}: has a {kind} encoder, encoder.type is {recipe.encoder.type}; set encoder.type: {kind}"
            )
        return start

    @classmethod
    def load(cls, source: str) -> "InitialModel":
        """Load a model, and the notes of its training sets."""
        from laennec.evaluation.evaluate import load_model

        return cls(source, *load_model(source), read_trained_on(source))

    @property
    def encoder(self) -> Any:
        """The encoder without its wrapper (frame groups, layers); the recipe adds its own."""
        encoder: Any = self.model.encoder
        return encoder.encoder if isinstance(encoder, Wrapper) else encoder

    @property
    def base(self) -> str | None:
        """Source of the encoder's weights; None if they were trained since."""
        config = self.model.config
        untrained = config.frozen_encoder and config.encoder_digest == encoder_digest(self.model.encoder)
        return config.base_model_name_or_path if untrained else None

    def refuse_other_front_end(self, recipe: Recipe) -> None:
        """Refuse a recipe whose features are not those of the model."""
        own, given = self.extractor.to_dict(), make_extractor(recipe.features).to_dict()
        names = [name for name in sorted({*own, *given} - {*_BOOKKEEPING}) if own.get(name) != given.get(name)]
        if names:
            said = ", ".join(f"{name} {own.get(name)} (recipe: {given.get(name)})" for name in names[:4])
            raise InputError(f"{self.source}: has another front end: {said}; set the recipe's features to these")

    def refuse_seen_patients(self, splits: Mapping[str, Any]) -> None:
        """Refuse a split whose held-out patients or sounds the model was trained on."""
        if not self.trained_on:
            _log.warning(
                "%s: the patients it was trained on are unknown (no %s); make sure that validation and test have none",
                self.source,
                TRAINED_ON,
            )
            return
        patients, described = patients_of(splits["train"]), describe_audio([splits["train"]])
        for name in (name for name in splits if name != "train"):
            own = set(find_described(described, splits[name]))
            for note in self.trained_on:
                both = sorted((seen_patients(note, splits) & patients_of(splits[name])) - patients)
                sounds = sorted({*find_described(note.get("sounds") or {}, splits[name])} - own)
                if both or sounds:
                    what = (
                        f"patients of {name} ({', '.join(both[:3])})" if both else f"sounds of {name} ({named(sounds)})"
                    )
                    raise InputError(
                        f"{self.source}: was trained on {what}; split the corpus as for that model (corpus.protocol, "
                        "corpus.split_seed), or start from another one"
                    )

    def keep_head(self, model: LaennecForAudioClassification) -> bool:
        """Copy this model's head (and weights of layers) into a new model if form and labels fit; return whether so."""
        known, names = self.model.config.label_names, model.config.label_names
        if _wrapping(model.encoder) != _wrapping(self.model.encoder):
            return False
        if (weights := getattr(self.model.encoder, "layer_weights", None)) is not None:
            model.encoder.layer_weights.data.copy_(weights)
        wanted = model.head.state_dict()
        state = {n: value for n, value in self.model.head.state_dict().items() if not n.startswith("member_")}
        if not set(names) <= set(known) or any(
            getattr(model.config, name) != getattr(self.model.config, name) for name in _HEAD
        ):
            return False
        rows = [known.index(name) for name in names]
        state |= {name: state[name][rows] for name in ("classifier.weight", "classifier.bias")}
        if {name: value.shape for name, value in state.items()} != {n: value.shape for n, value in wanted.items()}:
            return False
        model.head.load_state_dict(state)
        model.head.kept = True
        return True

    def facts(self, kept: bool) -> dict[str, Any]:
        """The description of this model for the run record."""
        sets = [{k: v for k, v in note.items() if k != "sounds"} for note in self.trained_on]
        return {
            "model": self.source,
            "encoder_digest": encoder_digest(self.model.encoder),
            "labels": self.model.config.label_names,
            "head": "kept" if kept else "new",
            "trained_on": [one | {"patients": len(one["patients"])} for one in sets],
        }


def _wrapping(encoder: Any) -> Any:
    """Which layers or groups of frames an encoder embeds; None for the encoder's own embedding."""
    return (type(encoder), encoder.config.geometry) if isinstance(encoder, Wrapper) else None


def soften_labels(recipe: Recipe, training: SplitData, splits: Mapping[str, Any]) -> InitialModel | None:
    """Mix the probabilities of the recipe's teacher into the training labels, in place.

    Returns:
        The teacher, None without one.

    Raises:
        InputError: The teacher lacks a label, takes other input, or was trained on held-out patients.
    """
    if recipe.loss.teacher is None:
        return None
    source, weight, targets = recipe.loss.teacher, recipe.loss.teacher_weight, training.targets
    teacher = InitialModel.load(source)
    model, extractor, known = teacher.model, teacher.extractor, teacher.model.config.label_names
    if not model.config.is_multi_label or not set(targets.names) <= set(known):
        raise InputError(
            f"loss.teacher {source}: predicts {', '.join(known)}, not {', '.join(targets.names)}, each independently; "
            "choose another teacher"
        )
    if extractor.context_cycles or extractor.recording_filter != make_extractor(recipe.features).recording_filter:
        takes = "concatenated context" if extractor.context_cycles else "recordings filtered in another way"
        raise InputError(f"loss.teacher {source}: takes {takes}; choose another teacher")
    teacher.refuse_seen_patients(splits)
    data = make_split("train", training.table, recipe, extractor, targets.names, train=False)  # at the teacher's rate
    model.to(training_device())  # type: ignore[arg-type]
    cache = EmbeddingCache(cache_root(), model, extractor)
    logits = head_logits(model.head, embed_cycles(data.dataset, data.keys(), cache))
    if not np.isfinite(logits).all():
        raise InputError(
            f"loss.teacher {source}: outputs NaN or infinity; check its weights, or choose another teacher"
        )
    probabilities = model.probabilities(torch.from_numpy(logits).to(training_device())).cpu().numpy()
    soft = probabilities[:, [known.index(name) for name in targets.names]]  # (cycles, labels)
    targets.labels = ((1 - weight) * targets.labels + weight * soft).astype(np.float32)
    return teacher


def read_trained_on(folder: str | Path) -> list[dict[str, Any]]:
    """The notes of a run's training sets, latest first; empty if unknown."""
    path = Path(folder) / TRAINED_ON
    if not path.is_file():
        return []
    with in_known_form(path, "restore it, or train the run again"):
        return [check_note(note, path) for note in read_record(path)["sets"]]


def write_trained_on(out: Path, splits: Mapping[str, Any], table: Any, *models: InitialModel | None) -> None:
    """Write the notes of a run's training set and of those of its initial model and teacher."""
    before = [note for model in models if model is not None for note in model.trained_on]
    write_record(out / TRAINED_ON, {"sets": [pretraining_note(splits, table), *before]})


def unite_trained_on(folders: Sequence[Path], out: Path) -> None:
    """Write the notes of all members of an ensemble; nothing if those of one are unknown."""
    of_members = [read_trained_on(folder) for folder in folders]
    if all(of_members):
        notes = {json.dumps(note, sort_keys=True): note for notes in of_members for note in notes}
        write_record(out / TRAINED_ON, {"sets": list(notes.values())})
