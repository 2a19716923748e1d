"""An own metric: a function from the predictions table to named numbers. Run it: `python examples/own_metric.py RUN`.

The metric gets a 95 % interval over patients and its value in every subgroup, and appears in metrics.json, the
report and `laennec compare`. In a recipe it is `evaluation: {metrics: [own_metric:per_recording]}`, on the command line
`laennec evaluate RUN --metrics own_metric:per_recording`.
"""

import sys

import pandas as pd

import laennec


def per_recording(table: pd.DataFrame) -> dict[str, float | None]:
    """Recall and precision of crackles per recording: a recording has crackles where at least one cycle has.

    Args:
        table: One row per cycle. `true_<label>`, `predicted_<label>` (0/1) and `probability_<label>` are truth,
            decision and probability; recording_id, patient_id, device, age_years, ... describe the cycle.
    """
    recordings = table.groupby("recording_id")[["true_crackle", "predicted_crackle"]].max()
    found = int((recordings["true_crackle"] & recordings["predicted_crackle"]).sum())
    true, predicted = (int(recordings[f"{kind}_crackle"].sum()) for kind in ("true", "predicted"))
    return {  # None: undefined
        "recording_recall": found / true if true else None,
        "recording_precision": found / predicted if predicted else None,
    }


def main(run: str) -> None:
    """Score a run on its test split with the metric beside the built-in ones."""
    scored = laennec.score(run, metrics=[per_recording])
    print(scored.summary)
    for name in ("recording_recall", "recording_precision"):
        print(name, scored.evaluation["values"][name], scored.evaluation["intervals"][name])


if __name__ == "__main__":
    main(sys.argv[1])
