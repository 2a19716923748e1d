from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from laennec.evaluation.comparison.statistics import (
    RunFigures,
    compare_methods,
    holm,
    pool_folds,
    power_text,
    run_figures,
)
from laennec.evaluation.intervals import standard_error
from laennec.evaluation.metrics import CLASSES
from laennec.evaluation.predictions import read_predictions

FIGURES = ["icbhi.Score", "crackle.roc_auc"]


def answers(skill, seed, cycles=240, patients=24):
    """A table of answers that know the truth the better the higher `skill` is."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, 2, size=(cycles, 2))
    table = pd.DataFrame({"cycle_id": [f"c{i}" for i in range(cycles)], "recording_id": "r"})
    table["patient_id"] = [str(i % patients) for i in range(cycles)]
    table["crackle"], table["wheeze"] = truth.T
    table["label"] = [CLASSES[c + 2 * w] for c, w in truth]
    logits = skill * (truth - 0.5) + random.normal(size=truth.shape)
    table["logit_crackle"], table["logit_wheeze"] = logits.T
    return read_predictions(table, problem_type="multi_label", label_names=["crackle", "wheeze"])


def runs(skill, seeds=(1, 2, 3)):
    return [run_figures(answers(skill, seed), FIGURES) for seed in seeds]


def test_a_better_method_differs_from_the_baseline_and_an_equal_one_does_not():
    compared = compare_methods({"plain": runs(1.0), "better": runs(2.5), "other": runs(1.0, (4, 5, 6))}, "plain")
    better, other, plain = (compared[m]["crackle.roc_auc"] for m in ("better", "other", "plain"))
    assert plain["difference"] is None and plain["p"] is None
    assert better["difference"] == pytest.approx(better["mean"] - plain["mean"])
    assert better["difference_interval"][0] > 0 and better["p_holm"] < 0.05
    assert other["difference_interval"][0] < 0 < other["difference_interval"][1] and other["p_holm"] > 0.05


def test_a_finding_of_few_patients_gets_no_claim():
    def few(skill, seed):
        """Two of 24 patients have crackles."""
        given = answers(skill, seed)
        truth = given.truth.copy()
        truth[(given.table["patient_id"].astype(int) >= 2).to_numpy(), 0] = 0
        return replace(given, truth=truth)

    measured = {name: [run_figures(few(skill, 1), FIGURES)] for name, skill in (("a", 1.0), ("b", 3.0))}
    assert measured["a"][0].effective["crackle.roc_auc"] < 3 < measured["a"][0].effective["icbhi.Score"]
    compared = compare_methods(measured, "a")["b"]
    crackle, whole = compared["crackle.roc_auc"], compared["icbhi.Score"]
    assert crackle["difference"] > 0
    assert all(crackle[name] is None for name in ("difference_interval", "p", "p_holm", "detectable"))
    assert whole["difference_interval"][0] > 0 and whole["p_holm"] < 0.05


def test_the_detectable_difference_is_what_most_studies_find():
    equal = {"plain": runs(1.0), "other": runs(1.0, (4, 5, 6)), "third": runs(1.0, (7, 8, 9))}
    compared = compare_methods(equal, "plain")
    cell = compared["other"]["crackle.roc_auc"]
    assert cell["smallest_p"] == pytest.approx(2 * 2 ** (1 - cell["effective"])) and cell["smallest_p"] < 1e-5
    sides = [np.mean([run.values["crackle.roc_auc"] for run in equal[name]], axis=0) for name in ("other", "plain")]
    seeds = [np.array([run.values["crackle.roc_auc"][0] for run in equal[name]]) for name in ("other", "plain")]
    error, freedom = standard_error(sides[0] - sides[1], cell["effective"], seeds)
    low, high = cell["difference_interval"]
    assert 3 < freedom < 22 and high - low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * error)
    # at 5 % over two comparisons, with a power of 80 %
    assert cell["detectable"] == pytest.approx(
        (stats.t.ppf(1 - 0.025 / 2, freedom) + stats.t.ppf(0.8, freedom)) * error
    )
    assert compared["plain"]["crackle.roc_auc"]["detectable"] is None
    text = power_text([one["crackle.roc_auc"] for one in compared.values()], "{:.3f}".format)
    assert text.startswith("smallest difference detectable with 80 % power: 0.") and text.endswith(
        "smallest possible p: < 0.001"
    )
    assert power_text([compared["plain"]["crackle.roc_auc"]], str) == ""


def test_each_method_may_have_a_baseline_of_its_own():
    sets = {"little": runs(0.5), "little, better": runs(2.0), "much": runs(2.0, (4, 5, 6)), "much, same": runs(2.0)}
    against = {"little": "little", "little, better": "little", "much, same": "much"}
    compared = {name: of["crackle.roc_auc"] for name, of in compare_methods(sets, against).items()}
    assert compared["little"]["difference"] is None and compared["much"]["difference"] is None
    for name in ("little, better", "much, same"):
        assert compared[name]["difference"] == pytest.approx(compared[name]["mean"] - compared[against[name]]["mean"])
    assert compared["little, better"]["p_holm"] == pytest.approx(2 * compared["little, better"]["p"])
    assert compared["little, better"]["p_holm"] < 0.05 < compared["much, same"]["p_holm"]
    alone = compare_methods({k: sets[k] for k in ("little", "little, better")}, "little")["little, better"]
    assert alone["crackle.roc_auc"]["difference"] == compared["little, better"]["difference"]


def test_mean_and_spread_are_those_of_the_seeds_and_a_run_differs_from_itself_by_nothing():
    own = runs(1.5)
    compared = compare_methods({"a": own, "b": own[:1]}, "b")
    values = [run.values["icbhi.Score"][0] for run in own]
    assert compared["a"]["icbhi.Score"]["mean"] == pytest.approx(np.mean(values))
    assert compared["a"]["icbhi.Score"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert compared["b"]["icbhi.Score"]["sd"] is None
    same = compare_methods({"a": own[:1], "b": own[:1]}, "b")["a"]["icbhi.Score"]
    assert same["difference"] == 0 and same["difference_interval"] == [0, 0] and same["p"] == 1


def test_an_interval_over_seeds_too_is_wider_than_one_over_patients_alone():
    # the same spread over patients, training seeds that lie far apart
    steady = np.r_[70, np.random.default_rng(0).normal(70, 1, 30)]
    run = [RunFigures({"f": steady + d}, frozenset("x"), {"f": 30}) for d in (-10, 0, 10)]
    apart = compare_methods({"m": run})["m"]["f"]["interval"]
    alike = compare_methods({"m": [run[1]] * 3})["m"]["f"]["interval"]
    assert apart[1] - apart[0] > 1.5 * (alike[1] - alike[0])


def test_no_p_value_is_below_that_of_a_sign_test_over_the_effective_patients():
    table = answers(1.0, 1, cycles=48, patients=6)
    sides = {"guess": table, "know": replace(table, logits=table.truth * 9.0 + table.logits)}
    cell = compare_methods({k: [run_figures(v, FIGURES)] for k, v in sides.items()}, "guess")["know"]["crackle.roc_auc"]
    assert cell["p"] == pytest.approx(2 ** (1 - cell["effective"])) == cell["smallest_p"] and 3 < cell["effective"] < 6


def test_intervals_and_p_values_hold_their_error_rate_over_patients_and_seeds():
    """Differences of two equal methods: patients, seeds of each method, and noise."""
    draw, studies, held, claims = np.random.default_rng(0), 400, 0, 0
    for _ in range(studies):
        patients, methods = draw.normal(size=30), {}
        for name in "ab":
            mine = patients + draw.normal(0, 0.5, 30)  # the same patients, who differ in what a method makes of them
            of_seeds = [draw.normal(0, 0.1) + mine + draw.normal(0, 0.2, 30) for _ in range(3)]
            values = [np.r_[v.mean(), (v.sum() - v) / 29] for v in of_seeds]
            methods[name] = [RunFigures({"f": v}, frozenset("x"), {"f": 30}) for v in values]
        cell = compare_methods(methods, "a")["b"]["f"]
        low, high = cell["difference_interval"]
        held, claims = held + (low <= 0 <= high), claims + (cell["p"] < 0.05)
    assert 0.92 <= held / studies <= 0.985 and claims == studies - held


def test_joined_folds_are_one_run_over_all_their_patients():
    whole = answers(1.5, 3)
    fold = np.array([int(patient) % 5 for patient in whole.table["patient_id"]])
    parts = [whole.subset(fold == k) for k in range(5)]
    pooled = pool_folds(parts)
    assert len(pooled.table) == 240 and set(pooled.table["cycle_id"]) == set(whole.table["cycle_id"])
    one, many = (run_figures(given, FIGURES) for given in (whole, pooled))
    for name in FIGURES:
        assert one.values[name] == pytest.approx(many.values[name]) and many.values[name].shape == (25,)
    assert one.cycles == many.cycles and one.effective == many.effective
    assert pool_folds(parts[:1]) is parts[0]
    # raw logits of heads trained apart have no common scale: one fold's are shifted, its probabilities are not
    shifted = replace(parts[0], logits=parts[0].logits + 40)
    again = run_figures(pool_folds([shifted, *parts[1:]]), FIGURES).values
    assert all(again[name] == pytest.approx(one.values[name]) for name in FIGURES)
    with pytest.raises(ValueError, match="in two folds"):
        pool_folds([*parts, parts[2]])
    with pytest.raises(ValueError, match="different labels"):
        pool_folds([parts[0], replace(parts[1], label_names=("crackle", "rub"))])


def test_other_cycles_are_refused():
    own = runs(1.0, (1,))
    fewer = [run_figures(answers(1.0, 1, cycles=200), FIGURES)]
    with pytest.raises(ValueError, match="not scored on the same cycles"):
        compare_methods({"a": own, "b": fewer})


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}
