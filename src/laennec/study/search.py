"""Settings searched on validation patients.

Decisions: a trial is one training of the recipe with some settings drawn; its value is the selection metric of its
best epoch on validation, and no test split is ever read. Protocols whose validation may share patients with train are
refused: a search would choose models that memorise patients. Trials, also those that were stopped half-way, are
kept in a SQLite file by Optuna; the same command goes on where it was stopped, a trial that was killed from its last
checkpoint. Trials that fall behind the median of the others are stopped early.
"""

import difflib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from laennec.corpora.protocols import protocol_named
from laennec.errors import InputError
from laennec.files import atomic_write, try_lock
from laennec.study.plan import read_mapping, refuse_unknown
from laennec.training.recipe import Recipe, setting_keys
from laennec.training.record import read_record, write_record
from laennec.training.run import train
from laennec.training.tables import SELECTION_METRICS

_KEYS = ("trials", "seed", "sampler", "pruner", "space")
_SAMPLERS, _PRUNERS = ("tpe", "random"), ("median", "none")
_RANGE = ("low", "high", "log", "step", "choices")
_STORE = "search.db"


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        trials: How many trainings, finished or stopped early.
        seed: Of the draws.
        sampler: "tpe" (looks at earlier trials) or "random".
        pruner: "median" or "none".
        settings: {dotted setting: {"low", "high", "log", "step"} or {"choices"}}.
    """

    trials: int
    seed: int
    sampler: str
    pruner: str
    settings: Mapping[str, Mapping[str, Any]]


@dataclass
class Found:
    """The result of a search.

    Attributes:
        folder: Holds search.db, search.json, best.yaml and a folder for each trial.
        best: Settings of the best trial.
        value: Its selection metric on validation.
        trials: How many were finished, and how many stopped early.
    """

    folder: Path
    best: dict[str, Any]
    value: float
    trials: tuple[int, int]


def load_space(path: str | Path) -> Space:
    """Read a file that says what to search.

    Raises:
        InputError: It cannot be read, or a key, a setting or a range means nothing.
    """
    path = Path(path)
    values = read_mapping(path, "space")
    refuse_unknown(values, _KEYS, f"{path}")
    given = values.get("space")
    if not isinstance(given, dict) or not given:
        raise InputError(f"{path}: space is missing; e.g. space: {{train.learning_rate: {{low: 1e-5, high: 1e-2}}}}")
    settings = {str(key): _range(str(key), value, path) for key, value in given.items()}
    trials, seed = values.get("trials", 20), values.get("seed", 0)
    if not isinstance(trials, int) or not isinstance(seed, int) or trials < 1 or seed < 0:
        raise InputError(f"{path}: trials must be a whole number from 1, seed one from 0")
    for key, choices in (("sampler", _SAMPLERS), ("pruner", _PRUNERS)):
        if values.get(key, choices[0]) not in choices:
            raise InputError(f"{path}: {key} is {values[key]!r}; it can be {' or '.join(choices)}")
    return Space(trials, seed, values.get("sampler", "tpe"), values.get("pruner", "median"), settings)


def _range(key: str, value: Any, path: Path) -> dict[str, Any]:
    keys = setting_keys()
    free = key.startswith(("loss.auxiliary.", "corpus.options.", "encoder.config.", "tasks."))
    if key not in keys and not free:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
        raise InputError(f"{path}: space: unknown setting {key!r}; did you mean {near!r}?")
    if key.startswith(("corpus.", "output_dir", "train.selection_metric", "target.")):
        raise InputError(f"{path}: space: {key} says what a trial is measured on; trials must share it")
    refuse_unknown(value, _RANGE, f"{path}: space: {key}")
    made = {name: _number(item) if name in ("low", "high", "step") else item for name, item in value.items()}
    if "choices" in made:
        if set(made) != {"choices"} or not isinstance(made["choices"], list) or not made["choices"]:
            raise InputError(f"{path}: space: {key}.choices must be a list of values, and stands alone")
        return made
    low, high = made.get("low"), made.get("high")
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low < high):
        raise InputError(f"{path}: space: {key} needs numbers low < high, or choices")
    if made.get("log") and (low <= 0 or made.get("step")):
        raise InputError(f"{path}: space: {key} with log: true needs low above 0, and no step")
    return made


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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
) -> Found:
    """Search a recipe's settings on its validation patients.

    Args:
        recipe: The recipe; its output_dir is the search's folder.
        space: What to search.
        command: The literal command, for the records.
        overwrite: Whether an earlier search in the folder may be deleted.
        say: Called with a line for each trial.

    Returns:
        The best settings; `best.yaml` in the folder is the recipe with them.

    Raises:
        InputError: Optuna is missing, the protocol's validation shares patients with train, the folder holds another
            search or something else, or no trial could be trained.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError("--search needs optuna; install it: pip install 'laennec[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what goes wrong in a trial ends the search, and is said there
    folder = Path(recipe.output_dir or Path("runs") / f"{recipe.name}-search")
    _refuse_shared_validation(recipe)
    _refuse_what_no_recipe_can_have(recipe, space)
    identity = _identity(recipe, space)
    _take(folder, identity, overwrite)
    with try_lock(folder / "search") as alone:
        if not alone:
            raise InputError(f"{folder}: another process searches here; wait for it, or choose another --output_dir")
        study = _open(optuna, folder, space)
        metric = SELECTION_METRICS[recipe.train.selection_metric]
        sign = -1.0 if metric == "loss" else 1.0

        def objective(trial: Any) -> float:
            drawn = {key: _draw(trial, key, setting) for key, setting in space.settings.items()}
            digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:10]
            out = folder / f"trial-{digest}"
            trial.set_user_attr("folder", out.name)
            own = recipe.with_overrides({**drawn, "output_dir": str(out)})
            if not (out / "run.json").exists():
                report = _Report(trial, metric, sign, optuna.TrialPruned)
                try:
                    train(own, command=command, watch=report)
                except optuna.TrialPruned:
                    shutil.rmtree(out / "checkpoints", ignore_errors=True)
                    say(f"trial {trial.number}: {_settings(drawn)}: stopped early")
                    raise
            best = read_record(out / "run.json")["best_metric"]
            say(f"trial {trial.number}: {_settings(drawn)}: {metric} {best:.4f}")
            return sign * float(best)

        while len(_ended(optuna, study)) < space.trials:
            study.optimize(objective, n_trials=1)
        return _result(optuna, study, recipe, folder, sign, metric)


def _refuse_shared_validation(recipe: Recipe) -> None:
    from laennec.corpora.load import protocol_of

    protocol = protocol_of(recipe.corpus.name, recipe.corpus.protocol)
    if protocol != "none" and protocol_named(protocol).promise("train", "validation") != "patient":
        raise InputError(
            f"--search: under protocol {protocol} validation may share patients with train, and a search would choose "
            "models that memorise them; choose a corpus.protocol that splits by patient"
        )


def _refuse_what_no_recipe_can_have(recipe: Recipe, space: Space) -> None:
    """Every choice and both ends of every range, before the first trial rather than when one is drawn."""
    for key, setting in space.settings.items():
        for value in setting.get("choices", [setting.get("low"), setting.get("high")]):
            try:
                recipe.with_overrides({key: value})
            except InputError as error:
                raise InputError(f"--search: space: {str(error).removeprefix('command line: ')}") from error


def _identity(recipe: Recipe, space: Space) -> dict[str, Any]:
    values = recipe.to_dict() | {"output_dir": None, "card": None}
    return {"recipe": values, "space": {key: dict(value) for key, value in space.settings.items()}, "seed": space.seed}


def _take(folder: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Make the folder the search's, or go on with the very search that it holds."""
    mark = folder / "search-of.json"
    if overwrite and mark.exists():
        shutil.rmtree(folder)
    if mark.exists():
        if json.loads(json.dumps(identity)) != read_record(mark):
            raise InputError(f"{folder}: holds another search; choose another --output_dir or pass --overwrite")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files; choose another --output_dir")
    write_record(mark, identity)


def _open(optuna: Any, folder: Path, space: Space) -> Any:
    """The search's store; a trial that was killed is drawn again with the same settings."""
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=space.seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=space.seed),
    }
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "none": lambda: optuna.pruners.NopPruner(),
    }
    study = optuna.create_study(
        storage=f"sqlite:///{folder / _STORE}",
        study_name="search",
        direction="maximize",
        sampler=samplers[space.sampler](),
        pruner=pruners[space.pruner](),
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


def _draw(trial: Any, key: str, setting: Mapping[str, Any]) -> Any:
    if "choices" in setting:
        # Optuna keeps plain values only; lists and groups travel as text
        texts = [json.dumps(choice) for choice in setting["choices"]]
        return json.loads(trial.suggest_categorical(key, texts))
    low, high = setting["low"], setting["high"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, step=int(setting.get("step", 1)), log=bool(setting.get("log")))
    return trial.suggest_float(key, low, high, step=setting.get("step"), log=bool(setting.get("log")))


def _settings(drawn: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in drawn.items()
    )


def _result(optuna: Any, study: Any, recipe: Recipe, folder: Path, sign: float, metric: str) -> Found:
    """Write what was tried and the best recipe."""
    ended = _ended(optuna, study)
    complete = [trial for trial in ended if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise InputError(f"{folder}: every trial was stopped early; set pruner: none")
    best = study.best_trial
    run = read_record(folder / best.user_attrs["folder"] / "run.json")
    drawn = {key: _of(run["config"], key) for key in best.params}
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
        {"metric": metric, "selection_set": "validation", "best": drawn, "value": sign * best.value, "trials": trials},
    )
    plain = recipe.with_overrides({**drawn, "output_dir": None}).to_dict()
    with atomic_write(folder / "best.yaml") as file:
        file.write(
            f"# The best of {len(ended)} trials by {metric} on validation patients, {sign * best.value:.4f} there.\n"
        )
        yaml.safe_dump({k: v for k, v in plain.items() if v not in (None, {}, [])}, file, sort_keys=False)
    return Found(folder, drawn, sign * float(best.value), (len(complete), len(ended) - len(complete)))


def _of(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
