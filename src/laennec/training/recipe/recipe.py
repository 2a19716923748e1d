"""The recipe of one experiment, as a typed model.

Decisions: types and rules are checked when a recipe is read, not when a value is first used hours later; what depends
on the corpus is checked once the corpus is read. A setting without an effect is refused like a wrong one. A recipe
holds no paths of one machine: folders are given by flag, or relative to the working directory.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, StrictInt, ValidationError, model_validator

from laennec.errors import InputError
from laennec.extension import load_object
from laennec.files import find_data
from laennec.losses import AUXILIARY_LOSSES, Loss
from laennec.training.recipe.corpus_settings import Corpora, CorpusSettings
from laennec.training.recipe.reading import (
    corpora_of,
    explained,
    find_recipe,
    full_key,
    override,
    read_values,
    refuse_old_keys,
    renewed,
    settings_of,
)
from laennec.training.recipe.settings import (
    AugmentSettings,
    EncoderSettings,
    FeatureSettings,
    HeadSettings,
    LossSettings,
    MetadataSettings,
    SamplerSettings,
    ScheduleSettings,
    Settings,
    TargetSettings,
)
from laennec.training.recipe.step_settings import (
    CardSettings,
    EvaluationSettings,
    PretrainSettings,
    TaskSettings,
    TrainSettings,
)


class Recipe(Settings):
    """One experiment: corpus, features, encoder, losses, schedule, and how it is trained.

    Sections are keyword arguments, as objects or nested dictionaries: `Recipe(train={"epochs": 3})`.

    Raises:
        InputError: A key is unknown (the nearest valid one is named), or a value is not allowed.
    """

    name: str = Field(
        default="unnamed", description="name of the experiment; its run is runs/NAME if output_dir is left out"
    )
    description: str = Field(default="", description="what it does, in one line")
    seed: StrictInt = Field(default=0, ge=0, lt=2**32, description="seed of weights, order and draws")
    output_dir: str | None = Field(default=None, description="folder of the run")
    initial_model: str | None = Field(
        default=None,
        description="a trained model to start from (--init): folder of a run or an exported model, or Hub id; its "
        "encoder replaces encoder.weights, and its head is kept where the labels agree",
    )
    corpus: Corpora = Field(default_factory=CorpusSettings)
    target: TargetSettings = Field(default_factory=TargetSettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    head: HeadSettings = Field(default_factory=HeadSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    tasks: dict[str, TaskSettings] = Field(
        default_factory=dict,
        description=f"auxiliary tasks with a head each; name: {{{', '.join(TaskSettings.model_fields)}}}",
    )
    metadata: MetadataSettings = Field(default_factory=MetadataSettings)
    sampler: SamplerSettings = Field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    card: CardSettings = Field(default_factory=CardSettings)
    pretrain: PretrainSettings | None = None

    _folders: list[Path] = PrivateAttr(default_factory=list)

    def __init__(self, **values: Any) -> None:
        refuse_old_keys(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(explained(type(self), error)) from error

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a recipe file.

        Args:
            path: A YAML file, or the name of a recipe that comes with the package ("sprsound/bce_mobilenet"). Relative
                paths in it are looked for in the working directory, then in the folder that LAENNEC_DATA names.
            **overrides: Values that replace those of the file: `train__epochs=3`, or `**{"train.epochs": 3}`. The last
                part is enough where it names one setting. Text is read as YAML.

        Raises:
            InputError: The file cannot be read, or as for the class; the message begins with the file.
        """
        found = find_recipe(path)
        values = read_values(found)
        given = {full_key(cls, name.replace("__", ".")): value for name, value in overrides.items()}
        for key, value in given.items():
            override(cls, values, key, value)
        values = copy.deepcopy(values)  # the caller's values do not change
        for group in (*corpora_of(values), values.get("encoder")):
            for key in ("data_dir", "tables_dir", "weights") if isinstance(group, dict) else ():
                if isinstance(group.get(key), str):
                    group[key] = find_data(group[key])
        recipe = cls._of(values, f"{found} with {', '.join(given)} given" if given else str(found))
        recipe._folders = [found.absolute().parent]
        # not checked for records: laennec calibrate changes their rule
        if recipe.head.sensitivity != HeadSettings().sensitivity and recipe.head.threshold_rule != "sensitivity":
            raise InputError(
                f"{found}: head.sensitivity needs head.threshold_rule: sensitivity; set both, or leave it out"
            )
        return recipe

    @classmethod
    def from_record(cls, config: Mapping[str, Any], where: str = "run.json") -> Self:
        """Make a recipe of the settings that a run recorded, also under the keys of the first edition.

        Args:
            config: Plain values, as `to_dict` gives them.
            where: The file, for errors.

        Raises:
            InputError: As for the class.
        """
        if not isinstance(config, Mapping):
            raise InputError(f"{where}: its settings are {config!r:.40}, no mapping; give the record of a run")
        return cls._of(renewed(config), where)

    @classmethod
    def _of(cls, values: Mapping[Any, Any], where: str) -> Self:
        try:
            return cls(**{str(key): value for key, value in values.items()})
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with some settings replaced.

        Args:
            overrides: Dotted key to value, as in `from_yaml`.

        Raises:
            InputError: As for the class.
        """
        values = self.model_dump(by_alias=True)
        for name, value in overrides.items():
            override(type(self), values, full_key(type(self), name), value)
        recipe = self._of(values, "command line")
        recipe._folders = self.folders
        return recipe

    def with_target(self, target: TargetSettings) -> Self:
        """A copy with this target, and the task loss that goes with it where none is named.

        Raises:
            InputError: The target does not go with other settings.
        """
        task = self.loss.task or ("ce" if target.problem_type == "single_label" else "bce")
        recipe = self.model_copy(update={"target": target, "loss": self.loss.model_copy(update={"task": task})})
        for problem in (*recipe._problems(), *recipe._loss_problems()):
            raise InputError(problem)
        return recipe

    @property
    def folders(self) -> list[Path]:
        """Folders, besides the working directory, that dotted names are imported from."""
        return list(self._folders)

    @property
    def standardises(self) -> bool:
        """Whether the head's input is scaled: head.standardise, or else whether the encoder is frozen."""
        # a scaled input would change the balance of the losses of a trained encoder
        return self.encoder.frozen if self.head.standardise is None else self.head.standardise

    def corpus_facts(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """What a record states of the corpus: name, fingerprint, provenance, and where it is on this machine.

        The absolute paths (data_dir, tables_dir) let a run be scored from another folder than it was trained in.
        """
        facts = {"name": self.corpus.name, "fingerprint": source.get("corpus_fingerprint"), "provenance": source}
        each = {one.name: _places(one) for one in self.corpus.each}
        return facts | ({"corpora": each} if self.corpus.corpora else each[self.corpus.name])

    def encoder_type(self) -> Any:
        """The type of encoder by name, or the author's class, which is imported here.

        Raises:
            InputError: The class cannot be imported.
        """
        dotted = self.encoder.class_
        return self.encoder.type if dotted is None else load_object(dotted, "encoder.class", self.folders)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, with `head.standardise` as it is used."""
        values = self.model_dump(by_alias=True)
        values["head"]["standardise"] = self.standardises
        return values

    def identity(self) -> dict[str, Any]:
        """All settings, to compare with those of any run; types left out are filled in as the first edition did."""
        values = self.to_dict()
        values["target"]["problem_type"] = values["target"]["problem_type"] or "multi_label"
        values["loss"]["task"] = values["loss"]["task"] or "bce"
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.to_dict() == other.to_dict()

    def loss_names(self) -> dict[str, str]:
        """Built-in loss of each entry of loss.auxiliary: its key `loss`, or else its name; "" with a `class`."""
        named = {}
        for name, entry in self.loss.auxiliary.items():
            given = entry if isinstance(entry, dict) else {}
            named[name] = "" if "class" in given else str(given.get("loss", name))
        return named

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.initial_model is not None:
            self.encoder = self.encoder.model_copy(update={"weights": self.initial_model, "revision": None})
        for problem in (*self._problems(), *self._loss_problems()):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Conflicts between features, encoder, head, sampler and augmentation."""
        single, mix, augment = self.target.problem_type == "single_label", self.augment.mix, self.augment
        if single and self.head.calibration == "platt":
            yield (
                "head.calibration is platt, which is for yes/no labels; set head.calibration: temperature for a "
                "single_label head"
            )
        if self.encoder.trainable in ("last_n", "lora") and self.encoder.weights is None:
            kept = f"encoder.trainable is {self.encoder.trainable}, which would keep random weights"
            yield f"{kept}; give encoder.weights"
        if self.encoder.frozen and self.loss.auxiliary:
            yield "loss.auxiliary has nothing to train with encoder.trainable: frozen; change one of them"
        if self.encoder.frozen and self.sampler.name == "length_bucketed":
            yield (
                "sampler.name is length_bucketed, but batches of a frozen encoder hold embeddings, which have no "
                "length; set sampler.name: shuffle"
            )
        if self.encoder.frozen and mix is not None:
            yield (
                "augment.mix changes the encoder's input, and a frozen encoder runs once; set encoder.trainable or "
                "leave augment.mix out"
            )
        key, k = "features.context_cycles", self.features.context_cycles
        if k and (level := self.corpus.each[0].level) in ("record", "recording"):
            yield f"{key} is {k}, but with corpus.level: {level} a recording is one row; leave one of them out"
        concatenates = augment.concatenate_probability > 0
        if self.loss.teacher is not None and (single or concatenates):
            other = "target.problem_type: single_label" if single else "augment.concatenate_probability"
            yield f"loss.teacher gives a probability to each label of a single cycle; leave it or {other} out"
        if k and (mix is not None or concatenates):
            name = "augment.concatenate_probability" if mix is None else "augment.mix"
            yield (
                f"{name} combines cycles of several recordings, and {key} needs the neighbours of one recording; "
                "leave one of them out"
            )

    def _loss_problems(self) -> Iterator[str]:
        """Conflicts between losses, labels, batches and mixing."""
        kinds, mix, task, problem = self.loss_names(), self.augment.mix, self.loss.task, self.target.problem_type
        if (task, problem) == ("ce", "multi_label"):
            yield "loss.task is 'ce', but a multi_label head needs bce or focal"
        if "tuplet" in kinds.values() and self.sampler.name != "anchor_positive" and self.sampler.class_ is None:
            yield "loss.auxiliary: the tuplet loss needs sampler.name: anchor_positive"
        if self.loss.balance is not None:
            yield from self._balance_problems()
        facts = {name: AUXILIARY_LOSSES[kind] for name, kind in kinds.items() if kind in AUXILIARY_LOSSES}
        pairs = [name for name, kind in facts.items() if getattr(kind, "across_cycles", Loss.across_cycles)]
        if self.train.gradient_accumulation_steps > 1 and pairs:
            yield (
                f"loss.auxiliary.{pairs[0]} looks at pairs of a batch, and with train.gradient_accumulation_steps it "
                "would use the pairs of each small batch only; raise train.batch_size or use more processes instead"
            )
        contrast = [name for name, kind in kinds.items() if kind == "patch_mix"]
        if contrast and (mix is None or mix.method == "mixup"):
            yield f"loss.auxiliary.{contrast[0]} needs augment.mix with method: patch_mix (or group_mix)"
        if mix is not None and task == "focal" and (not contrast or self.loss.task_views == "all"):
            yield "loss.task: focal is not defined for the soft labels of augment.mix; use ce or bce"

    def _balance_problems(self) -> Iterator[str]:
        """Why no step has the gradients of both an auxiliary loss and the task loss."""
        if not self.loss.auxiliary:
            lacks = "loss.auxiliary is empty"
        elif not self.loss.task_weight:
            lacks = "loss.task_weight is 0"
        elif self.schedule.name != "joint":
            lacks = f"schedule.name: {self.schedule.name} trains the encoder without the task loss"
        else:
            return
        yield (
            f"loss.balance is {self.loss.balance:g}, the ratio of an auxiliary loss's gradient to that of the task "
            f"loss, but {lacks}; change one of them"
        )


def setting_keys() -> list[str]:
    """Every setting of a recipe as a dotted key, in order."""
    return list(settings_of(Recipe))


def settings_help() -> str:
    """Every setting with its values, default and description, a line each."""
    lines = []
    for s in settings_of(Recipe).values():
        default = "" if s.default is None else f", default {s.default}"
        lines.append(f"  --{s.key} ({s.values}{default}){': ' if s.description else ''}{s.description}")
    return "\n".join(lines)


def _places(corpus: CorpusSettings) -> dict[str, str]:
    """The absolute paths of a corpus on this machine."""
    named = {key: getattr(corpus, key) for key in ("data_dir", "tables_dir")}
    places = {key: Path(find_data(name)).expanduser().absolute() for key, name in named.items() if name}
    return {key: str(path) for key, path in places.items() if path.exists()}
