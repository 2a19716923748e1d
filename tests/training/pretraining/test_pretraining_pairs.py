"""Positive pairs: every mode against a naive loop over all pairs of cycles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laennec.errors import InputError
from laennec.training.data.targets import GroupTable
from laennec.training.pretraining.pairs import make_pretrain_sampler, pair_sampling
from laennec.training.recipe import PretrainSettings

PATIENTS, PLACES = st.sampled_from(["1", "2", "3"]), st.sampled_from(["Al", "Tc", None])
ROWS = st.lists(
    st.tuples(PATIENTS, PLACES, st.sampled_from([3.0, 30.0, None]), st.sampled_from(["F", "M"])), min_size=2
)
MODES = ["same_recording", "same_patient_same_location", "same_patient_other_location", "same_location_across_patients"]


def table(rows):
    patient, place, age, sex = (list(column) for column in zip(*rows, strict=True))
    recording = [f"{a}{b}" for a, b in zip(patient, sex, strict=True)]
    columns = {"patient_id": patient, "chest_location": place, "age_years": age, "sex": sex, "recording_id": recording}
    return GroupTable(len(rows), columns, [18.0])


def fits(mode, one, other):
    """The definition of a mode, for two different cycles (patient, location, ...)."""
    patient, place = one[0] == other[0], one[1] == other[1]
    return {
        "same_recording": patient and one[3] == other[3],
        "same_patient_same_location": patient and place,
        "same_patient_other_location": patient and not place,
        "same_location_across_patients": place and not patient,
    }[mode]


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS, mode=st.sampled_from(MODES), missing=st.sampled_from(["drop", "own_group"]),
    unpaired=st.sampled_from(["own_views", "drop"]), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_pairs_are_those_of_a_naive_loop(rows, mode, missing, unpaired, seed):
    chosen = PretrainSettings(pairs=mode, missing=missing, unpaired=unpaired)
    any_place = missing == "own_group" or mode == "same_recording"
    takes_part = [i for i, row in enumerate(rows) if row[1] is not None or any_place]
    partners = {i: [j for j in takes_part if j != i and fits(mode, rows[i], rows[j])] for i in takes_part}
    expected = [i for i in takes_part if partners[i] or unpaired == "own_views"]
    unplaced = mode != "same_recording" and all(row[1] is None for row in rows)
    if unplaced or not any(partners.values()) or len(expected) < 2:
        with pytest.raises(InputError):
            pair_sampling(chosen, table(rows))
        return
    sampling = pair_sampling(chosen, table(rows))
    assert sampling.kept.tolist() == expected
    for place, row in enumerate(expected):
        assert sampling.positives.counts[place] == len(partners[row])
        drawn = {sampling.positives.draw(place, seed, epoch, 77 + row) for epoch in range(3)}
        if not partners[row]:
            assert drawn == {None}
        else:
            assert {expected[other] for other in drawn} <= set(partners[row])
    alone = sum(not partners[i] for i in takes_part)
    assert sampling.paired_with_themselves == (alone if unpaired == "own_views" else 0)
    left_out = sampling.left_out.get("cycles without a positive pair", 0)
    assert left_out == (alone if unpaired == "drop" else 0)
    assert sampling.left_out.get("cycles whose chest_location is unknown", 0) == len(rows) - len(takes_part)


def test_second_cycles_are_drawn_uniformly_and_by_counter():
    rows = [("1", "Al", 3.0, "F")] * 4 + [("1", "Tc", 3.0, "F")] * 3 + [("2", "Al", 3.0, "F")] * 2
    partners = pair_sampling(PretrainSettings(pairs="same_patient_other_location"), table(rows)).positives
    drawn = [partners.draw(5, 0, epoch, 9) for epoch in range(400)]
    assert np.bincount(drawn, minlength=9)[:4].min() > 60 and set(drawn) == {0, 1, 2, 3}
    assert drawn[7] == partners.draw(5, 0, 7, 9) and partners.draw(8, 0, 7, 9) is None


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, size=st.integers(2, 5), missing=st.sampled_from(["drop", "own_group"]))
def test_matched_batches_leave_out_groups_that_cannot_fill_them(rows, size, missing):
    chosen = PretrainSettings(match=["age_band", "sex"], missing=missing, batch_size=size)
    known = [i for i, row in enumerate(rows) if row[2] is not None or missing == "own_group"]
    groups = {}
    for i in known:
        groups.setdefault(rows[i][2:], []).append(i)
    fine = [g for g in groups.values() if len(g) >= size and len({rows[i][0] for i in g}) > 1]
    expected = sorted(i for g in fine for i in g)
    if not expected or all(row[2] is None for row in rows):
        with pytest.raises(InputError):
            pair_sampling(chosen, table(rows))
        return
    sampling = pair_sampling(chosen, table(rows))
    assert sampling.kept.tolist() == expected
    assert sum(sampling.left_out.values()) == len(rows) - len(expected)
    kept = [rows[i] for i in expected]
    patients = [row[0] for row in kept]
    batches = make_pretrain_sampler(chosen, sampling, patients, 5).order(2).reshape(-1, size)
    assert set(batches.ravel()) <= set(range(len(kept)))
    for batch in batches:
        assert len({kept[row][2:] for row in batch}) == 1
        people = [kept[row][0] for row in batch]
        assert len(set(people)) > 1
        cycles = [sum(row[0] == one and row[2:] == kept[batch[0]][2:] for row in kept) for one in people]
        if all(count >= people.count(one) for one, count in zip(people, cycles, strict=True)):
            assert len(set(batch.tolist())) == size  # no cycle is its own negative


def test_matching_and_pairing_agree_on_the_cycles_left():
    # without the single F cycle of patient 3, sex F fills no batch of 3 and is left out as a whole
    rows = [("1", "Al", 3.0, "F")] * 2 + [("3", "Tc", 3.0, "F")] + [("2", "Al", 3.0, "M"), ("4", "Al", 3.0, "M")] * 2
    chosen = PretrainSettings(pairs="same_patient_same_location", unpaired="drop", match=["sex"], batch_size=3)
    sampling = pair_sampling(chosen, table(rows))
    assert sampling.kept.tolist() == [3, 4, 5, 6] and (sampling.positives.counts == 1).all()
    assert sum(sampling.left_out.values()) == 3 and sampling.match_groups.tolist() == [0, 0, 0, 0]


def test_groups_that_fill_no_batch_and_those_of_few_patients_are_counted():
    rows = [("1", "Al", 3.0, "F"), ("2", "Al", 3.0, "F")] * 2 + [("3", "Al", 3.0, "M")]
    assert pair_sampling(PretrainSettings(match=["sex"], batch_size=3), table(rows)).notes == [
        "pretrain.match: 1 of 2 groups by sex have fewer than 2 patients or 3 cycles and are left out (1 cycles)",
        "pretrain.match: 1 groups have fewer than 3 patients, so their batches hold a patient more than once",
    ]
    assert pair_sampling(PretrainSettings(match=["sex"], batch_size=2), table(rows[:4])).notes == []


def test_unmatched_batches_hold_every_cycle_once_an_epoch():
    sampling = pair_sampling(PretrainSettings(), table([("1", "Al", 3.0, "F")] * 7))
    sampler = make_pretrain_sampler(PretrainSettings(), sampling, ["1"] * 7, 3)
    assert sorted(sampler.order(0)) == list(range(7)) and sampler.order(0).tolist() != sampler.order(1).tolist()


@pytest.mark.parametrize(("unpaired", "what"), [("drop", "are left out"), ("own_views", "are paired with themselves")])
def test_unpaired_cycles_are_noted(unpaired, what):
    rows = [("1", "Al", 3.0, "F")] * 2 + [("2", "Al", 3.0, "F")]
    chosen = PretrainSettings(pairs="same_patient_same_location", unpaired=unpaired)
    assert pair_sampling(chosen, table(rows)).notes == [
        f"pretrain.pairs: 1 of 3 cycles have no positive pair under same_patient_same_location and {what}"
    ]


def test_a_corpus_that_is_too_small_is_an_error_with_the_reason():
    with pytest.raises(InputError, match=r"1 cycles are left, fewer than 2; use a larger corpus$"):
        pair_sampling(PretrainSettings(), table([("1", "Al", 3.0, "F")]))
    rows = [("1", "Al", 3.0, "F"), ("2", "Al", 3.0, None), ("3", "Al", 3.0, None)]
    left_out = r"left out are 2 cycles whose sex is unknown, 1 cycles of groups by sex that fill no batch$"
    with pytest.raises(InputError, match=f"0 cycles are left, fewer than 2; {left_out}"):
        pair_sampling(PretrainSettings(match=["sex"], batch_size=2), table(rows))
    assert (
        pair_sampling(PretrainSettings(), table(rows)).paired_with_themselves == 0
    )  # with pairs: self no cycle needs a partner


def test_age_bands_are_groups_and_the_unknown_follows_the_setting():
    rows = [("1", "Al", 3.0, "F"), ("2", "Al", 30.0, "F"), ("3", "Al", None, "M"), ("3", "Tc", 17.9, "M")]
    dropped = pair_sampling(PretrainSettings(pairs="age_band"), table(rows))
    assert dropped.kept.tolist() == [0, 1, 3] and dropped.age_groups.tolist() == [0, 1, 0]
    assert dropped.left_out == {"cycles whose age_band is unknown": 1} and "unknown for 1 of 4" in dropped.notes[0]
    own = pair_sampling(PretrainSettings(pairs="age_band", missing="own_group"), table(rows))
    assert own.kept.tolist() == [0, 1, 2, 3] and len(set(own.age_groups.tolist())) == 3
    with pytest.raises(InputError, match="all cycles are of one band"):
        pair_sampling(PretrainSettings(pairs="age_band"), table(rows[:1] * 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": ["height"]}, "pretrain.match has 'height'; columns are"),
        ({"match": ["device"]}, "device is unknown for all 2"),
        ({"pairs": "same_patient_other_location"}, "2 of 2 cycles have no positive pair; choose another mode"),
    ],
)
def test_pair_modes_without_a_pair_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        pair_sampling(PretrainSettings(batch_size=2, **changes), table([("1", "Al", 3.0, "F"), ("2", "Al", 3.0, "F")]))
