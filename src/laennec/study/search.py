"""Search of settings on validation patients, with Optuna.

Decisions: a trial is one training of the recipe with drawn settings; its value is the selection metric of its best
epoch on validation, and no test split is read. Protocols whose validation may share patients with train are refused,
because a search would choose models that memorise patients. Optuna keeps the trials in a SQLite file; the same command
continues an interrupted search, and a killed trial continues from its last checkpoint.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StrictInt, model_validator
from transformers import TrainerCallback

from laennec.corpora.load import protocol_of
from laennec.corpora.splits import protocol_named
from laennec.errors import InputError, did_you_mean
from laennec.files import atomic_write, try_lock
from laennec.sections import Section
from laennec.training.recipe import Recipe, setting_keys
from laennec.training.record import read_record, write_record
from laennec.training.run import train
from laennec.training.tables import SELECTION_METRICS

_FREE = ("loss.auxiliary.", "corpus.options.", "encoder.config.", "tasks.")  # keys with free names
_SHARED = ("corpus.", "output_dir", "train.selection_metric", "target.")  # all trials must have the same


class Range(Section):
    """The values of one setting: choices, or a range of numbers."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give choices, or low and high (with log or step), not both")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("needs numbers low < high, or choices")
        elif self.log and (self.low <= 0 or self.step):
            raise ValueError("log: true needs low above 0, and no step")
        return self

    def ends(self) -> list[Any]:
        """Every choice, or both ends of the range."""
        return [self.low, self.high] if self.choices is None else self.choices

    def draw(self, trial: Any, key: str) -> Any:
        """Draw a value in an Optuna trial."""
        if self.choices is not None:
            # Optuna stores only plain values, so lists and mappings are stored as JSON
            return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


class Space(Section):
    """The settings that are searched."""

    space: Annotated[dict[str, Range], Field(min_length=1)]  # {dotted setting: its values}
    trials: Annotated[StrictInt, Field(ge=1)] = 20  # number of trainings, finished or stopped early
    seed: Annotated[StrictInt, Field(ge=0)] = 0  # of the draws
    sampler: Literal["tpe", "random"] = "tpe"  # "tpe" (uses earlier trials) or "random"
    # "median" stops trials that fall behind the median of the others; "none" stops none
    pruner: Literal["median", "none"] = "median"

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        keys = setting_keys()
        for key in self.space:
            if key not in keys and not key.startswith(_FREE):
                raise ValueError(f"space: unknown setting {key!r}{did_you_mean(key, keys, cutoff=0)}")
            if key.startswith(_SHARED):
                raise ValueError(f"space: {key} determines what trials are measured on; all trials must share it")
        return self


@dataclass
class SearchResult:
    """The result of a search."""

    folder: Path  # has search.db, search.json, best.yaml and a folder for each trial
    best: dict[str, Any]  # settings of the best trial
    value: float  # its selection metric on validation
    finished: int  # number of finished trials
    stopped: int  # number of trials that were stopped early


class _Report(TrainerCallback):
    """Reports each epoch to Optuna, and stops the trial where Optuna prunes it."""

    def __init__(self, trial: Any, metric: str, sign: float, stop: type[BaseException]) -> None:
        self.trial, self.metric, self.sign, self.stop = trial, metric, sign, stop

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        value = (metrics or {}).get(f"eval_{self.metric}")
        if value is None:
            return
        self.trial.report(self.sign * float(value), round(state.epoch or 0))
        if self.trial.should_prune():
            raise self.stop


def search(
    recipe: Recipe,
    space: Space,
    command: str = "",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Search a recipe's settings on its validation patients; `best.yaml` in the folder is the recipe with the best."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("--search needs optuna; install it: pip install 'laennec[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # an error in a trial ends the search with its own message
    folder = Path(recipe.output_dir or Path("runs") / f"{recipe.name}-search")
    _check(recipe, space)
    _prepare_folder(folder, recipe, space, overwrite)
    with try_lock(folder / "search") as alone:
        if not alone:
            raise InputError(f"{folder}: another process searches here; wait for it, or choose another --output_dir")
        study = _open(optuna, folder, space)
        metric = SELECTION_METRICS[recipe.train.selection_metric]
        sign = -1.0 if metric == "loss" else 1.0

        def objective(trial: Any) -> float:
            drawn = {key: values.draw(trial, key) for key, values in space.space.items()}
            shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in drawn.items())
            digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:10]
            out = folder / f"trial-{digest}"
            trial.set_user_attr("folder", out.name)
            if not (out / "run.json").exists():
                report = _Report(trial, metric, sign, optuna.TrialPruned)
                try:
                    train(recipe.with_overrides({**drawn, "output_dir": str(out)}), command=command, watch=report)
                except optuna.TrialPruned:
                    shutil.rmtree(out / "checkpoints", ignore_errors=True)
                    say(f"trial {trial.number}: {shown}: stopped early")
                    raise
            best = read_record(out / "run.json")["best_metric"]
            say(f"trial {trial.number}: {shown}: {metric} {best:.4f}")
            return sign * float(best)

        while len(_ended(optuna, study)) < space.trials:
            study.optimize(objective, n_trials=1)
        return _write_result(_ended(optuna, study), study, recipe, folder, sign, metric)


def _check(recipe: Recipe, space: Space) -> None:
    """Refuse a validation that may share patients with train, and values that the recipe cannot have."""
    for one in recipe.corpus.each:
        protocol = protocol_of(one.name, one.protocol)
        if protocol != "none" and protocol_named(protocol).promise("train", "validation") != "patient":
            raise InputError(
                f"--search: under protocol {protocol} validation may share patients with train, and a search would "
                "choose models that memorise them; choose a corpus.protocol that splits by patient"
            )
    for key, values in space.space.items():
        for value in values.ends():
            try:
                recipe.with_overrides({key: value})
            except InputError as error:
                raise InputError(f"--search: space: {str(error).removeprefix('command line: ')}") from error


def _prepare_folder(folder: Path, recipe: Recipe, space: Space, overwrite: bool) -> None:
    """Create the folder of a search, or continue the same search in it."""
    identity = {
        "recipe": recipe.to_dict() | {"output_dir": None, "card": None},
        "space": {key: values.model_dump(exclude_unset=True) for key, values in space.space.items()},
        "seed": space.seed,
    }
    manifest = folder / "search-of.json"
    if overwrite and manifest.exists():
        shutil.rmtree(folder)
    if manifest.exists():
        if json.loads(json.dumps(identity)) != read_record(manifest):
            raise InputError(f"{folder}: holds another search; choose another --output_dir or pass --overwrite")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files; choose another --output_dir")
    else:
        write_record(manifest, identity)


def _open(optuna: Any, folder: Path, space: Space) -> Any:
    """The Optuna study; a killed trial is queued again with the same settings."""
    sampler = optuna.samplers.TPESampler if space.sampler == "tpe" else optuna.samplers.RandomSampler
    median = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'search.db'}",
        study_name="search",
        direction="maximize",
        sampler=sampler(seed=space.seed),
        pruner=median if space.pruner == "median" else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def _ended(optuna: Any, study: Any) -> list[Any]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


def _write_result(ended: list[Any], study: Any, recipe: Recipe, folder: Path, sign: float, metric: str) -> SearchResult:
    """Write search.json with every trial, and best.yaml."""
    finished = sum(trial.value is not None and trial.state.name == "COMPLETE" for trial in ended)
    if not finished:
        raise InputError(f"{folder}: every trial was stopped early; set pruner: none")
    best = study.best_trial
    value = sign * float(best.value)
    config = read_record(folder / best.user_attrs["folder"] / "run.json")["config"]
    drawn = {key: reduce(lambda section, name: section[name], key.split("."), config) for key in best.params}
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": None if trial.value is None else sign * trial.value,
            "epochs": len(trial.intermediate_values),
            "settings": dict(trial.params),
            "folder": trial.user_attrs.get("folder"),
        }
        for trial in ended
    ]
    write_record(
        folder / "search.json",
        {"metric": metric, "selection_set": "validation", "best": drawn, "value": value, "trials": trials},
    )
    settings = recipe.with_overrides({**drawn, "output_dir": None}).to_dict()
    with atomic_write(folder / "best.yaml") as file:
        file.write(f"# The best of {len(ended)} trials by {metric} on validation patients, {value:.4f} there.\n")
        yaml.safe_dump({k: v for k, v in settings.items() if v not in (None, {}, [])}, file, sort_keys=False)
    return SearchResult(folder, drawn, value, finished, len(ended) - finished)
