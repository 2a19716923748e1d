"""Study files: methods, axes and seeds, and the trainings that follow from them.

Decisions: a cell is one training, and its name states how it differs from the others. A method is what is compared: the
cells of one name, over seeds and folds. All seeds share the split of the recipe's `corpus.split_seed`, so methods can
be paired; with `splits: own` each seed draws its own split, and nothing is paired. The labelled part (`label_fraction`)
is drawn with the seed, so that the spread over seeds includes that of the draw.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt

from laennec.errors import InputError, did_you_mean
from laennec.sections import Section
from laennec.training.recipe import Recipe, recipe_folder

_LABEL_FRACTION = "corpus.label_fraction"
# sections and settings that pre-training uses; cells that differ only in others share one pre-training
_PRETRAINING = ("seed", "corpus", "features", "encoder", "metadata", "pretrain", "head.pooling", "train.threads")
_NOT_PRETRAINING = (
    *(_LABEL_FRACTION, "corpus.label_draw", "encoder.trainable", "encoder.train_last_layers", "encoder.lora"),
)
CLASSICAL = {"gradient_boosting": "gradient boosting", "svc": "SVC"}  # kind -> name in tables


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_mapping(key: str) -> BeforeValidator:
    """Read a text as a mapping with this one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Score(Section):
    """A split that every run is scored on, once; the flags of `laennec evaluate`."""

    split: str = "test"  # the split
    # the results are in `evaluation-<name>`; None: the split, after the corpus where one is given
    name: str | None = None
    corpus: str | None = None  # another corpus than the run's own, with the settings below it
    data_dir: str | None = None
    protocol: str | None = None
    allow_missing: bool | None = None

    @property
    def flags(self) -> dict[str, Any]:
        """Settings of the corpus by the names of flags."""
        return self.model_dump(exclude={"split", "name"}, exclude_none=True)

    @property
    def corpus_settings(self) -> dict[str, Any]:
        """Settings of the corpus by their names in a recipe."""
        return {"name" if key == "corpus" else key: value for key, value in self.flags.items()}

    def folder(self, run: Path) -> Path:
        """The folder of the results below that of a run."""
        return run / f"evaluation-{self.name or '-'.join(filter(None, (self.corpus, self.split)))}"


class _Evaluate(Section):
    smoothing: Literal["auto", "none"] | Annotated[float, Field(ge=0, le=1)] | None = None
    spans: Literal["events", "windows"] | None = None


class Data(Section):
    """Size and source of a corpus, for a dry run without it."""

    cycles: int | None = None  # number of its cycles, all splits together
    seconds: float | None = None  # their mean length
    source: str | None = None  # where to get it; None for the address and the licence of the corpus' class
    licence: str | None = None  # its licence


class Published(Section):
    """The numbers of a publication."""

    source: str  # the publication, and its table or figure
    split: str  # the split of its numbers
    selection: str  # the data on which its epochs were chosen, or "not stated"
    # {method: {metric: the number as printed}}; a method may have its own split and selection
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    note: str = ""  # a sentence below the table


_Numbers = Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], BeforeValidator(_as_list), Field(min_length=1)]
_Scores = Annotated[tuple[Annotated[Score, _as_mapping("split")], ...], BeforeValidator(_as_list)]
_Names = Annotated[tuple[str, ...] | Literal["all"], BeforeValidator(lambda v: v if v == "all" else _as_list(v))]


class _Method(Section):
    recipe: str
    name: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: _Numbers | None = None
    folds: _Numbers | None = None
    score: _Scores | None = None
    evaluate: _Evaluate = _Evaluate()
    pretrain: bool = False
    classical: _Names = ()


class _StudyFile(Section):
    methods: Annotated[
        tuple[Annotated[_Method, _as_mapping("recipe")], ...], BeforeValidator(_as_list), Field(min_length=1)
    ]
    name: str | None = None
    description: str = ""  # one sentence
    output_dir: Path | None = None
    results: Path | None = None
    # the method that the others are compared with. A name without axis values means: each method is compared with the
    # baseline at the same axis values
    baseline: str | None = None
    seeds: _Numbers = (0,)
    folds: _Numbers | None = None
    score: _Scores = (Score(),)
    evaluate: _Evaluate = _Evaluate()
    axes: dict[str, Any] = Field(default_factory=dict)
    ensembles: _Names = ()
    figures: tuple[str, ...] = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc")  # names of the metrics in tables
    splits: Literal["shared", "own"] = "shared"  # "own": each seed draws its own split
    published: Published | None = None  # published numbers, for the table beside ours
    # size and source of corpora, by Hub repository or last folder of corpus.data_dir
    data: dict[str, Data] = Field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    method: str  # the name under which it is compared, equal for all its seeds and folds
    recipe: Path  # the recipe's file
    seed: int  # of the run
    fold: int | None = None  # of the protocol, where the study has folds
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted settings that replace the recipe's
    places: Mapping[str, str] = field(default_factory=dict)  # value by axis, for tables and plots
    pretrained_as: str = ""  # name of the pre-training of its encoder, equal for all cells that share it; "" for none
    classical: tuple[str, ...] = ()  # classifiers that are also fitted on the run's embeddings
    scores: tuple[Score, ...] = ()  # the splits that the run is scored on
    title: str = ""  # the method's own name, equal for all values of the axes
    evaluate: Mapping[str, Any] = field(default_factory=dict)  # `smoothing` and `spans` of `laennec evaluate`

    @property
    def name(self) -> str:
        """The cell's folder below that of the study."""
        return f"{folder_name(self.method)}/{self._number}"

    @property
    def pretraining_name(self) -> str:
        """The folder of its pre-training below that of the study; cells that differ in labels alone share it."""
        return f"{folder_name(self.pretrained_as)}-pretraining/{self._number}"

    @property
    def _number(self) -> str:
        return f"{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


class Study(_StudyFile):
    """The content of a study file, and the trainings that follow from it."""

    name: str  # for folders and tables
    output_dir: Path  # folder of the runs
    results: Path  # the results file, from which tables are rendered
    ensembles: tuple[str, ...]  # methods whose runs also form an ensemble
    cells: tuple[Cell, ...]  # the trainings, in the order of the file

    @property
    def baselines(self) -> dict[str, str]:
        """The baseline of each method and ensemble; empty for a study without baseline."""
        if self.baseline is None:
            return {}
        there = {tuple(cell.places.items()): cell.method for cell in self.cells if cell.title == self.baseline}
        if any(cell.method == self.baseline for cell in self.cells):
            there = {tuple(cell.places.items()): self.baseline for cell in self.cells}
        named = {cell.method: there[tuple(cell.places.items())] for cell in self.cells}
        return named | {ensemble_name(cells): named[cells[0].method] for cells in self.members}

    @property
    def members(self) -> list[list[Cell]]:
        """The cells of each ensemble: the seeds of a method, of one fold where it has folds."""
        found: dict[tuple[str, int | None], list[Cell]] = {}
        for cell in self.cells:
            if cell.method in self.ensembles:
                found.setdefault((cell.method, cell.fold), []).append(cell)
        return list(found.values())


def result_folders(study: Study, cell: Cell) -> list[Path]:
    """The folders of a cell's results."""
    return [study.output_dir / cell.name, *(classical_folder(study, cell, kind) for kind in cell.classical)]


def classical_folder(study: Study, cell: Cell, kind: str) -> Path:
    """The folder of the results of a classifier on a cell's embeddings."""
    return study.output_dir / f"{cell.name}-{kind}"


def ensemble_folder(study: Study, members: Sequence[Cell]) -> Path:
    """The folder of an ensemble."""
    first, fold = members[0], "" if members[0].fold is None else f"-fold{members[0].fold}"
    return study.output_dir / f"{Path(first.name).parent}-ensemble" / f"{len(members)}{fold}"


def overrides(study: Study, cell: Cell) -> dict[str, Any]:
    """The settings of a cell that replace those of its recipe."""
    given = dict(cell.settings) | {"name": cell.method, "seed": cell.seed}
    if cell.fold is not None:
        given["corpus.fold"] = cell.fold
    if study.splits == "own":
        given["corpus.split_seed"] = cell.seed
    if "corpus.label_fraction" in given:
        given["corpus.label_draw"] = cell.seed
    return given


def recipe_of_cell(study: Study, cell: Cell) -> Recipe:
    """The recipe of a cell with all its settings."""
    given = overrides(study, cell)
    if cell.pretrained_as:
        given["encoder.weights"] = str(study.output_dir / cell.pretraining_name / "encoder")
    return Recipe.from_yaml(cell.recipe, **given)


def find_study(name: str | Path) -> Path:
    """The file of a study, from its path or from the name of a study of the package."""
    path, folder = Path(name), recipe_folder() / "studies"
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if str(name) not in names:
        hint = did_you_mean(str(name), names, cutoff=0)
        raise InputError(f"{name}: no such file, and no study of this name{hint}")
    return folder / f"{name}.yaml"


def load_study(path: str | Path) -> Study:
    """Read a study, by its path or its name in the package, and every recipe that it names."""
    named, path = Path(path), find_study(path)
    content = _StudyFile.read(path, "study")
    name = content.name or path.stem
    output = content.output_dir or Path("runs") / "studies" / name
    axes = {axis: _axis(axis, values, path) for axis, values in content.axes.items()}
    cells = [cell for method in content.methods for cell in _cells(method, content, axes, path)]
    folders = [cell.name for cell in cells]
    if twins := [folder for folder in folders if folders.count(folder) > 1]:
        raise InputError(f"{path}: two runs are called {twins[0]!r}; give each method another name, and each seed once")
    methods = list(dict.fromkeys(cell.method for cell in cells))
    reasons = {cell.method: why for cell in cells if (why := _no_ensemble(cell, cells, content.splits == "own"))}
    ensembles = content.ensembles
    if ensembles == "all":
        ensembles = tuple(method for method in methods if method not in reasons)
    beside = {f"{folder_name(method)}-ensemble" for method in ensembles}
    beside |= {str(Path(cell.pretraining_name).parent) for cell in cells if cell.pretrained_as}
    for method in methods:
        if not (folder := folder_name(method)).strip(".") or folder in beside:
            raise InputError(f"{path}: the method {method!r} would have no folder of its own; give it another name")
    if content.baseline is not None:
        _refuse_unknown_method(content.baseline, [*methods, *(cell.title for cell in cells)], path)
    for method in ensembles:
        _refuse_unknown_method(method, methods, path)
        if method in reasons:
            raise InputError(f"{path}: ensembles: the runs of {method!r} {reasons[method]}; remove it from ensembles")
    for method in content.published.values if content.published else ():
        _refuse_unknown_method(method, methods, path)
    found = {
        "name": name,
        "output_dir": output,
        # results of a study of the package lie with its runs, in any working directory
        "results": (path == named and content.results) or output / "results.json",
        "ensembles": ensembles,
        "cells": tuple(cells),
    }
    return Study.model_construct(**{**dict(content), **found})


def _refuse_unknown_method(name: str, methods: Sequence[str], path: Path) -> None:
    if name not in methods:
        raise InputError(f"{path}: {name!r} is no method of this study{did_you_mean(name, methods, cutoff=0)}")


def _no_ensemble(cell: Cell, cells: Sequence[Cell], own_splits: bool) -> str:
    """Why the runs of its method cannot form an ensemble; empty where they can."""
    if own_splits:
        return "have different splits: the test patients of one are training patients of another"
    if cell.settings.get(_LABEL_FRACTION, 1) < 1:
        return "have different draws of labels: together they use more labels than their fraction"
    if len({one.seed for one in cells if one.method == cell.method}) < 2:
        return "have one seed"
    return ""


def _axis(name: str, values: Any, path: Path) -> dict[str, dict[str, Any]]:
    """An axis as {label: settings}.

    In the file it is `label_fractions: [0.1, 1.0]`, a setting with its values (`train.epochs: [2, 8]`), or a free name
    with named groups of settings (`encoders: {mn04: {encoder.weights: ...}, ...}`).
    """
    if isinstance(values, dict) and values and all(isinstance(settings, dict) for settings in values.values()):
        return {str(label): flat(settings) for label, settings in values.items()}
    if not isinstance(values, list) or not values:
        raise InputError(
            f"{path}: axes.{name} must be a list of values, or names with settings each, e.g. "
            "{small: {encoder.config.width_mult: 0.4}}"
        )
    key = _LABEL_FRACTION if name == "label_fractions" else name
    title = key.rpartition(".")[2].replace("_", " ")
    return {f"{title} {item:g}" if isinstance(item, float) else f"{title} {item}": {key: item} for item in values}


def of_pretraining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted settings that pre-training uses."""
    used = {key: value for key, value in settings.items() if key in _PRETRAINING or key.split(".")[0] in _PRETRAINING}
    return {key: value for key, value in used.items() if not key.startswith(_NOT_PRETRAINING)}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of settings as dotted settings; what is nested deeper stays as it is."""
    dotted: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            dotted |= {f"{key}.{inner}": given for inner, given in value.items()}
        else:
            dotted[key] = value
    return dotted


def ensemble_name(members: Sequence[Cell]) -> str:
    """The name under which an ensemble is compared."""
    return f"{members[0].method}, ensemble of {len(members)}"


def folder_name(name: str) -> str:
    """The folder of a method's runs below that of its study."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def _has_folds(corpus: Any) -> bool:
    from laennec.corpora.load import protocol_of  # imports datasets
    from laennec.corpora.splits import WITH_FOLDS

    return protocol_of(corpus.name, corpus.protocol) in WITH_FOLDS


def _refuse_taken(settings: Mapping[str, Any], study: _StudyFile, folds: bool, where: str) -> None:
    """Refuse settings that the study itself sets for each of its trainings."""
    taken = {"seed": "seeds", "name": "name of the method", "output_dir": "output_dir of the study"}
    taken |= {"corpus.fold": "folds"} if folds else {}
    taken |= {"corpus.label_draw": "seeds"} if _LABEL_FRACTION in settings else {}
    taken |= {"corpus.split_seed": "seeds"} if study.splits == "own" else {}
    if found := [key for key in settings if key in taken]:
        raise InputError(f"{where}: the study itself sets {found[0]}; give {taken[found[0]]} instead")


def _cells(
    method: _Method, study: _StudyFile, axes: Mapping[str, Mapping[str, dict[str, Any]]], path: Path
) -> list[Cell]:
    """The trainings of one method; its recipe is read with the settings of each."""
    recipe = Path(method.recipe)
    title = method.name or Recipe.from_yaml(recipe).name
    scores = method.score or study.score
    if len({score.folder(Path()) for score in scores}) < len(scores):
        raise InputError(f"{path}: score lists the same split twice; give one of them a name")
    classical = tuple(CLASSICAL) if method.classical == "all" else method.classical
    if unknown := [kind for kind in classical if kind not in CLASSICAL]:
        raise InputError(f"{path}: classical is {unknown[0]!r}; it can be {', '.join(CLASSICAL)}")
    evaluate = study.evaluate.model_dump(exclude_none=True) | method.evaluate.model_dump(exclude_none=True)
    varied = [axis for axis in axes if len(axes[axis]) > 1]
    # cells that differ only in settings that pre-training ignores share one pre-training
    matter = [axis for axis in varied if any(of_pretraining(given) for given in axes[axis].values())]
    cells = []
    for labels in itertools.product(*axes.values()):
        places = dict(zip(axes, labels, strict=True))
        settings = flat(method.set)
        for axis, label in places.items():
            settings |= axes[axis][label]
        name = ", ".join([title, *(places[axis] for axis in varied)])
        _refuse_taken(settings, study, bool(method.folds or study.folds), f"{path}: {name}")
        try:
            corpora = Recipe.from_yaml(recipe, **{**settings, "name": name}).corpus.each
        except InputError as error:
            raise InputError(f"{path}: {name}: {str(error).removeprefix('command line: ')}") from error
        folds = method.folds or study.folds or (None,)
        if any(folds) and not any(_has_folds(one) for one in corpora):
            raise InputError(f"{path}: folds: the protocol of {name} has none; set corpus.protocol: patient-5fold")
        last = max(fold or 0 for fold in folds)
        if last > 4 and any(one.protocol == "patient-5fold" for one in corpora):
            raise InputError(f"{path}: folds: there is no fold {last}; patient-5fold has folds 0 to 4")
        pretrained = ", ".join([title, *(places[axis] for axis in matter)]) if method.pretrain else ""
        cells += [
            Cell(name, recipe, seed, fold, settings, places, pretrained, classical, scores, title, evaluate)
            for seed in method.seeds or study.seeds
            for fold in folds
        ]
    return cells
