"""The pre-training set never contains a test patient."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audio_twins
from laennec.corpora import load_corpus
from laennec.corpora.base import to_arrow
from laennec.corpora.copies import canonical_hashes
from laennec.errors import InputError
from laennec.training.pretraining.dataset import (
    PRETRAINING,
    patients_of,
    pretraining_note,
    pretraining_set,
    refuse_seen_patients,
)
from laennec.training.recipe import PretrainSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def part(rows):
    """A cycle table of (patient, sound)."""
    empty = dict.fromkeys(("crackle", "wheeze", "label", "events", "age_years"))
    made = [
        {"cycle_id": f"{i}-{p}-{s}#00", "recording_id": f"{i}", "patient_id": p, "audio_sha256": s, "start_s": 0.0,
         "end_s": 1.0, "cycle_index": 0, **empty}
        for i, (p, s) in enumerate(rows)
    ]  # fmt: skip
    return datasets.Dataset(to_arrow(made))


ROWS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["s1", "s2", "s3", "s4", None])), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(train=ROWS, validation=ROWS, test=ROWS, inter=ROWS, both=st.booleans())
def test_no_patient_and_no_sound_of_a_split_that_is_held_out(train, validation, test, inter, both):
    parts = {"train": part(train), "validation": part(validation), "test_intra": part(test), "test_inter": part(inter)}
    chosen = PretrainSettings(splits=["train", "validation"] if both else ["train"])
    held = [*test, *inter, *([] if both else validation)]
    people, sounds = {p for p, _ in held}, {s for _, s in held} - {None}
    expected = [r for r in [*train, *(validation if both else [])] if r[0] not in people and r[1] not in sounds]
    if not expected:
        with pytest.raises(InputError):
            pretraining_set(parts, chosen)
        return
    table, dropped, _ = pretraining_set(parts, chosen)
    found = list(zip(table["patient_id"], table["audio_sha256"], strict=True))
    assert found == expected
    assert len(found) == len(train) + (len(validation) if both else 0) - (
        dropped["cycles of patients who are in test or validation"]
        + dropped["cycles whose sound is in test or validation"]
    )


def test_the_patients_that_icbhi_shares_between_train_and_test_are_left_out(shared_data):
    parts = load_corpus("icbhi2017", shared_data / "icbhi2017_annotations")
    table, left_out, _ = pretraining_set(parts, PretrainSettings())
    assert {"156", "218"} <= set(parts["train"]["patient_id"])
    assert not patients_of(table) & {
        "156",
        "218",
        *parts["test"]["patient_id"],
        *parts["validation"]["patient_id"],
    }
    assert left_out["patients who are in test or validation"] == 2
    more = patients_of(pretraining_set(parts, PretrainSettings(splits=["train", "validation"]))[0])
    assert set(parts["validation"]["patient_id"]) <= more
    assert not more & set(parts["test"]["patient_id"])


def test_a_split_by_cycles_leaves_the_patients_that_are_wholly_in_train(small_corpus):
    parts = load_corpus("synthetic", small_corpus, protocol="random-80-20")
    patients = {name: set(table["patient_id"]) for name, table in parts.items()}
    assert patients["train"] & patients["test"]
    found = patients_of(pretraining_set(parts, PretrainSettings())[0])
    assert found == patients["train"] - patients["test"] - patients["validation"]
    shared = {"train": part([("a", "s1")]), "test": part([("a", "s2")])}
    with pytest.raises(InputError, match=r"all 1 patients of train are in test too.*choose a corpus\.protocol"):
        pretraining_set(shared, PretrainSettings())


@pytest.mark.parametrize("level", ["recording", "window"])
def test_a_corpus_without_patients_is_kept_apart_by_recording_and_by_sound(some_recordings, tmp_path, caplog, level):
    folder = audio_twins.physionet2016(tmp_path / "d", some_recordings)
    for protocol in ("database-out", "recording-80-20"):
        parts = load_corpus("physionet2016", folder, protocol=protocol, level=level)
        caplog.clear()
        found, _, _ = pretraining_set(parts, PretrainSettings(), canonical_hashes(parts))
        held_out = {name for part in ("validation", "test") for name in parts[part]["recording_id"]}
        assert set(found["recording_id"]) == set(parts["train"]["recording_id"]) - held_out
        assert not patients_of(found) and "have no patient: they are kept apart" in caplog.text
        # an encoder that is pre-trained on this set may be tested on this split, but on no other
        note = pretraining_note(parts, found)
        (tmp_path / PRETRAINING).write_text(json.dumps(note))
        assert refuse_seen_patients(tmp_path, parts)["protocol"] == protocol
        other = load_corpus("physionet2016", folder, protocol="database-out", fold=1, level=level)
        with pytest.raises(InputError, match="was pre-trained on sounds of test"):
            refuse_seen_patients(tmp_path, other)
    whole = load_corpus("physionet2016", folder, protocol="none", level=level)
    found, _, _ = pretraining_set(whole, PretrainSettings())
    assert set(found["recording_id"]) == set(whole["all"]["recording_id"])
    assert len(found) == (40 if level == "recording" else len(whole["all"]))
    split = load_corpus("physionet2016", folder, protocol="random-80-20", level="window", window_s=1.0)
    found, _, _ = pretraining_set(split, PretrainSettings())
    assert not set(found["recording_id"]) & set(split["test"]["recording_id"])


def test_a_corpus_without_a_test_split_is_all_for_pre_training(small_corpus):
    parts = load_corpus("synthetic", small_corpus, protocol="none")
    assert len(pretraining_set(parts, PretrainSettings())[0]) == len(parts["all"]) > 50


def test_recordings_that_nobody_annotated_are_cut_into_windows(small_corpus):
    parts = load_corpus("synthetic", small_corpus, protocol="none")
    assert pretraining_set(parts, PretrainSettings())[2] == 0
    firsts = [row for row in parts["all"] if row["cycle_index"] == 0][:3]
    whole = [dict(row, cycle_id=f"{row['recording_id']}#record", start_s=0.0, end_s=7.0) for row in firsts]
    table = datasets.Dataset(to_arrow([*whole, dict(parts["all"][5])]))
    found, _, windows = pretraining_set({"all": table}, PretrainSettings(window_s=3.0, hop_s=2.5))
    spans = list(zip(found["start_s"], found["end_s"], strict=True))
    assert spans[:3] == [(0.0, 3.0), (2.5, 5.5), (4.0, 7.0)] and windows == 9 and len(spans) == 10
    assert found["cycle_id"][1].endswith("#window001") and len(set(found["cycle_id"])) == 10
    assert found["cycle_id"][9] == parts["all"][5]["cycle_id"]


def test_an_encoder_is_refused_on_a_split_that_tests_its_patients(small_corpus, tmp_path):
    ours = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20", seed=0)
    note = pretraining_note(ours, pretraining_set(ours, PretrainSettings())[0])
    (tmp_path / PRETRAINING).write_text(json.dumps(note))
    told = refuse_seen_patients(tmp_path, ours)
    assert told["split_fingerprint"] and "patients" not in told
    other = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20", seed=1)
    with pytest.raises(InputError, match=r"was pre-trained on patients of test .*run laennec pretrain on the split"):
        refuse_seen_patients(tmp_path, other)
    assert refuse_seen_patients(tmp_path / "elsewhere", other) is None and refuse_seen_patients(None, other) is None
    # equal patient numbers in another corpus are other patients
    (tmp_path / PRETRAINING).write_text(json.dumps(note | {"corpus_fingerprint": "0", "sounds": {}}))
    assert refuse_seen_patients(tmp_path, other) is not None


def test_no_label_is_looked_at(small_corpus):
    parts = load_corpus("synthetic", small_corpus)
    blank = {
        name: datasets.Dataset(to_arrow([dict(r, label=None, crackle=None, wheeze=None) for r in t]), info=t.info)
        for name, t in parts.items()
    }
    ids = [pretraining_set(p, PretrainSettings())[0]["cycle_id"][:] for p in (parts, blank)]
    assert np.array_equal(*ids)
