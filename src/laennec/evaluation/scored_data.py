"""The data that a run or a model is scored on.

Decisions: a run is scored on the corpus and split that it was trained with, recognised by the split fingerprint; if a
path of its recipe does not exist here, the absolute path of its record is used.
"""

from pathlib import Path
from typing import Any

from laennec.corpora.base import ABNORMAL, class_names, column_of
from laennec.corpora.copies import find_described
from laennec.corpora.load import corpus_class
from laennec.corpora.recordings import named
from laennec.errors import InputError
from laennec.files import find_data
from laennec.training.data.targets import FOUR_CLASSES
from laennec.training.initial import read_trained_on
from laennec.training.recipe import Recipe

_TRUTH_COLUMNS = ("events", "diagnosis", "chest_location", "device", "sex", "acquisition_mode")


def settings_of_model(recipe: Recipe, run: Any, model: Any, extractor: Any, table: Any) -> None:
    """Copy the recording filter of a model into a recipe and, without a run, its labels."""
    settings = extractor.recording_filter
    recipe.features.filter_kind = settings["kind"] if settings else None
    cutoff = settings["cutoff_hz"] if settings else None
    recipe.features.filter_cutoff_hz = list(cutoff) if isinstance(cutoff, list | tuple) else cutoff
    if settings:
        recipe.features.filter_order = settings["order"]
    if run is None:
        recipe.target.problem_type = "multi_label" if model.config.is_multi_label else "single_label"
        recipe.target.names = model.config.label_names
        recipe.target.column = _truth_column(recipe, table)


def _truth_column(recipe: Recipe, table: Any) -> str | None:
    """The column of a cycle table with the truth of a model's labels; None for the four classes and their flags."""
    names = set(recipe.target.names)
    if recipe.target.problem_type == "multi_label":
        return None if names <= set(table.column_names) else "events"
    if names <= set(FOUR_CLASSES):
        return None
    for column in (corpus_class(recipe.corpus.name).class_column, *_TRUTH_COLUMNS):
        if column not in table.column_names:
            continue
        if classes := class_names(table, column):
            values = set(classes)
        else:
            values = {str(v[0] if isinstance(v, list) else v) for v in column_of(table, column) if v}
        if values and values <= names:
            return column
    if names == set(class_names(table, ABNORMAL)):
        return ABNORMAL
    raise InputError(
        f"{recipe.corpus.name}: no column holds the truth for the labels {', '.join(sorted(names))}; "
        "evaluate on a corpus with these labels"
    )


def recipe_of(source: str | Path, run: dict[str, Any] | None, corpus: dict[str, Any] | None) -> Recipe:
    """The recipe that says which data to read: the run's, with the given corpus settings."""
    if run is None and not (corpus or {}).get("name"):
        raise InputError(
            f"{source}: no run.json in this folder, so it is not a run; check the path, or for an exported model add "
            "its corpus (name and data_dir, or --corpus NAME --data-dir DIR)"
        )
    recipe = Recipe.from_record(run["config"], f"{source}/run.json") if run else Recipe()
    given = {k: v for k, v in (corpus or {}).items() if v is not None}
    if given.get("name", recipe.corpus.name) != recipe.corpus.name:
        of_run = [one for one in recipe.corpus.corpora if one.name == given["name"]]
        recipe.corpus = of_run[0] if of_run else type(recipe.corpus)()
    if given.keys() - {"name"} and recipe.corpus.corpora:
        raise InputError(f"{source}: trained on {recipe.corpus.name}; name the corpus of these settings too (--corpus)")
    for key, value in given.items():
        setattr(recipe.corpus, key, value)
    known = (run or {}).get("corpus") or {}
    places = known.get("corpora") or {known.get("name"): known}
    for one in recipe.corpus.each:
        for key in ("data_dir", "tables_dir"):
            if key not in given and one.name in places:
                _find_again(one, key, places[one.name].get(key))
    return recipe


def _find_again(corpus: Any, key: str, there: str | None) -> None:
    """Replace a path of a corpus that does not exist here by the recorded path, or raise an error."""
    named = getattr(corpus, key)
    if named and ("://" in named or Path(find_data(named)).expanduser().exists()):
        return
    if there is not None and Path(there).exists():
        setattr(corpus, key, there)
    elif named and corpus.name != "hub":  # a Hub id is not a path; a synthetic corpus would be created there
        places = " or ".join(dict.fromkeys((named, there or named)))
        flag = f"--{key.replace('_', '-')}"
        raise InputError(f"{places}: the corpus of the run is not at this path; give its folder ({flag}, or {key})")


def is_other_corpus(run: dict[str, Any], recipe: Recipe, origin: dict[str, Any], by_name: bool) -> bool:
    """Whether a run is scored on a corpus that it was not trained on.

    Corpora of own recordings share one name, so another folder is another corpus where it is asked for `by_name`.
    """
    if recipe.corpus.corpora:
        return False
    if (own := _trained_corpora(run).get(str(origin.get("corpus")))) is None:
        return True
    other = own.get("corpus_fingerprint") != origin.get("corpus_fingerprint")
    return by_name and other and not corpus_class(recipe.corpus.name).patient_ids_are_global


def _trained_corpora(run: dict[str, Any]) -> dict[str, Any]:
    """Provenance of each corpus of a run, by the corpus's own name."""
    trained: dict[str, Any] = run["corpus"]["provenance"]
    return trained.get("corpora") or {str(trained.get("corpus", run["corpus"]["name"])): trained}


def with_leaks(
    source: str | Path, run: dict[str, Any], splits: Any, split: str, origin: dict[str, Any], out: Any
) -> dict[str, Any]:
    """The provenance of another corpus with the recordings that the run was trained on among its leaks.

    Raises:
        InputError: It is another folder of the run's own kind of corpus, and has no `out` or some of these recordings.
    """
    notes = read_trained_on(source) if split in splits else []
    seen = {Path(path).stem for note in notes for path in find_described(note.get("sounds") or {}, splits[split])}
    found = f"{split} has recordings that this model was trained on: {named(sorted(seen))}"
    if origin.get("corpus") in _trained_corpora(run):
        if seen:
            raise InputError(f"{found}; leave them out of the folder, or give the data and protocol of the run")
        if out is None:
            raise InputError(f"{source}: was trained on another folder; give a folder for these results (out, --out)")
    return {**origin, "leaks": [*(origin.get("leaks") or []), *([found] if seen else [])]}


def check_split(run: dict[str, Any] | None, recipe: Recipe, origin: dict[str, Any]) -> None:
    """Refuse to score a run on a split that is not the one it was trained on."""
    trained: Any = run["corpus"]["provenance"] if run is not None else None
    if run is not None and recipe.corpus.name != run["corpus"]["name"]:  # one of several corpora
        trained = (trained.get("corpora") or {}).get(origin.get("corpus"))
    if trained is None or trained.get("protocol") == "corpus-out":  # nothing of this corpus was trained on
        return
    here, there = (str(o.get("split_fingerprint"))[:12] for o in (origin, trained))
    if origin.get("split_fingerprint") != trained.get("split_fingerprint") and not _same_training(origin, trained):
        others = origin.get("corpus_fingerprint") != trained.get("corpus_fingerprint")
        others &= not corpus_class(recipe.corpus.name).patient_ids_are_global
        also = f", or for other recordings name their corpus too (--corpus {recipe.corpus.name})" if others else ""
        raise InputError(
            f"{recipe.corpus.data_dir or recipe.corpus.name}: not the corpus and split that this run was trained on "
            f"(split {here}, trained on {there}): training cycles could be in the scored split; give the same data and "
            f"protocol{also}"
        )


def _same_training(here: dict[str, Any], trained: dict[str, Any]) -> bool:
    """Whether a corpus differs only in its test splits: SPRSound publishes its splits one by one.

    The training split, where it is present, must be the one of the run.
    """
    own, known = (origin.get("part_fingerprints") or {} for origin in (here, trained))
    if here.get("protocol") != "sprsound-official" or trained.get("protocol") != "sprsound-official" or not known:
        return False
    return all(own[name] == known.get(name) for name in ("train", "validation") if name in own)
