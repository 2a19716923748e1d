"""Which runs a study is made of.

Decisions: a study is methods times axes times seeds, all written in one file; a cell is one training of it, and its
name says what sets it apart from the others. A method is what is compared: the runs of one name, over seeds and folds.
Which patients a run of any seed sees is the recipe's `corpus.split_seed`, so methods can be paired; where the split
itself is the question, `splits: own` draws one for each seed, and nothing is paired. A label fraction
draws with the seed as its number, so that the spread over seeds holds that of the labels too.
"""

import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from laennec.errors import InputError
from laennec.training.recipe import Recipe

_KEYS = (
    "name", "description", "output_dir", "results", "baseline", "seeds", "folds", "score", "evaluate", "methods",
    "axes", "ensembles", "figures", "splits",
)  # fmt: skip
_METHOD_KEYS = ("recipe", "name", "set", "seeds", "folds", "score", "evaluate", "pretrain", "classical")
_SCORE_KEYS = ("split", "corpus", "data_dir", "protocol", "level", "tables_dir", "allow_missing", "fold", "name")
_EVALUATE_KEYS = ("smoothing", "draws")
_NAMED_AXES = {"label_fractions": "corpus.label_fraction"}
_LABELS = ("corpus.label_fraction", "corpus.label_draw")  # pre-training does not look at them
CLASSICAL = {"gradient_boosting": "gradient boosting", "svc": "SVC"}  # kind -> what tables call it


@dataclass(frozen=True)
class Score:
    """A split that every run is scored on, once.

    Attributes:
        split: The split.
        corpus: Settings of another corpus than the run's own ("name", "data_dir", "protocol", ...); empty for its own.
        name: What the folder of the results is called after `evaluation-`.
    """

    split: str
    corpus: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        method: What it is compared as; equal for all its seeds and folds.
        title: The method's own name, equal at all places of the axes.
        recipe: The recipe's file.
        seed: Of the run.
        fold: Of the protocol, where the study has folds.
        settings: Dotted settings that replace the recipe's.
        places: Value by axis, for tables and pictures.
        pretrained_as: What the pre-training of its encoder is called, equal for all cells that share one; "" where the
            encoder is not pre-trained first.
        classical: Classifiers that are fitted on the run's embeddings too.
        scores: The splits that the run is scored on.
        evaluate: smoothing and draws of `laennec evaluate`.
    """

    method: str
    recipe: Path
    seed: int
    fold: int | None
    settings: Mapping[str, Any]
    places: Mapping[str, str]
    pretrained_as: str = ""
    classical: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    title: str = ""
    evaluate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The cell's folder below that of the study."""
        return f"{_plain(self.method)}/{self._number}"

    @property
    def pretraining_name(self) -> str:
        """The folder of its pre-training below that of the study."""
        return f"{_plain(self.pretrained_as)}-pretraining/{self._number}"

    @property
    def _number(self) -> str:
        return f"{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: For folders and tables.
        description: One sentence.
        output_dir: Where the runs go.
        results: The results file that tables are rendered from.
        baseline: The method that the others are compared with. Without its axes the name stands for the method at the
            same place on the axes as each other one.
        cells: The runs, in the order they are made.
        ensembles: Methods whose runs are also joined into an ensemble.
        figures: Names of the figures that tables show.
        own_splits: Whether each seed draws its own split.
    """

    name: str
    description: str
    output_dir: Path
    results: Path
    baseline: str | None
    cells: tuple[Cell, ...]
    ensembles: tuple[str, ...]
    figures: tuple[str, ...]
    own_splits: bool = False

    @property
    def against(self) -> dict[str, str]:
        """The baseline of each method, where it is another at other places of the axes; empty where it is one."""
        if self.baseline is None or any(cell.method == self.baseline for cell in self.cells):
            return {}
        there = {tuple(cell.places.items()): cell.method for cell in self.cells if cell.title == self.baseline}
        return {cell.method: there[tuple(cell.places.items())] for cell in self.cells}

    def members(self, method: str) -> list[Cell]:
        """The runs of a method."""
        return [cell for cell in self.cells if cell.method == method]


def load_study(path: str | Path) -> Study:
    """Read a study file and every recipe that it names.

    Raises:
        InputError: The file or a recipe cannot be read, a key is unknown, two cells would be one, a setting does not
            exist; nothing has been run then.
    """
    path = Path(path)
    values = read_mapping(path, "study")
    refuse_unknown(values, _KEYS, f"{path}")
    methods = _list_of_mappings(values.get("methods"), f"{path}: methods")
    if not methods:
        raise InputError(f"{path}: methods is missing; list at least one recipe, e.g. methods: [{{recipe: FILE}}]")
    name = str(values.get("name") or path.stem)
    output = Path(str(values.get("output_dir") or Path("runs") / "studies" / name))
    axes = _axes(values.get("axes") or {}, path)
    cells = [cell for method in methods for cell in _cells(method, values, axes, path)]
    _refuse_twins(cells, path)
    names = list(dict.fromkeys(cell.method for cell in cells))
    baseline = values.get("baseline")
    titles = [cell.title for cell in cells]
    known = [(baseline, [*names, *titles])] if baseline is not None else []
    for asked, among in [*known, *((asked, names) for asked in _names(values.get("ensembles"), names))]:
        if asked not in among:
            near = difflib.get_close_matches(str(asked), among, n=1, cutoff=0.0)[0]
            raise InputError(f"{path}: {asked!r} is no method of this study; did you mean {near!r}?")
    if (splits := values.get("splits", "shared")) not in ("shared", "own"):
        raise InputError(f"{path}: splits is {splits!r}; it can be shared or own")
    own_splits = splits == "own"
    ensembles = _ensembles(values.get("ensembles"), cells, own_splits, path)
    return Study(
        name,
        str(values.get("description") or ""),
        output,
        Path(str(values.get("results") or output / "results.json")),
        baseline,
        tuple(cells),
        ensembles,
        tuple(values.get("figures") or ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc")),
        own_splits,
    )


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that holds keys and values.

    Raises:
        InputError: It cannot be read or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the {what}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the {what} is not UTF-8 text; give a YAML file") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a {what} is a mapping of keys to values, this is {type(values).__name__}")
    return values


def refuse_unknown(values: Any, known: tuple[str, ...], where: str) -> None:
    """Refuse keys that mean nothing.

    Raises:
        InputError: Names the key and the nearest one.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: must be keys and values, not {values!r}")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


def _list_of_mappings(value: Any, where: str) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    made = [{"recipe": item} if isinstance(item, str) else item for item in items]
    if not all(isinstance(item, dict) for item in made):
        raise InputError(f"{where}: must be a list of keys and values")
    return made


def _ensembles(value: Any, cells: list[Cell], own_splits: bool, path: Path) -> tuple[str, ...]:
    """Methods whose runs form an ensemble; `all` are those whose runs can."""
    names = list(dict.fromkeys(cell.method for cell in cells))
    reasons = {cell.method: why for cell in cells if (why := _no_ensemble(cell, own_splits))}
    asked = _names(value, [name for name in names if name not in reasons])
    for name in asked:
        if name in reasons:
            raise InputError(f"{path}: ensembles: the runs of {name!r} {reasons[name]}; remove it from ensembles")
    return tuple(asked)


def _no_ensemble(cell: Cell, own_splits: bool) -> str:
    """Why the runs of its method cannot form an ensemble; empty where they can."""
    if cell.fold is not None:
        return "are folds: the test patients of one are training patients of another"
    if own_splits:
        return "have a split each: the test patients of one are training patients of another"
    if cell.settings.get("corpus.label_fraction", 1) < 1:
        return "have a draw of labels each: together they use more labels than their fraction"
    return ""


def _names(value: Any, every: list[str]) -> list[str]:
    """`all`, or the names that are listed."""
    if value in (None, False):
        return []
    if value in (True, "all"):
        return every
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _axes(value: Any, path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Each axis as {label: settings}.

    An axis is `label_fractions: [0.1, 1.0]`, a setting with its values (`train.epochs: [2, 8]`), or a free name
    with named groups of settings (`encoders: {mn04: {encoder.weights: ...}, ...}`).
    """
    if not isinstance(value, dict):
        raise InputError(f"{path}: axes must be keys and values, not {value!r}")
    axes = {}
    for name, given in value.items():
        if isinstance(given, dict) and given and all(isinstance(v, dict) for v in given.values()):
            axes[str(name)] = {str(label): flat(settings) for label, settings in given.items()}
        elif isinstance(given, list) and given:
            key = _NAMED_AXES.get(str(name), str(name))
            axes[str(name)] = {f"{_short(key)} {_text(item)}": {key: item} for item in given}
        else:
            raise InputError(
                f"{path}: axes.{name} must be a list of values, or names with settings each, e.g. "
                "{small: {encoder.config.width_mult: 0.4}}"
            )
    return axes


def without_labels(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as pre-training sees them."""
    return {key: value for key, value in settings.items() if key not in _LABELS}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted ones; `loss.auxiliary` and the like stay whole."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and not prefix and value:
            made |= flat(value, f"{key}.")
        else:
            made[f"{prefix}{key}"] = value
    return made


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1].replace("_", " ")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cells(
    method: dict[str, Any], values: Mapping[str, Any], axes: Mapping[str, Mapping[str, dict[str, Any]]], path: Path
) -> list[Cell]:
    """The trainings of one method, each of whose settings is tried on its recipe."""
    refuse_unknown(method, _METHOD_KEYS, f"{path}: methods")
    if "recipe" not in method:
        raise InputError(f"{path}: a method names no recipe; write recipe: FILE")
    recipe, own = Path(str(method["recipe"])), flat(method.get("set") or {})
    title = str(method.get("name") or Recipe.from_yaml(recipe).name)
    seeds = _numbers(method.get("seeds", values.get("seeds", [0])), "seeds", path)
    folds: list[int | None] = [None]
    if (asked := method.get("folds", values.get("folds"))) is not None:
        folds = list(_numbers(asked, "folds", path))
    classical = tuple(_names(method.get("classical"), list(CLASSICAL)))
    for kind in classical:
        if kind not in CLASSICAL:
            raise InputError(f"{path}: classical is {kind!r}; it can be {', '.join(CLASSICAL)}")
    scores = _scores(method.get("score", values.get("score")), path)
    evaluate: dict[str, Any] = {}
    for given in (values.get("evaluate") or {}, method.get("evaluate") or {}):
        refuse_unknown(given, _EVALUATE_KEYS, f"{path}: evaluate")
        evaluate |= given
    cells = []
    for labels in itertools.product(*axes.values()):
        places = dict(zip(axes, labels, strict=True))
        settings = dict(own)
        for axis, label in places.items():
            settings |= axes[axis][label]
        shown = [axis for axis in places if len(axes[axis]) > 1]
        name = ", ".join([title, *(places[axis] for axis in shown)])
        Recipe.from_yaml(recipe, **{**settings, "name": name})
        # one pre-training serves all cells that differ in nothing that it looks at
        seen = [axis for axis in shown if any(set(given) - set(_LABELS) for given in axes[axis].values())]
        pretrained = ", ".join([title, *(places[axis] for axis in seen)]) if method.get("pretrain") else ""
        cells += [
            Cell(name, recipe, seed, fold, settings, places, pretrained, classical, scores, title, evaluate)
            for seed in seeds
            for fold in folds
        ]
    return cells


def _numbers(value: Any, key: str, path: Path) -> list[int]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        raise InputError(f"{path}: {key} is {value!r}; it must be a list of whole numbers from 0, e.g. [0, 1, 2]")
    return items


def _refuse_twins(cells: list[Cell], path: Path) -> None:
    """Two cells in one folder would be one run."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in seen:
            raise InputError(
                f"{path}: two runs are called {cell.name!r}; give one of the methods another name, and seeds once"
            )
        seen[cell.name] = cell


def _scores(value: Any, path: Path) -> tuple[Score, ...]:
    items = value if isinstance(value, list) else [value if value is not None else "test"]
    scores = []
    for item in items:
        given = {"split": item} if isinstance(item, str) else item
        refuse_unknown(given, _SCORE_KEYS, f"{path}: score")
        split = str(given.get("split", "test"))
        corpus = {("name" if key == "corpus" else key): v for key, v in given.items() if key not in ("split", "name")}
        name = given.get("name") or (f"{corpus['name']}-{split}" if "name" in corpus else split)
        scores.append(Score(split, corpus, str(name)))
    if len({score.name for score in scores}) < len(scores):
        raise InputError(f"{path}: score lists the same split twice; give one of them a name")
    return tuple(scores)
