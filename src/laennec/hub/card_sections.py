"""What each section says, out of the records.

Decisions: numbers are only formatted here, never computed, so that a card cannot say what no record says. A part
that shares more than a tenth of its patients with training or validation gives no headline. What is not known is not
mentioned as if it were: it is either said to be unknown or asked of the author.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from laennec.corpora.base import Corpus
from laennec.corpora.load import find_corpus
from laennec.encoders import encoder_class
from laennec.evaluation.metrics import POOR_QUALITY_CONVENTION
from laennec.evaluation.report_sections import earlier_use, epochs_kept, seeds_of
from laennec.evaluation.summary import card_figures, figure_name, figure_text
from laennec.hub.card_metadata import is_hub_id
from laennec.hub.card_text import Markdown, code, escaped, plain, table, without_machine_paths
from laennec.training.recipe import CardSettings

_SHARE = re.compile(r"^(\S+) and (\S+) share .*?(\d+) patients?\b")
_MUCH = 0.1  # of a part's patients seen in training or validation: no headline
_GROUPINGS = {"device": "device", "chest_location": "chest location", "sex": "sex", "age_band": "age in years"}
_TRAINABLE = {
    "full": "all of it",
    "frozen": "nothing of it, only the head",
    "last_n": "its last layers",
    "lora": "low-rank adapters beside it",
}


def leak_lines(origin: Mapping[str, Any]) -> list[str]:
    """What parts share, without the examples: names of patients are nobody's business here."""
    return [re.sub(r" \([^()]*\)", "", plain(line)) for line in origin.get("leaks") or []]


def shared_patients(origin: Mapping[str, Any], part: str) -> dict[str, int]:
    """How many of a part's patients are also in train or validation, by part name."""
    found = {}
    for line in origin.get("leaks") or []:
        if match := _SHARE.match(str(line)):
            one, other, count = match.groups()
            seen = other if one == part else one if other == part else None
            if seen in ("train", "validation"):
                found[seen] = int(count)
    return found


def scored_part(entry: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A scored part with everything that its section says of it."""
    metrics, evaluated = entry["metrics"], entry["evaluated"]
    origin, split = evaluated["corpus"]["provenance"], str(evaluated["split"])
    shared = shared_patients(origin, split)
    patients = metrics["bootstrap"]["patients"]
    text = ", ".join(f"{count} patient{'s' * (count > 1)} with {part}" for part, count in shared.items())
    elsewhere = evaluated["corpus"]["name"] != run["corpus"]["name"]
    owes = None if elsewhere else earlier_use(split, run.get("selection_set"))
    few = sum(shared.values()) <= _MUCH * max(patients, 1)
    return {
        **entry,
        "name": split,
        "shares": owes or (f"shares {text}" if text else ""),
        "headline_worthy": few and not owes and not origin.get("stamp"),
        "stamp": origin.get("stamp"),
        "external": elsewhere,
        "scored": sum(e["split"] == split for e in run.get("evaluations", [])),
        "headline": _headline(metrics),
        "figures": _figures(metrics),
        "confusion": _confusion(metrics),
        "classes": _counts(metrics["counts"]),
        "floors": _floors(metrics),
        "lengths": _lengths(metrics),
        "official": _official(metrics.get("official")),
        "poor_quality": POOR_QUALITY_CONVENTION,
        "subgroups": _subgroups(metrics),
        "calibration": _calibration(metrics["calibration"]),
        "failures": _failures(metrics),
        "many_draws": metrics["bootstrap"]["n_draws"],
    }


def _headline(metrics: Mapping[str, Any]) -> Markdown:
    name = metrics["headline"]
    return escaped(f"{figure_name(name)} {figure_text(name, metrics['values'][name], metrics['intervals'].get(name))}")


def _figures(metrics: Mapping[str, Any]) -> Markdown:
    rows = []
    for name in card_figures(metrics):
        bounds, value = metrics["intervals"].get(name), metrics["values"][name]
        interval = _interval(name, bounds) if bounds else "not defined"
        rows.append((figure_name(name), figure_text(name, value), interval))
    return table(("figure", "value", "95 % interval"), rows)


def _interval(name: str, bounds: Sequence[float]) -> str:
    low, high = (figure_text(name, bound) for bound in bounds)
    return f"{low} to {high}"


def _confusion(metrics: Mapping[str, Any]) -> Markdown | None:
    confusion = metrics.get("confusion")
    if not confusion or len(confusion["classes"]) > 8:
        return None
    names = [code(name) for name in confusion["classes"]]
    rows = [(name, *counts) for name, counts in zip(names, confusion["matrix"], strict=True)]
    return table(("truth \\ answer", *names), rows)


def _counts(counts: Mapping[str, Any]) -> Markdown:
    """Cycles of each class, or with each label."""
    what = counts["classes"] or counts["labels"]
    return Markdown(", ".join(f"{n} {code(name)}" for name, n in what.items()))


def _floors(metrics: Mapping[str, Any]) -> Markdown | None:
    """The floors beside the headline."""
    rows: list[tuple[Any, ...]] = []
    name = metrics["headline"]
    areas = [n for n in metrics["values"] if n.endswith(".roc_auc")]
    for floor in metrics["floors"]:
        if floor.get("skipped"):
            rows.append((floor["name"], f"not computed: {floor['skipped']}", *("" for _ in areas), ""))
            continue
        values = floor["values"]
        bounds = floor["intervals"].get(name)
        above = ""
        if gain := floor.get("advantage"):
            above = f"{gain['value']:+.1f}"
            above += f" [{gain['interval'][0]:+.1f}, {gain['interval'][1]:+.1f}]" if gain.get("interval") else ""
        rows.append(
            (
                f"{floor['name']}: {floor['what']}",
                figure_text(name, values.get(name), bounds),
                *(figure_text(n, values.get(n)) for n in areas),
                Markdown(above),
            )
        )
    head = ("floor", figure_name(name), *(figure_name(n) for n in areas), f"model, {figure_name(name)} above")
    return table(head, rows) if rows else None


def _lengths(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is left of each label's AUROC where the length of a cycle says nothing; None where that was not asked."""
    within, blind = metrics.get("within_lengths") or {}, metrics.get("duration_blind")
    labels = [label for label in metrics["label_names"] if f"{label}.roc_auc" in metrics["values"]]
    if not labels or not (within or blind):
        return None
    floors = [floor["values"] for floor in metrics["floors"] if floor["name"] == "event length"]
    alone = floors[0] if floors else {}
    rows = []
    for label in labels:
        name = f"{label}.roc_auc"
        found = [metrics["values"][name], within.get(label), blind and blind["values"].get(name), alone.get(name)]
        rows.append((code(label), *("not defined" if v is None else figure_text(name, v) for v in found)))
    stretch = f"{blind['seconds']:g} s about the middle" if blind else "one length for all"
    head = ("label", "whole cycles", "among cycles of like length", stretch, "length alone")
    return {"table": table(head, rows), "seconds": f"{blind['seconds']:g}" if blind else None}


def _official(scores: Mapping[str, Any] | None) -> Markdown | None:
    """SPRSound's own tasks."""
    rows = []
    for task, score in (scores or {}).items():
        if not isinstance(score, Mapping):
            continue
        figures = [score.get(name) for name in ("Score", "SE", "SP", "balanced_accuracy", "poor_quality_recall")]
        heard = score.get("poor_quality_recall") is not None
        cells = ["not defined" if v is None else f"{v:.1f}" for v in figures[:4]]
        name = task + (f", mixed with the recording by {score['smoothing']:g}" if score.get("smoothing") else "")
        rows.append((name, *cells, f"{figures[4]:.1f} of {score['n_poor_quality']}" if heard else ""))
    return table(("task", "Score", "SE", "SP", "balanced accuracy", "Poor Quality recall"), rows) if rows else None


def _subgroups(metrics: Mapping[str, Any]) -> Markdown | None:
    rows: list[tuple[Any, ...]] = []
    name = metrics["headline"]
    areas = [n for n in metrics["values"] if n.endswith(".roc_auc")]
    for grouping, parts in metrics["subgroups"].items():
        for part in parts:
            values, bounds = part["values"], part["intervals"]
            cells = [
                figure_text(n, values.get(n), bounds.get(n)) if values.get(n) is not None else "not defined"
                for n in (name, *areas)
            ]
            group = Markdown(f"{_GROUPINGS.get(grouping, grouping)} {code(part['value'])}")
            rows.append((group, part["cycles"], part["patients"], *cells, part.get("note") or ""))
    if not any(row[-1] for row in rows):
        rows = [row[:-1] for row in rows]
    head = ("group", "cycles", "patients", figure_name(name), *(figure_name(n) for n in areas), "note")
    return table(head[: len(rows[0])], rows) if rows else None


def _calibration(calibration: Mapping[str, Any]) -> Markdown:
    """ECE and Brier score on a scored part, before and after."""
    rows = []
    for label, after in calibration["brier"].items():
        ece = (calibration["ece_before"][label], calibration["ece"][label])
        brier = (calibration["brier_before"][label], after)
        rows.append((code(label), *(_number(v) for v in (*ece, *brier))))
    return table(("label", "ECE, raw", "ECE, calibrated", "Brier, raw", "Brier, calibrated"), rows)


def _failures(metrics: Mapping[str, Any]) -> Markdown | None:
    rows = [
        (
            row["kind"] + (f" ({row['label']})" if row["label"] else ""),
            code(row["cycle_id"]),
            code(row["truth"]),
            code(row["answer"]),
            f"{row['probability']:.3f}",
        )
        for row in metrics["failures"]
    ]
    return table(("error", "cycle", "truth", "answer", "probability"), rows) if rows else None


def fitted_table(fitted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The operating point and what it did on validation; None where nothing was fitted."""
    if not fitted:
        return None
    intercepts, rows = fitted.get("intercepts") or {}, []
    for label, temperature in fitted["temperatures"].items():
        threshold = (fitted.get("threshold_probabilities") or {}).get(label)
        shift = intercepts.get(label, 0.0)
        formula = f"sigmoid(logit / {temperature:.3f}" + (f" {shift:+.3f})" if shift else ")")
        rows.append([code(label), code(formula), "" if threshold is None else f"{threshold:.3f}"])
    head = ["label", "probability", "threshold"]
    kinds = {"ece": "ECE", "brier": "Brier"}
    known = [kind for kind in kinds if set(fitted.get(f"{kind}_after") or {}) == set(fitted["temperatures"])]
    for kind in known:
        head += [f"{kinds[kind]}, raw", f"{kinds[kind]}, calibrated"]
        for row, label in zip(rows, fitted["temperatures"], strict=True):
            row += [_number(fitted[f"{kind}_{side}"][label]) for side in ("before", "after")]
    multi = fitted.get("thresholds") is not None
    return {
        "table": table(head, rows) if multi else None,
        "temperature": None if multi else f"{next(iter(fitted['temperatures'].values())):.3f}",
        "calibration": fitted.get("calibration") or "temperature",
        "rule": fitted.get("rule"),
        "sensitivity": fitted.get("sensitivity"),
        "on": fitted["fitted_on"],
        "notes": fitted.get("notes") or [],
    }


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def training_rows(run: Mapping[str, Any]) -> Markdown:
    """How the model came about, from the recipe as it ran."""
    config = run["config"]
    encoder, features, loss, train, sampler = (config[k] for k in ("encoder", "features", "loss", "train", "sampler"))
    length = f"{features['duration_s']:g} s ({features['length']})" if features.get("duration_s") else "as it is"
    class_weights = loss.get("class_weights")
    auxiliary = [Markdown(f"{code(name)}: {code(said)}") for name, said in (run.get("losses") or {}).items()]
    augment = config.get("augment") or {}
    drawn = [name for name in ("noise", "shift", "stretch", "pitch", "gain", "spec", "mix") if augment.get(name)]
    drawn += ["concatenate"] if augment.get("concatenate_probability") else []
    rows: list[tuple[str, Any]] = [
        ("Input", f"the sound alone; front end {features['preset']}, length of a cycle {length}{_around(features)}"),
        ("Encoder", Markdown(f"{code(encoder['type'])}, from {base_name(encoder)}; trained: {_trained(encoder)}")),
        ("Task loss", f"{loss['task']}; class weights {class_weights if class_weights else 'none'}"),
        ("Auxiliary losses", Markdown(", ".join(auxiliary)) if auxiliary else "none"),
        ("Batches", f"{train['batch_size']} cycles, {sampler['name']}"),
        ("Augmentation", ", ".join(drawn) or "none"),
        ("Optimiser", f"{train['optimizer']}, learning rate {train['learning_rate']:g}, {train['lr_scheduler_type']}"),
        ("Epochs", _epochs(run)),
        ("Chosen by", f"{run.get('selection_metric')} on {run.get('selection_set')} patients"),
        ("Seed", f"{seeds_of(run)}; split seed {config['corpus']['split_seed']}"),
    ]
    if members := run.get("members"):
        said = f"{len(members)} runs of this recipe, their calibrated log-odds averaged"
        rows.insert(0, ("Ensemble", said))
    if pretraining := run.get("pretraining"):
        rows.insert(2, ("Pre-training", f"without labels, on {pretraining.get('corpus')}, no test patient among it"))
    return table(("", ""), [(key, escaped(value)) for key, value in rows])


def _around(features: Mapping[str, Any]) -> str:
    text = f"; {features['filter_kind']} {features['filter_cutoff_hz']} Hz" if features.get("filter_kind") else ""
    k = features.get("context_cycles")
    return text + (f"; the {k} cycles before and after join in" if k else "")


def _trained(encoder: Mapping[str, Any]) -> str:
    return _TRAINABLE[encoder["trainable"]]


def _epochs(run: Mapping[str, Any]) -> str:
    asked, best = run["config"]["train"]["epochs"], epochs_kept(run)
    return f"{asked}" + ("" if best is None else f"; the best was {best}")


def base_name(encoder: Mapping[str, Any]) -> Markdown:
    """Where the encoder's weights came from; a file by its name alone."""
    weights = encoder.get("weights")
    if not weights:
        return Markdown("random weights")
    return code(weights if is_hub_id(weights) else plain(weights).rstrip("/").rsplit("/", 1)[-1])


def base_licence(encoder: Mapping[str, Any], pretrained: bool) -> str:
    """Terms of the weights that training began with."""
    if not encoder.get("weights"):
        return "none: training began with random weights"
    kind = encoder_class(encoder)
    licence, title = getattr(kind, "licence", ""), getattr(kind, "title", "") or getattr(kind, "__name__", "")
    if pretrained or not licence:
        return "those of the weights that training began with; see where they come from"
    return f"{licence} ({title}, as its authors released it)"


def facts_of(run: Mapping[str, Any]) -> type[Corpus] | None:
    """The class of a run's corpus, with what is known of it, or None where it states nothing."""
    corpus = find_corpus(run["corpus"]["name"])
    return corpus if corpus is not None and corpus.origin else None


def limitations(
    run: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], outdated: Sequence[str], settings: CardSettings
) -> list[Any]:
    """What a reader must not overlook, a line each."""
    lines: list[Any] = list(facts.limitations) if (facts := facts_of(run)) else []
    for part in parts:
        name = code(part["name"])
        if part["stamp"]:
            lines.append(Markdown(f"The split is stamped: {escaped(part['stamp'])}."))
        if part["shares"]:
            said = "no estimate for new patients" if not part["headline_worthy"] else "too good by as much"
            lines.append(Markdown(f"Part {name} {escaped(part['shares'])}: its scores are {said}."))
        if part["external"]:
            where = code(part["evaluated"]["corpus"]["name"])
            lines.append(Markdown(f"Part {name} is of another corpus ({where}) than the training data."))
        if part["scored"] > 1:
            lines.append(Markdown(f"Part {name} was scored {part['scored']} times with this run."))
        lines += [Markdown(f"{name}: {escaped(warning['text'])}") for warning in part["metrics"]["warnings"]]
    for split in outdated:
        said = "was scored with another calibration or other thresholds and is not shown; score it again"
        lines.append(Markdown(f"Part {code(split)} {said}."))
    if not parts:
        lines.append("No held-out part was scored with the model as it is: nothing is known of how good it is.")
    for entry in run.get("calibrations") or []:
        if entry.get("scored_before"):
            lines.append("Thresholds were fitted anew after the model had been scored.")
            break
    one = f"{len(members)} runs with seeds" if (members := run.get("members")) else "One run with seed"
    lines.append(f"{one} {seeds_of(run)}: what other seeds would give is not in this card.")
    lines.append("A wheeze or crackle that is heard is a sign, not a diagnosis; labels are judgements by ear.")
    if settings.out_of_scope:
        lines.append(settings.out_of_scope)
    return list(dict.fromkeys(escaped(line) for line in lines))


def shown_command(command: Any) -> str:
    """A command line without the folders of the machine it ran on."""
    text = " ".join(map(str, command)) if isinstance(command, list | tuple) else str(command)
    return str(without_machine_paths(plain(text)))
