"""The `evaluate` metric: offline, ids and flags, batch by batch."""

import numpy as np
import pytest

from laennec.evaluation import confusion_matrix, icbhi_score


@pytest.fixture(scope="module")
def metric_class():
    from laennec.evaluation import IcbhiScore

    return IcbhiScore


def test_ids_and_flags_give_the_numpy_score(metric_class):
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 2, (2, 50, 2))
    true, predicted = truth[:, 0] + 2 * truth[:, 1], answer[:, 0] + 2 * answer[:, 1]
    expected = icbhi_score(confusion_matrix(true, predicted, 4))
    by_id = metric_class().compute(predictions=predicted, references=true)
    by_flag = metric_class().compute(predictions=answer.tolist(), references=truth.tolist())
    assert {name: by_id[name] for name in expected} == pytest.approx(expected)
    assert by_flag == by_id


def test_batches_add_up(metric_class):
    whole = metric_class().compute(predictions=[0, 1, 3, 2], references=[0, 1, 2, 2])
    metric = metric_class()
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[3, 2], references=[2, 2])
    assert metric.compute() == whole
    assert whole["Sp"] == 100.0 and whole["Se"] == pytest.approx(200 / 3) and whole["any_abnormal_Se"] == 100.0


def test_undefined_is_null_and_the_definition_is_told(metric_class):
    metric = metric_class()
    assert metric.compute(predictions=[0, 1], references=[0, 0])["Se"] is None
    assert "exact class" in metric.description
