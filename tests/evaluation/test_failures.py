"""The worst errors: lists by naive loops, at most one of a recording."""

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import LABELS, TWO, cycles

from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.report.failures import named_errors, worst_errors


def test_classes_have_one_list_and_a_table_without_names_none():
    table = cycles(skill=0.3)
    for name in ("normal", "both"):
        table[f"logit_{name}"] = 0.1
    answers = read_predictions(table, problem_type="single_label", label_names=["normal", *LABELS, "both"])
    found = named_errors(answers, 3)
    assert len(found) == 3 and {row["kind"] for row in found} == {"wrong class"}
    surest = max(answers.confidence[answers.true != answers.predicted])
    assert found[0]["probability"] == pytest.approx(surest)
    labels = read_predictions(table, problem_type="multi_label", label_names=LABELS)
    lists = {
        (group["label"], group["kind"]): [row["cycle_id"] for row in group["rows"]] for group in worst_errors(labels)
    }
    for key, ids in lists.items():
        assert [row["cycle_id"] for row in named_errors(labels, 6) if (row["label"], row["kind"]) == key] == ids
    nameless = read_predictions(table.drop(columns="cycle_id"), problem_type="multi_label", label_names=LABELS)
    assert named_errors(nameless) == []


def test_lists_have_the_worst_errors_one_of_a_recording():
    answers = read_predictions(cycles(), **TWO, thresholds={"crackle": 0.5, "wheeze": -0.5})
    groups = {(g["label"], g["kind"]): g for g in worst_errors(answers, per_group=4)}
    for k, name in enumerate(["crackle", "wheeze"]):
        for kind, there in (("missed", 1), ("false alarm", 0)):
            wrong = (answers.truth[:, k] == there) & (answers.decided[:, k] != there)
            group = groups[name, kind]
            assert group["errors"] == wrong.sum()
            # naive: walk through the errors, surest first, and skip recordings seen
            order = sorted(np.flatnonzero(wrong), key=lambda r: answers.logits[r, k] * (1 if there else -1))
            expected, seen = [], set()
            for row in order:
                recording = answers.table["recording_id"][row]
                if recording not in seen and len(expected) < 4:
                    expected.append(row)
                    seen.add(recording)
            assert [row["row"] for row in group["rows"]] == expected
            for row in group["rows"]:
                assert row["probability"] == pytest.approx(answers.probabilities[row["row"], k])
                assert row["truth"] == answers.table["label"][row["row"]] and row["truth"] != row["answer"]


def test_no_errors_no_lists_and_missing_cells_are_none():
    table = cycles().assign(sex=pd.array([None] * 280, dtype="string"))
    perfect = table.assign(logit_crackle=table.crackle - 0.5, logit_wheeze=table.wheeze - 0.5)
    assert worst_errors(read_predictions(perfect, **TWO)) == []
    row = worst_errors(read_predictions(table, **TWO))[0]["rows"][0]
    assert row["sex"] is None and isinstance(row["start_s"], float)


def test_many_classes_and_many_labels_have_one_list():
    random = np.random.default_rng(0)
    names = [f"class{k}" for k in range(6)]
    table = pd.DataFrame({f"logit_{name}": random.normal(size=60) for name in names})
    table = table.assign(
        label=[names[k % 6] for k in range(60)], patient_id="p", recording_id=[str(k) for k in range(60)]
    )
    (group,) = worst_errors(read_predictions(table, problem_type="single_label", label_names=names))
    assert all(row["truth"] != row["answer"] for row in group["rows"]) and len(group["rows"]) == 6
    flags = table.drop(columns="label").assign(
        **{name: (np.arange(60) % 6 == k).astype(int) for k, name in enumerate(names)}
    )
    answers = read_predictions(flags, problem_type="multi_label", label_names=names)
    (group,) = worst_errors(answers)
    gap = np.abs(answers.probabilities - answers.truth) * (answers.decided != answers.truth)
    assert group["rows"][0]["row"] == gap.max(1).argmax()
    assert group["rows"][0]["label"] == names[gap.max(0).argmax()]
