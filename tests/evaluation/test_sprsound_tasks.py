"""SPRSound tasks: the Poor Quality convention and the total."""

import pytest

from laennec.errors import InputError
from laennec.evaluation.sprsound_tasks import POOR_QUALITY, SPRSOUND_TASKS, sprsound_task, sprsound_total


def test_poor_quality_truth_enters_neither_se_nor_sp_but_predicting_it_is_an_error():
    truth = ["Normal", "Normal", "CAS", "DAS", "CAS & DAS", "CAS", POOR_QUALITY, POOR_QUALITY]
    answer = ["Normal", POOR_QUALITY, "CAS", "CAS", "CAS & DAS", POOR_QUALITY, POOR_QUALITY, "Normal"]
    got = sprsound_task("2-2", truth, answer)
    assert got["SP"] == pytest.approx(50.0)  # one of two Normal
    assert got["SE"] == pytest.approx(50.0)  # CAS and CAS & DAS of four adventitious
    assert got["Score"] == pytest.approx(50.0)
    assert got["poor_quality_recall"] == pytest.approx(50.0) and got["n_poor_quality"] == 2
    assert got["balanced_accuracy"] == pytest.approx((50 + 50 + 0 + 100 + 50) / 5)
    assert "neither" in got["convention"]


def test_never_predicting_poor_quality_scores_higher():
    truth = ["Normal"] * 4 + ["Adventitious"] * 4 + [POOR_QUALITY] * 4
    careful = ["Normal", "Normal", "Normal", POOR_QUALITY] + ["Adventitious"] * 3 + [POOR_QUALITY] + [POOR_QUALITY] * 4
    bold = ["Normal"] * 4 + ["Adventitious"] * 4 + ["Normal"] * 4
    careful_score, bold_score = sprsound_task("2-1", truth, careful), sprsound_task("2-1", truth, bold)
    assert bold_score["Score"] > careful_score["Score"]
    assert bold_score["poor_quality_recall"] == 0.0 < careful_score["poor_quality_recall"]
    assert bold_score["balanced_accuracy"] < careful_score["balanced_accuracy"]


def test_events_need_their_exact_class_in_task_1_2_but_not_in_1_1():
    truth, answer = ["Normal", "Wheeze", "Fine Crackle"], ["Normal", "Rhonchi", "Fine Crackle"]
    assert sprsound_task("1-2", truth, answer)["SE"] == pytest.approx(50.0)
    assert sprsound_task("1-1", truth, answer)["SE"] == pytest.approx(100.0)
    assert sprsound_task("1-1", ["Normal", "Adventitious"], ["Normal", "Wheeze"])["Score"] == pytest.approx(100.0)


@pytest.mark.parametrize("task", SPRSOUND_TASKS)
def test_always_normal_is_25_in_every_task(task):
    names = SPRSOUND_TASKS[task]
    got = sprsound_task(task, names, ["Normal"] * len(names))
    assert got["Score"] == pytest.approx(25.0)


def test_scores_of_nothing_are_null():
    got = sprsound_task("2-1", [POOR_QUALITY], [POOR_QUALITY])
    assert got["SE"] is None and got["Score"] is None and got["poor_quality_recall"] == 100.0


def test_total_weighs_the_four_tasks_and_wants_all():
    scores = {"1-1": 10.0, "1-2": 20.0, "2-1": 30.0, "2-2": 40.0}
    assert sprsound_total(scores) == pytest.approx(2 + 6 + 6 + 12)
    with pytest.raises(ValueError, match="2-2"):
        sprsound_total(dict.fromkeys(("1-1", "1-2", "2-1"), 1.0))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"Squawk.*Stridor"):
        sprsound_task("1-2", ["Squawk"], ["Normal"])
    with pytest.raises(ValueError, match="1-1"):
        sprsound_task("3-1", [], [])
    with pytest.raises(ValueError):
        sprsound_task("1-1", ["Normal"], [])
