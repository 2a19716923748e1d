"""Groups by metadata columns, on random tables with missing values."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laennec.errors import InputError
from laennec.training.data.targets import GroupTable, age_band, group_codes, metadata_of, targets_of
from laennec.training.recipe import TargetSettings

VALUES = st.sampled_from(["a", "b", "c", None])
TABLES = st.integers(1, 30).flatmap(
    lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(max_examples=80, deadline=None)
@given(columns=TABLES)
def test_two_cycles_share_a_group_where_all_columns_agree(columns):
    keys = list(zip(*columns, strict=True))
    dropped, kept = group_codes(columns), group_codes(columns, "own_group")
    for i, first in enumerate(keys):
        assert (dropped[i] < 0) == (None in first) and kept[i] >= 0
        for j, second in enumerate(keys):
            assert (kept[i] == kept[j]) == (first == second)
            if dropped[i] >= 0:
                assert (dropped[i] == dropped[j]) == (first == second)
    for codes in (dropped[dropped >= 0], kept):
        assert set(codes) == set(range(len(set(codes))))


def test_codes_follow_the_values_not_their_order():
    assert group_codes([["b", "a", "b"]]).tolist() == [1, 0, 1]
    assert group_codes([["F", None], ["x", "x"]]).tolist() == [0, -1]


def test_ages_fall_into_bands_by_their_edges():
    bands = [age_band(age, [5, 18]) for age in (0.2, 4.99, 5, 17.9, 18, 90)]
    assert bands == ["000: 0 to 5"] * 2 + ["001: 5 to 18"] * 2 + ["002: 18 and more"] * 2
    assert age_band(None, [5]) is None and age_band(float("nan"), [5]) is None


def test_columns_come_from_the_table_by_their_recipe_names():
    table = datasets.Dataset.from_dict(
        {"cycle_id": list("pqrs"), "sex": ["F", "M", None, "F"], "age_years": [3.0, 3.0, 40.0, 40.0]}
    )
    metadata = metadata_of(table, np.array([0, 2, 3]))
    assert metadata == {"cycle_id": ["p", "r", "s"], "sex": ["F", None, "F"], "age_years": [3.0, 40.0, 40.0]}
    groups = GroupTable(3, metadata, [18])
    assert groups.codes("age_band+sex", "drop", "here").tolist() == [0, -1, 1]
    assert groups.codes(["age_band", "sex"], "own_group", "here").tolist() == [0, 2, 1]
    assert groups.describe_ungrouped(np.array([0, -1, 1])) == "unknown for 1 of 3 cycles (r)"


def test_the_class_and_its_flags_are_columns_like_others():
    crackle, wheeze = [0, 1, 0, 0, 1, 0, None], [0, 0, 1, 0, 0, 1, 1]
    patient = ["p", "p", "p", "p", "q", None, "q"]
    ids = [f"{row}" for row in range(7)]
    table = datasets.Dataset.from_dict({"cycle_id": ids, "crackle": crackle, "wheeze": wheeze, "patient_id": patient})
    targets = targets_of(table, TargetSettings(problem_type="multi_label"))
    kept = targets.kept.tolist()
    assert kept == [0, 1, 2, 3, 4, 5]  # the last one has no class
    groups = GroupTable(len(kept), targets.metadata)
    keys = {
        "class+patient_id": [None if patient[r] is None else (crackle[r], wheeze[r], patient[r]) for r in kept],
        "wheeze+patient_id": [None if patient[r] is None else (wheeze[r], patient[r]) for r in kept],
        "crackle": [crackle[r] for r in kept],
    }
    for labels, wanted in keys.items():
        codes = groups.codes(labels, "drop", "here")
        assert [code < 0 for code in codes] == [key is None for key in wanted]
        for i, first in enumerate(wanted):
            assert all((codes[i] == codes[j]) == (first == second) for j, second in enumerate(wanted))
    assert groups.codes("class+patient", "drop", "here").tolist() == [0, 1, 3, 0, 2, -1]
    assert np.array_equal(groups.codes("class", "drop", "here"), np.unique(targets.class_ids, return_inverse=True)[1])
    # half of the cycles, in another order
    rows = np.array([4, 0, 3])
    assert GroupTable(3, targets.take(rows).metadata).codes("class+patient", "drop", "here").tolist() == [1, 0, 0]


def test_any_column_of_single_values_makes_groups():
    values = {"crackle": [0, 1, None], "wheeze": [0, 1, 1], "ward": ["A", "B", "A"], "stridor": [1, 0, 1]}
    table = datasets.Dataset.from_dict(values | {"events": [["x"], [], []]})
    metadata = targets_of(table, TargetSettings(problem_type="multi_label")).metadata
    assert "events" not in metadata
    for name, codes in (("ward", [0, 1]), ("stridor", [1, 0])):
        assert GroupTable(2, metadata).codes(name, "drop", "here").tolist() == codes
    with pytest.raises(InputError, match=r"here has 'wrad'; columns are patient, .*; did you mean 'ward'"):
        GroupTable(2, metadata).codes("wrad", "drop", "here")


def test_pre_training_cannot_group_by_labels():
    table = datasets.Dataset.from_dict({"cycle_id": ["p", "q"], "crackle": [0, 1], "class": [0, 1], "sex": ["F", "M"]})
    metadata = metadata_of(table, np.arange(2))
    assert set(metadata) == {"cycle_id", "sex"}
    with pytest.raises(InputError, match="crackle is unknown for all 2"):
        GroupTable(2, metadata).codes("crackle", "drop", "pretrain.match")


@pytest.mark.parametrize(
    ("labels", "missing", "message"),
    [
        ("mood", "drop", "here has 'mood'; columns are patient, recording, device"),
        ("device", "drop", "device is unknown for all 2 training cycles"),
        ("sex+age_band", "drop", r"no training cycle has all of sex, age_band; unknown for 2 of 2 cycles \(p, q\)"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(labels, missing, message):
    metadata = {"cycle_id": ["p", "q"], "sex": ["F", None], "age_years": [None, 3.0], "device": [None, None]}
    with pytest.raises(InputError, match=message):
        GroupTable(2, metadata, [5]).codes(labels, missing, "here")
    with pytest.raises(InputError, match="must rise"):
        GroupTable(2, metadata, [18, 5])
