"""What a score is_frozen on, and what to read before it.

Decisions: what was not recorded is said, not left out; a split that leaks, a stamp and a selection on anything but
validation patients stand before the score.
"""

from collections.abc import Mapping
from typing import Any

from laennec.evaluation.calibration import sigmoid
from laennec.evaluation.report_tables import NOT_RECORDED, provenance_of, shown_text


def seeds_of(run: Mapping[str, Any]) -> str:
    """The seed of a run, or those of the runs that answer together in it."""
    return ", ".join(shown_text(one.get("seed")) for one in run.get("members") or [run.get("config") or {}])


def epochs_kept(run: Mapping[str, Any]) -> str | None:
    """The epoch that a run kept, or those of the runs that answer together in it; None where none was chosen."""
    kept = [one.get("best_epoch") for one in run.get("members") or [run]]
    return ", ".join(f"{epoch:g}" for epoch in kept if isinstance(epoch, int | float)) or None


def heard_before(split: str, selection_set: Any) -> str | None:
    """What a model owes to the very part of its corpus that it is scored on; None where nothing is known of it."""
    if split == "train":
        return "is what the model was trained on"
    return "chose the epoch and the thresholds" if split == selection_set else None


def run_warnings(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the run record itself disappoints in."""
    provenance, found = provenance_of(run), []
    if provenance.get("stamp"):
        found.append(("bad", f"This split is stamped: {shown_text(provenance['stamp'])}."))
    leaks = provenance.get("leaks")
    if leaks:
        found.append(
            ("bad", f"Leak between the parts: {shown_text(leaks)}. Scores on this split are too good for new patients.")
        )
    selection = run.get("selection_set")
    if selection is None:
        found.append(("bad", "It is not recorded on which patients the epoch and the thresholds were chosen."))
    elif str(selection) != "validation":
        found.append(
            (
                "bad",
                f"The model was selected on \u201c{selection}\u201d, not on validation patients: too good a score.",
            )
        )
    corpus = run.get("corpus") or {}
    trained, evaluated = run.get("trained_on"), run.get("evaluated")
    if isinstance(trained, Mapping) and isinstance(evaluated, Mapping) and isinstance(corpus, Mapping):
        owes = (
            heard_before(str(evaluated.get("split")), selection) if trained.get("name") == corpus.get("name") else None
        )
        if owes:
            found.append(("bad", f"This part {owes}: its scores are no estimate for new patients."))
    if not (isinstance(corpus, Mapping) and corpus.get("fingerprint")) or not provenance.get("split_fingerprint"):
        found.append(
            (
                "caution",
                "The corpus or the split has no recorded fingerprint; others cannot check theirs.",
            )
        )
    return [{"level": level, "text": text} for level, text in found]


def facts(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every score must name, for the top of the page."""
    corpus, provenance = run.get("corpus") or {}, provenance_of(run)
    draws, counts = evaluation.get("bootstrap", {}), evaluation.get("counts", {})
    protocol = shown_text(provenance.get("protocol"))
    if provenance.get("fold") is not None:
        protocol += f", fold {provenance['fold']}"
    scored = f"{counts.get('cycles', 0):,} cycles, {draws.get('patients', counts.get('patients'))} patients"
    if counts.get("unlabelled"):
        scored += f"; {counts['unlabelled']:,} rows without a known truth left out"
    interval = NOT_RECORDED
    if draws:
        interval = f"95 %, patient-clustered bootstrap: percentiles of {draws['n_draws']:,} draws of patients, "
        interval += f"seed {draws['seed']}"
    thresholds = evaluation.get("thresholds")
    decision = "the likeliest class"
    if thresholds is not None:
        shown = (f"{name} where logit > {t:.3f} (raw probability {sigmoid(t):.3f})" for name, t in thresholds.items())
        decision = "; ".join(shown)
    part = (run.get("evaluated") or {}).get("split")
    times = sum(entry.get("split") == part for entry in run.get("evaluations") or [])
    return [
        ("Corpus", shown_text(corpus.get("name"))),
        ("Corpus fingerprint", shown_text(corpus.get("fingerprint"))),
        ("Protocol", protocol),
        ("Stamp", "none" if provenance and not provenance.get("stamp") else shown_text(provenance.get("stamp"))),
        ("Split fingerprint", shown_text(provenance.get("split_fingerprint"))),
        ("Selection set", shown_text(run.get("selection_set"))),
        ("Part", shown_text(part) + (f", scored {times} times by this run" if times > 1 else "")),
        ("Scored", scored),
        ("Decision", decision),
        ("Intervals", interval),
        ("Seeds", shown_text(run.get("seeds"))),
        ("Epoch kept", shown_text(epochs_kept(run))),
    ]
