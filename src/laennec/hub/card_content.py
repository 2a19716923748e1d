"""The content of a model card: facts and tables from a run's record, for templates/card.md.jinja.

Decisions: numbers are formatted and never computed, so a card cannot contain a number that no record has. A split that
shares more than a tenth of its patients with training or validation gets no headline.
"""

import re
from collections.abc import Mapping
from typing import Any

from laennec.audio.augmentation import WAVEFORM_PARTS
from laennec.configuration import span_noun
from laennec.corpora.base import Corpus
from laennec.corpora.load import find_corpus
from laennec.encoders import encoder_class
from laennec.evaluation.calibration.probabilities import smoothing_text
from laennec.evaluation.metrics import POOR_QUALITY_CONVENTION
from laennec.evaluation.report.sections import (
    baseline_table,
    earlier_use,
    epochs_kept,
    scored_own_corpus,
    seeds_of,
    subgroup_sections,
    times_scored,
    window_sections,
)
from laennec.evaluation.summary import card_figures, figure_name, figure_text, length_table
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
    given = [one["command"] for one in [*(run.get("members") or []), run] if one.get("command")]
    commands = [plain(one if isinstance(one, str) else " ".join(map(str, one))) for one in given]
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
        "command": fenced("\n".join(map(without_machine_paths, commands)), "bash") if commands else "",
        "trained": _TRAINABLE[encoder["trainable"]],
        "augmentation": _augmentation(run["config"].get("augment") or {}),
        "started_from": _started_from(start) if (start := run.get("initialised_from")) else None,
        "teacher": _base_name({"weights": teacher["model"]}) if (teacher := run.get("teacher")) else None,
        "best_epoch": epochs_kept(run),
        "seeds": seeds_of(run),
        "outdated": evidence.outdated,
        "number": _number,
        "bibtex": fenced("\n\n".join(citations_of(run)), "bibtex"),
        "base": _base_name(encoder),
        "base_licence": _base_licence(encoder, bool(run.get("pretraining"))),
    }


def model_summary(evidence: Evidence) -> str:
    """One line: the model, the patients it was trained on, and its scores on each split."""
    run, facts = evidence.run, _corpus_facts(evidence.run)
    what = run["config"].get("description") or run.get("name") or "a laennec model"
    patients = (run.get("patients") or {}).get("train")
    on = f"{facts.title if facts else run['corpus']['name']}{f' ({patients} patients)' if patients else ''}"
    scores = []
    for entry in _own_first(evidence):
        metrics, split = entry["metrics"], _scored_split(entry, run)
        whom = "; ".join(filter(None, [f"{metrics['uncertainty']['patients']} patients", split["shares"]]))
        names = [metrics["headline"], *(n for n in metrics["values"] if n.endswith(".roc_auc"))]
        figures = (f"{figure_name(n)} {figure_text(n, metrics['values'][n])}" for n in names)
        scores.append(f"{split['name']} ({whom}): {', '.join(figures)}")
    return plain(". ".join([f"{what}; trained on {on}", *scores]))


def _own_first(evidence: Evidence) -> list[dict[str, Any]]:
    own = evidence.run["corpus"]["name"]
    return sorted(evidence.evaluations, key=lambda entry: entry["evaluated"]["corpus"]["name"] != own)


def _noun(run: Mapping[str, Any]) -> str:
    """The word for what the model was trained on; older records state it only as the level of the corpus."""
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
    few = sum(shared.values()) <= _MAX_SHARED * max(metrics["uncertainty"]["patients"], 1)
    name, values, intervals = metrics["headline"], metrics["values"], metrics["intervals"]
    counts = metrics["counts"]["classes"] or metrics["counts"]["labels"]
    windows, confusion = window_sections(metrics), metrics.get("confusion")
    return {
        **entry,
        "name": f"{evaluated['corpus']['name']} {split}" if other_corpus else split,
        "shares": used or (f"shares {text}" if text else ""),
        "is_estimate": few and not used and not origin.get("stamp"),
        "stamp": origin.get("stamp"),
        "other_corpus": not own,
        "scored": times_scored(run, split, evaluated["corpus"]["name"]),
        "headline": escaped(f"{figure_name(name)} {figure_text(name, values[name], intervals.get(name))}"),
        "figures": [
            (
                figure_name(n),
                figure_text(n, values[n]),
                [figure_text(n, bound) for bound in intervals.get(n) or ()],
                (metrics.get("effective") or {}).get(n),
            )
            for n in card_figures(metrics)
        ],
        "confusion": confusion if confusion and len(confusion["classes"]) <= _MAX_CONFUSION else None,
        "classes": Markdown(", ".join(f"{count} {code(label)}" for label, count in counts.items())),
        "baselines": _table(baseline_table(metrics)),
        "lengths": _lengths(metrics),
        "official": {task: one for task, one in (metrics.get("official") or {}).items() if isinstance(one, Mapping)},
        "poor_quality": POOR_QUALITY_CONVENTION,
        "windows": windows
        and windows | {"tables": [one | {"table": _table(one["table"])} for one in windows["tables"]]},
        "subgroups": [one | {"table": _table(one["table"])} for one in subgroup_sections(metrics)],
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
    """A table of the report as Markdown: the note of a cell follows its text; empty for no table."""

    def text(cell: Any) -> str:
        text, note = (cell["text"], cell.get("note") or "") if isinstance(cell, Mapping) else (cell, "")
        return f"{text}{' ' if note.startswith('[') else ': ' * bool(note)}{note}"

    return Markdown("") if made is None else table(made["columns"], [list(map(text, r["cells"])) for r in made["rows"]])


def _number(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def _lengths(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Head and rows of each label's AUROC with the length of cycles controlled for; None where it was not computed."""
    head, *rows = length_table(metrics, "not defined") or [[]]
    return {"head": head, "rows": [(code(label), *cells) for label, *cells in rows]} if rows else None


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
        "second": ", ".join(sorted({f"{p:g}" for p in (fitted.get("second_thresholds") or {}).values()})),
        "smoothing": smoothing_text(fitted.get("smoothing")),
        "on": fitted["fitted_on"],
        "notes": fitted.get("notes") or [],
    }


def _started_from(start: Mapping[str, Any]) -> Markdown:
    """The model that a training started from, and the patients that model was trained on."""
    sets = ", ".join(f"{one['corpus']} ({one['patients']} patients)" for one in start["trained_on"])
    text = f"{_base_name({'weights': start['model']})}; head {start['head']}; it was trained on "
    return Markdown(text + (escaped(sets) if sets else "patients that are not recorded"))


def _augmentation(augment: Mapping[str, Any]) -> str:
    used = [name for name in (*WAVEFORM_PARTS, "spec", "mix") if augment.get(name)]
    return ", ".join([*used, *(["concatenate"] if augment.get("concatenate_probability") else [])]) or "none"


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
