"""The whole evaluation: baselines, subgroups, warnings, text and JSON."""

import json
from collections import Counter

import numpy as np
import pytest
from evaluation_tables import TWO, cycles, official_icbhi, with_class_logits

from laennec.evaluation import evaluate_predictions, format_summary, predictions_metrics
from laennec.evaluation.baselines import shortcut_baselines
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.subgroups import subgroup_tables
from laennec.evaluation.summary import figure_name, figure_text


@pytest.fixture(scope="module")
def evaluation():
    return evaluate_predictions(cycles(), **TWO, train_table=cycles(seed=9))


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_trivial_baselines_have_their_known_scores(evaluation):
    rows = by_name(evaluation["floors"])
    for name in ("always normal", "majority class"):
        assert rows[name]["values"]["icbhi.Score"] == 50.0 and rows[name]["values"]["sprsound.Score"] == 25.0
        assert rows[name]["values"]["crackle.roc_auc"] == 0.5


def test_a_shortcut_in_the_data_is_found_and_others_are_not(evaluation):
    rows = by_name(evaluation["floors"])
    assert rows["event length"]["values"]["crackle.roc_auc"] > 0.85  # crackle cycles were made longer
    assert rows["event length"]["values"]["wheeze.roc_auc"] < 0.65
    assert rows["device"]["values"]["crackle.roc_auc"] == pytest.approx(0.5, abs=0.1)


def test_shortcut_baselines_of_the_official_split_score_at_most_half(shared_data):
    train, test = official_icbhi(shared_data)
    assert test.label.value_counts().to_dict() == {"normal": 1579, "crackle": 649, "wheeze": 385, "both": 143}
    rows = by_name(shortcut_baselines(train, test))
    assert rows["always normal"]["values"]["icbhi.Score"] == 50.0
    # Measured: neither how long a cycle lasts nor its device is worth more than always answering normal here.
    assert 40 < rows["event length"]["values"]["icbhi.Score"] < 50
    assert 30 < rows["device"]["values"]["icbhi.Score"] < 50
    assert rows["device"]["values"]["crackle.roc_auc"] > 0.55


def test_advantage_is_the_paired_difference(evaluation):
    row = by_name(evaluation["floors"])["always normal"]
    score = evaluation["values"]["icbhi.Score"]
    assert row["advantage"]["value"] == pytest.approx(score - 50)
    low, high = row["advantage"]["interval"]
    assert (low + high) / 2 == pytest.approx(score - 50)
    one, other = evaluation["intervals"]["icbhi.Score"]
    assert 0.9 < (high - low) / (other - one) < 1.3  # a constant baseline adds no spread


def test_baselines_are_fitted_on_training_rows_only():
    train, test = cycles(seed=9), cycles(seed=4)
    flipped = test.assign(crackle=1 - test.crackle)
    first, second = shortcut_baselines(train, test), shortcut_baselines(train, flipped)
    area = [by_name(rows)["event length"]["values"]["crackle.roc_auc"] for rows in (first, second)]
    assert area[0] == pytest.approx(1 - area[1])  # the same ranking, judged by opposite truths
    assert shortcut_baselines(train, test) == first


def test_baselines_that_cannot_be_fitted_say_why():
    rows = by_name(shortcut_baselines(None, cycles()))
    assert "no training table" in rows["event length"]["skipped"]
    blank = cycles().assign(device=None)
    assert "device" in by_name(shortcut_baselines(blank, blank))["device"]["skipped"]
    single = cycles().assign(crackle=0, wheeze=0)
    assert by_name(shortcut_baselines(single, cycles()))["event length"]["values"]["icbhi.Score"] == 50.0


def test_integer_class_labels_of_a_dataset_are_understood():
    table = cycles().drop(columns=["crackle", "wheeze"])
    names = ["normal", "crackle", "wheeze", "both"]
    ids = table.assign(label=[names.index(label) for label in table.label])
    assert shortcut_baselines(table, table) == shortcut_baselines(ids, table)


def test_subgroups_are_the_scores_of_their_rows(evaluation):
    table = cycles()
    for row in evaluation["subgroups"]["device"]:
        part = table[table.device == row["value"]]
        assert row["cycles"] == len(part) and row["patients"] == part.patient_id.nunique()
        assert row["values"]["icbhi.Score"] == pytest.approx(predictions_metrics(part, **TWO)["values"]["icbhi.Score"])
    sexes = {row["value"]: row for row in evaluation["subgroups"]["sex"]}
    assert sexes["unknown"]["patients"] == 1 and set(sexes["unknown"]["intervals"].values()) == {None}
    assert "too few" in sexes["unknown"]["note"] and sexes["F"]["intervals"]["icbhi.Score"] is not None
    assert sum(row["cycles"] for row in evaluation["subgroups"]["age_band"]) == len(table)


def test_a_subgroup_without_an_interval_names_its_effective_patients():
    table = cycles()
    of_two = table.assign(crackle=table.crackle * table.patient_id.isin(["p0", "p3"]), wheeze=0)  # of device B
    rows = {row["value"]: row for row in subgroup_tables(read_predictions(of_two, **TWO))["device"]}
    abnormal = of_two.loc[of_two.crackle == 1, "patient_id"].value_counts()
    number = abnormal.sum() ** 2 / (abnormal**2).sum()
    assert rows["B"]["intervals"]["icbhi.Score"] is None
    assert rows["B"]["note"] == f"{number:.1f} effective patients: too few for an interval (at least 3 are needed)"


def test_the_summary_of_several_corpora_has_a_line_of_each():
    table = cycles()
    found = evaluate_predictions(table.assign(corpus=np.where(table.patient_id < "p3", "icbhi2017", "sprsound")), **TWO)
    lines = [line for line in format_summary(found).splitlines() if " patients (effective: " in line]
    for row, line in zip(found["subgroups"]["corpus"], lines, strict=True):
        behind = ", ".join(f"{name} {number:.1f}" for name, number in row["effective_patients"].items())
        assert line.split()[0] == row["value"]
        assert f"{row['cycles']} cycles of {row['patients']} patients (effective: {behind}): " in line
        for name, value in row["values"].items():
            if name == "icbhi.Score" or name.endswith("roc_auc"):
                assert f"{figure_name(name)} {figure_text(name, value, row['intervals'][name])}" in line
    assert "each corpus alone" not in format_summary(evaluate_predictions(table, **TWO))


AGES = [
    (0, "0-2"), (2.99, "0-2"), (3, "3-11"), (11.9, "3-11"), (12, "12-18"), (18.5, "12-18"), (19, "19-64"), (65, "65+"),
    (None, "unknown"), (np.nan, "unknown"), (-1, "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("age", "band"), AGES)
def test_age_bands_are_by_completed_years(age, band):
    table = cycles(n_patients=4, per_patient=1).assign(age_years=[age, 40.0, 40.0, 40.0])
    rows = subgroup_tables(read_predictions(table, **TWO))["age_band"]
    assert {row["value"]: row["cycles"] for row in rows} == Counter([band, *["19-64"] * 3])


def test_a_model_without_skill_gets_warnings():
    table = cycles(skill=0.0)
    texts = [w["text"] for w in evaluate_predictions(table, **TWO, train_table=cycles(seed=9))["warnings"]]
    assert any("is not above the baseline" in text for text in texts)
    assert any("crackle AUROC" in text and "below the baseline" in text and "event length" in text for text in texts)
    assert any("not distinguishable from chance" in text for text in texts)


def test_badly_calibrated_probabilities_get_a_caution():
    table = cycles()
    table["logit_crackle"] += 6.0
    found = evaluate_predictions(table, **TWO)
    ece = found["calibration"]["ece"]["crackle"]
    said = f"crackle: probabilities differ from observed frequencies by {ece:.3f} on average (ECE above 0.1)."
    assert (
        ece > 0.1
        and {"level": "caution", "text": said} in found["warnings"]
        and f"note: {said}" in format_summary(found)
    )
    calm = evaluate_predictions(table, **TWO, intercepts={"crackle": -6.0})
    assert ("crackle: prob" in str(calm["warnings"])) == (calm["calibration"]["ece"]["crackle"] > 0.1)


def test_evaluation_is_json_and_repeats_exactly(evaluation):
    text = json.dumps(evaluation, allow_nan=False)
    again = evaluate_predictions(cycles(), **TWO, train_table=cycles(seed=9))
    assert json.dumps(again, allow_nan=False) == text
    assert json.loads(text) == evaluation


def test_one_class_and_class_models_are_evaluated_too():
    one = evaluate_predictions(cycles().assign(wheeze=0), **TWO)
    assert one["values"]["wheeze.roc_auc"] is None and any("Wheeze: no positive" in w["text"] for w in one["warnings"])
    names = ["normal", "crackle", "wheeze", "both"]
    four = evaluate_predictions(with_class_logits(cycles()), problem_type="single_label", label_names=names)
    assert four["thresholds"] is None and four["headline"] == "icbhi.Score"
    json.dumps([one, four], allow_nan=False)


def test_summary_names_its_figures_in_words_and_prints_each_once(evaluation):
    assert evaluation["values"]["any_abnormal.Sp"] == evaluation["values"]["icbhi.Sp"]  # the keys stay
    found = evaluation | {"duration_blind": {"seconds": 0.5, "values": {"crackle.roc_auc": 0.625}}}
    text = format_summary(found)
    rows = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    for name in ("Sp ", "any-abnormal Sp", "SPRSound SP", "SPRSound SE", "SPRSound AS"):
        assert sum(row.startswith(name) for row in rows) == (name == "Sp "), name
    assert any(row.startswith("crackle calibration error (ECE)") for row in rows)
    head, crackle, wheeze = text.split("(length audit)\n")[1].splitlines()[:3]
    assert head.split("  ")[-1] == "length of the cycle alone" and "cycles of similar length" in head
    assert crackle.split()[3] == "0.625" and wheeze.split()[3] == "–" and "the middle 0.5 s of each cycle" in head
    assert "macro" not in text and "micro" not in text


def test_summary_has_definition_interval_baselines_and_warnings(evaluation):
    text = format_summary(evaluation)
    line = next(line for line in text.splitlines() if line.strip().startswith("ICBHI Score"))
    low, high = evaluation["intervals"]["icbhi.Score"]
    assert f"{evaluation['values']['icbhi.Score']:.1f} [{low:.1f}, {high:.1f}]" in line
    for part in (
        "exact class",
        "one patient left out at a time",
        "always normal",
        "event length",
        "not a medical device",
    ):
        assert part in text
    assert all(warning["text"] in text for warning in evaluation["warnings"]) and evaluation["warnings"]
