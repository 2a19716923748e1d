"""The content of a model card: facts and table rows from a run's record.

Decisions: numbers are formatted here and never computed, so a card cannot contain a number that no record has. A split
that shares more than a tenth of its patients with training or validation gets no headline. What a record does not know
is stated as unknown or asked of the author.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from laennec.configuration import span_noun
from laennec.corpora.base import Corpus
from laennec.corpora.load import find_corpus
from laennec.encoders import encoder_class
from laennec.evaluation.metrics import POOR_QUALITY_CONVENTION
from laennec.evaluation.report.sections import (
    baseline_table,
    earlier_use,
    epochs_kept,
    scored_own_corpus,
    seeds_of,
    subgroup_sections,
    window_sections,
)
from laennec.evaluation.summary import card_figures, figure_name, figure_text
from laennec.hub.card_metadata import is_hub_id
from laennec.hub.evidence import Evidence, citations_of, without_machine_paths
from laennec.rendering import Markdown, code, escaped, fenced, plain, table
from laennec.training.recipe import CardSettings

_SHARED_PATIENTS = re.compile(r"^(\S+) and (\S+) share .*?(\d+) patients?\b")
_MAX_SHARED = 0.1  # share of a split's patients in training or validation, above which there is no headline
_MAX_CONFUSION = 8
_TRAINABLE = {
    "full": "all layers",
    "frozen": "the head only (frozen encoder)",
    "last_n": "its last layers",
    "lora": "low-rank adapters",
}


def card_content(evidence: Evidence, settings: CardSettings) -> dict[str, Any]:
    """Values of the card's template that depend on the record."""
    run = evidence.run
    facts, encoder = _corpus_facts(run), run["config"]["encoder"]
    origin = run["corpus"].get("provenance") or {}
    splits = [_scored_split(entry, run) for entry in _own_first(evidence)]
    commands = [_shown_command(one["command"]) for one in [*(run.get("members") or []), run] if one.get("command")]
    return {
        "run": run,
        "noun": _noun(run),
        "settings": settings,
        "facts": facts,
        "url": Markdown(f"<{facts.homepage}>") if facts and facts.homepage else None,
        "corpus": run["corpus"],
        "origin": origin,
        "labels": Markdown(", ".join(code(name) for name in run.get("labels") or [])),
        # without the examples in parentheses: they name patients
        "shared": "; ".join(re.sub(r" \([^()]*\)", "", plain(line)) for line in origin.get("leaks") or []),
        "splits": splits,
        "headline": next((split for split in splits if split["is_estimate"]), None),
        "fitted": _operating_point(run.get("operating_points")),
        "window_points": {name: _operating_point(point) for name, point in (run.get("window_points") or {}).items()},
        "training": [(key, escaped(value)) for key, value in _training_rows(run)],
        "command": fenced("\n".join(commands), "bash") if commands else "",
        "limitations": list(dict.fromkeys(map(escaped, _limitations(run, splits, evidence.outdated, settings)))),
        "bibtex": fenced("\n\n".join(citations_of(run)), "bibtex"),
        "base": _base_name(encoder),
        "base_licence": _base_licence(encoder, bool(run.get("pretraining"))),
        "versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()),
        "hardware": _hardware(run.get("hardware") or {}),
        "timings": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in (run.get("timings") or {}).items()),
    }


def model_summary(evidence: Evidence) -> str:
    """One line: what the model is, on whom it was trained, and what it reaches on each scored split."""
    run, facts = evidence.run, _corpus_facts(evidence.run)
    what = run["config"].get("description") or run.get("name") or "a laennec model"
    patients = (run.get("patients") or {}).get("train")
    on = f"{facts.title if facts else run['corpus']['name']}{f' ({patients} patients)' if patients else ''}"
    scores = []
    for entry in _own_first(evidence):
        metrics, split = entry["metrics"], _scored_split(entry, run)
        whom = "; ".join(filter(None, [f"{metrics['bootstrap']['patients']} patients", split["shares"]]))
        figures = (f"{figure_name(n)} {figure_text(n, metrics['values'][n])}" for n in _compared_figures(metrics))
        scores.append(f"{split['name']} ({whom}): {', '.join(figures)}")
    return plain(". ".join([f"{what}; trained on {on}", *scores]))


def _own_first(evidence: Evidence) -> list[dict[str, Any]]:
    own = evidence.run["corpus"]["name"]
    return sorted(evidence.evaluations, key=lambda entry: entry["evaluated"]["corpus"]["name"] != own)


def _noun(run: Mapping[str, Any]) -> str:
    """The word for what the model was trained on; older records say it by the level of the corpus alone."""
    return span_noun(run.get("span") or ("recording" if run["config"]["corpus"]["level"] == "record" else "cycle"))


def _corpus_facts(run: Mapping[str, Any]) -> type[Corpus] | None:
    """The class of a run's corpus, which states the facts about it; None where it states none."""
    corpus = find_corpus(run["corpus"]["name"])
    return corpus if corpus is not None and corpus.origin else None


def _scored_split(entry: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    metrics, evaluated = entry["metrics"] | {"span": _noun(run)}, entry["evaluated"]
    origin, split = evaluated["corpus"]["provenance"], str(evaluated["split"])
    shared = _shared_patients(origin, split)
    other_corpus = evaluated["corpus"]["name"] != run["corpus"]["name"]
    own = scored_own_corpus({"corpus": evaluated["corpus"], "trained_on": run["corpus"]})
    used = earlier_use(split, run.get("selection_set")) if own else None
    text = ", ".join(f"{count} patient{'s' * (count > 1)} with {other}" for other, count in shared.items())
    few = sum(shared.values()) <= _MAX_SHARED * max(metrics["bootstrap"]["patients"], 1)
    name, values, intervals = metrics["headline"], metrics["values"], metrics["intervals"]
    counts = metrics["counts"]["classes"] or metrics["counts"]["labels"]
    windows = window_sections(metrics)
    return {
        **entry,
        "name": f"{evaluated['corpus']['name']} {split}" if other_corpus else split,
        "shares": used or (f"shares {text}" if text else ""),
        "is_estimate": few and not used and not origin.get("stamp"),
        "stamp": origin.get("stamp"),
        "other_corpus": not own,
        "scored": sum(e["split"] == split for e in run.get("evaluations", [])),
        "headline": escaped(f"{figure_name(name)} {figure_text(name, values[name], intervals.get(name))}"),
        "figures": [
            (figure_name(n), figure_text(n, values[n]), _interval(n, intervals.get(n))) for n in card_figures(metrics)
        ],
        "confusion": _confusion(metrics.get("confusion")),
        "classes": Markdown(", ".join(f"{count} {code(label)}" for label, count in counts.items())),
        "baselines": _table(baseline_table(metrics)),
        "lengths": _lengths(metrics, _noun(run)),
        "official": list(_sprsound_rows(metrics.get("official") or {})),
        "poor_quality": POOR_QUALITY_CONVENTION,
        "windows": windows
        and windows | {"tables": [one | {"table": _table(one["table"])} for one in windows["tables"]]},
        "subgroups": [one | {"table": _table(one["table"])} for one in subgroup_sections(metrics)],
        "calibration": _calibration_rows(metrics["calibration"]),
        "failures": [
            (
                row["kind"] + (f" ({row['label']})" if row["label"] else ""),
                *(code(row[key]) for key in ("cycle_id", "truth", "answer")),
                f"{row['probability']:.3f}",
            )
            for row in metrics["failures"]
        ],
    }


def _shared_patients(origin: Mapping[str, Any], split: str) -> dict[str, int]:
    """How many patients of a split are also in train or validation."""
    shared = origin.get("shared_patients")
    if shared is None:  # a record of the first edition has sentences only
        matches = (_SHARED_PATIENTS.match(str(line)) for line in origin.get("leaks") or [])
        shared = [match.groups() for match in matches if match]
    found = {}
    for one, other, count in shared:
        seen = other if one == split else one if other == split else None
        if seen in ("train", "validation"):
            found[seen] = int(count)
    return found


def _table(made: Mapping[str, Any] | None) -> Markdown:
    """A table of the report as Markdown: the note of a cell stands behind its text; empty for no table."""

    def text(cell: Any) -> str:
        text, note = (cell["text"], cell.get("note") or "") if isinstance(cell, Mapping) else (cell, "")
        return f"{text}{' ' if note.startswith('[') else ': ' * bool(note)}{note}"

    return Markdown("") if made is None else table(made["columns"], [list(map(text, r["cells"])) for r in made["rows"]])


def _interval(name: str, bounds: Sequence[float] | None) -> str:
    return " to ".join(figure_text(name, bound) for bound in bounds) if bounds else "not defined"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _calibration_rows(calibration: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """ECE and Brier score of each label on a scored split, of the raw logits and calibrated."""
    columns = [calibration[name] for name in ("ece_before", "ece", "brier_before", "brier")]
    return [(code(label), *(_number(column[label]) for column in columns)) for label in calibration["brier"]]


def _confusion(confusion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Head and rows of the confusion matrix; None where there are too many classes."""
    if not confusion or len(confusion["classes"]) > _MAX_CONFUSION:
        return None
    names = [code(name) for name in confusion["classes"]]
    rows = [(name, *counts) for name, counts in zip(names, confusion["matrix"], strict=True)]
    return {"head": ("truth \\ prediction", *names), "rows": rows}


def _compared_figures(metrics: Mapping[str, Any]) -> list[str]:
    return [metrics["headline"], *(n for n in metrics["values"] if n.endswith(".roc_auc"))]


def _lengths(metrics: Mapping[str, Any], noun: str) -> dict[str, Any] | None:
    """Head and rows of each label's AUROC without the length of cycles; None where it was not computed."""
    within, fixed = metrics.get("within_lengths") or {}, metrics.get("duration_blind")
    labels = [label for label in metrics["label_names"] if f"{label}.roc_auc" in metrics["values"]]
    if not labels or not (within or fixed):
        return None
    alone: Mapping[str, float] = next((one["values"] for one in metrics["floors"] if one["name"] == "event length"), {})
    rows = []
    for label in labels:
        name = f"{label}.roc_auc"
        found = [metrics["values"][name], within.get(label), fixed and fixed["values"].get(name), alone.get(name)]
        rows.append((code(label), *("not defined" if v is None else figure_text(name, v) for v in found)))
    cut = f"the middle {fixed['seconds']:g} s of each {noun}" if fixed else "equal lengths"
    return {
        "head": ("label", f"whole {noun}s", f"{noun}s of similar length", cut, f"length of the {noun} alone"),
        "rows": rows,
    }


def _sprsound_rows(scores: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for task, score in scores.items():
        if not isinstance(score, Mapping):
            continue
        figures = [score.get(name) for name in ("Score", "SE", "SP", "balanced_accuracy")]
        recall = score.get("poor_quality_recall")
        yield (
            task + (f", smoothed over the recording (weight {score['smoothing']:g})" if score.get("smoothing") else ""),
            *("not defined" if v is None else f"{v:.1f}" for v in figures),
            f"{recall:.1f} of {score['n_poor_quality']}" if recall is not None else "",
        )


def _operating_point(fitted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Calibration and thresholds, and their effect on validation; None where nothing was fitted."""
    if not fitted:
        return None
    temperatures, intercepts = fitted["temperatures"], fitted.get("intercepts") or {}
    kinds = {"ece": "ECE", "brier": "Brier"}
    known = [kind for kind in kinds if set(fitted.get(f"{kind}_after") or {}) == set(temperatures)]
    head = ["label", "probability", "threshold"]
    head += [f"{kinds[kind]}, {when}" for kind in known for when in ("raw", "calibrated")]
    rows = []
    for label, temperature in temperatures.items():
        threshold, shift = (fitted.get("threshold_probabilities") or {}).get(label), intercepts.get(label, 0.0)
        formula = f"sigmoid(logit / {temperature:.3f}" + (f" {shift:+.3f})" if shift else ")")
        measured = [_number(fitted[f"{kind}_{side}"][label]) for kind in known for side in ("before", "after")]
        rows.append((code(label), code(formula), "" if threshold is None else f"{threshold:.3f}", *measured))
    multi_label = fitted.get("thresholds") is not None
    return {
        "head": head,
        "rows": rows if multi_label else [],
        "temperature": f"{next(iter(temperatures.values())):.3f}" if temperatures else None,
        "calibration": fitted.get("calibration") or "temperature",
        "rule": fitted.get("rule"),
        "sensitivity": fitted.get("sensitivity"),
        "on": fitted["fitted_on"],
        "notes": fitted.get("notes") or [],
    }


def _training_rows(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """How the model was trained, from the recipe."""
    config = run["config"]
    encoder, features, loss, train, sampler = (config[k] for k in ("encoder", "features", "loss", "train", "sampler"))
    if members := run.get("members"):
        yield "Ensemble", f"{len(members)} runs of this recipe; their calibrated log-odds are averaged"
    length = (
        f"{features['duration_s']:g} s ({features['length']})" if features.get("duration_s") else "their own length"
    )
    text = f"the sound only; front end {features['preset']}; {_noun(run)}s of {length}"
    text += f"; {features['filter_kind']} {features['filter_cutoff_hz']} Hz" if features.get("filter_kind") else ""
    k = features.get("context_cycles")
    yield "Input", text + (f"; concatenated with {k} cycles before and {k} after" if k else "")
    trained = _TRAINABLE[encoder["trainable"]]
    yield "Encoder", Markdown(f"{code(encoder['type'])}, from {_base_name(encoder)}; trained: {trained}")
    if pretraining := run.get("pretraining"):
        yield "Pre-training", f"without labels, on {pretraining.get('corpus')}, without test patients"
    if start := run.get("initialised_from"):
        sets = ", ".join(f"{one['corpus']} ({one['patients']} patients)" for one in start["trained_on"])
        text = f"{_base_name({'weights': start['model']})}; head {start['head']}; it was trained on "
        yield "Started from", Markdown(text + (escaped(sets) if sets else "patients that are not recorded"))
    yield "Task loss", f"{loss['task']}; class weights {loss.get('class_weights') or 'none'}"
    auxiliary = [f"{code(name)}: {code(settings)}" for name, settings in (run.get("losses") or {}).items()]
    yield "Auxiliary losses", Markdown(", ".join(auxiliary) or "none")
    yield "Batches", f"{train['batch_size']} {_noun(run)}s, sampler {sampler['name']}"
    augment = config.get("augment") or {}
    used = [name for name in ("noise", "shift", "stretch", "pitch", "gain", "spec", "mix") if augment.get(name)]
    used += ["concatenate"] if augment.get("concatenate_probability") else []
    yield "Augmentation", ", ".join(used) or "none"
    yield "Optimiser", f"{train['optimizer']}, learning rate {train['learning_rate']:g}, {train['lr_scheduler_type']}"
    best = epochs_kept(run)
    yield "Epochs", f"{train['epochs']}" + (f"; best epoch {best}" if best is not None else "")
    yield "Epoch selected by", f"{run.get('selection_metric')} on {run.get('selection_set')} patients"
    yield "Seed", f"{seeds_of(run)}; split seed {config['corpus']['split_seed']}"


def _base_name(encoder: Mapping[str, Any]) -> Markdown:
    """Where the encoder's weights are from: a Hub id, or the name of a file without its folders."""
    weights = encoder.get("weights")
    if not weights:
        return Markdown("random weights")
    return code(weights if is_hub_id(weights) else plain(weights).rstrip("/").rsplit("/", 1)[-1])


def _base_licence(encoder: Mapping[str, Any], pretrained: bool) -> str:
    """Licence of the weights that training started from."""
    if not encoder.get("weights"):
        return "none: training started from random weights"
    kind = encoder_class(encoder)
    licence, title = getattr(kind, "licence", ""), getattr(kind, "title", "") or getattr(kind, "__name__", "")
    if pretrained or not licence:
        return "not known to laennec; see the source of the weights"
    return f"{licence} ({title}, as released by its authors)"


def _limitations(
    run: Mapping[str, Any], splits: Sequence[Mapping[str, Any]], outdated: Sequence[str], settings: CardSettings
) -> Iterator[Any]:
    """What limits the use of the model and of its scores, one sentence each."""
    if facts := _corpus_facts(run):
        yield from facts.limitations
    for split in splits:
        name = code(split["name"])
        if split["stamp"]:
            yield Markdown(f"The split has a warning: {escaped(split['stamp'])}.")
        if split["shares"]:
            effect = "are slightly too high" if split["is_estimate"] else "are no estimate for new patients"
            yield Markdown(f"Split {name} {escaped(split['shares'])}; its scores {effect}.")
        if split["other_corpus"]:
            yield Markdown(f"Split {name} is of another corpus than the training data.")
        if split["scored"] > 1:
            yield Markdown(f"Split {name} was scored {split['scored']} times with this run.")
        for warning in split["metrics"]["warnings"]:
            yield Markdown(f"{name}: {escaped(warning['text'])}")
    for name in map(code, outdated):
        reason = "was scored with another calibration or other thresholds and is not shown; score it again"
        yield Markdown(f"Split {name} {reason}.")
    if not splits:
        yield "No test split was scored with this model: its performance is unknown."
    if any(entry.get("scored_before") for entry in run.get("calibrations") or []):
        yield "Thresholds were fitted again after the model had been scored."
    runs = f"{len(members)} runs with seeds" if (members := run.get("members")) else "One run with seed"
    yield f"{runs} {seeds_of(run)}: this card does not show how much scores vary with the seed."
    yield "Crackles and wheezes are signs, not diagnoses; the labels are judgements of listeners."
    if settings.out_of_scope:
        yield settings.out_of_scope


def _hardware(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    memory = f", at most {hardware['peak_memory_mb']} MB of memory" if hardware.get("peak_memory_mb") else ""
    return f"{hardware.get('processor', 'unknown processor')}, {gpus}, {hardware.get('system', '')}{memory}"


def _shown_command(command: Any) -> str:
    text = " ".join(map(str, command)) if isinstance(command, list | tuple) else str(command)
    return str(without_machine_paths(plain(text)))
