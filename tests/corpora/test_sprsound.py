"""SPRSound in both of its layouts, at both of its levels, and what is refused."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import LABELS, AnnotationError
from laennec.corpora.sprsound import SprSound, read_events, read_record_label
from laennec.errors import InputError

ONE, TWO, THREE = "65083_5.5_0_p1_10", "65083_5.5_0_p3_11", "70001_11.0_1_p4_12"
EVENT = {"start": "100", "end": "900", "type": "Fine Crackle"}


def test_the_real_corpus(shared_data: Path, tmp_path: Path) -> None:
    rows = SprSound(shared_data / "sprsound", cache_dir=tmp_path).table().to_pandas()
    counts = rows["part"].value_counts().to_dict()
    assert counts == {"train": 6656, "test_intra": 1004}
    train = rows[rows["part"] == "train"]
    assert Counter(event for names in train["events"] for event in names) == {
        "Normal": 5159, "Fine Crackle": 912, "Wheeze": 452, "Coarse Crackle": 49, "Rhonchi": 39, "Wheeze+Crackle": 30,
        "Stridor": 15,
    }  # fmt: skip
    assert Counter(LABELS[code] for code in train["label"]) == {
        "normal": 5159, "crackle": 912 + 49, "wheeze": 452 + 39 + 15, "both": 30,
    }  # fmt: skip
    assert set(rows["source_sampling_rate"]) == {8000}
    assert set(rows["chest_location"]) == {"p1", "p2", "p3", "p4"}
    assert rows["cycle_id"].is_unique


def test_the_real_records(shared_data: Path, tmp_path: Path) -> None:
    rows = SprSound(shared_data / "sprsound", cache_dir=tmp_path, level="record").table().to_pandas()
    assert rows["part"].value_counts().to_dict() == {"train": 1949, "test_intra": 379}
    patients = {part: set(found["patient_id"]) for part, found in rows.groupby("part")}
    assert (len(patients["train"]), len(patients["test_intra"])) == (251, 162)
    assert patients["test_intra"] <= patients["train"]
    names = rows["events"].str[0]
    assert names[rows["part"] == "train"].value_counts().to_dict() == {
        "Normal": 1303, "DAS": 248, "Poor Quality": 177, "CAS": 126, "CAS & DAS": 95,
    }  # fmt: skip
    assert rows[names == "Poor Quality"][["crackle", "wheeze", "label"]].isna().all(axis=None)
    for name, label in (("Normal", 0), ("DAS", 1), ("CAS", 2), ("CAS & DAS", 3)):
        assert set(rows[names == name]["label"]) == {label}
    assert (rows["start_s"] == 0).all()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus in the layout of one folder a part."""
    root = tmp_path / "sprsound"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    for number, (part, name) in enumerate((("train", ONE), ("train", TWO), ("test_inter", THREE))):
        for kind in ("wav", "json"):
            (root / part / kind).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / part / "wav" / f"{name}.wav", noise * (1 - 0.1 * number), 8000)
        annotation = {"record_annotation": "DAS", "event_annotation": [EVENT]}
        (root / part / "json" / f"{name}.json").write_text(json.dumps(annotation))
    return root


def rows(root: Path, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    return SprSound(root, cache_dir=tmp_path / "cache", **options).table().to_list()


def test_a_row_says_everything(corpus: Path, tmp_path: Path) -> None:
    row = rows(corpus, tmp_path)[2]
    assert row.pop("audio_sha256")
    assert row == {
        "cycle_id": f"{THREE}#00", "recording_id": THREE, "patient_id": "70001", "cycle_index": 0, "start_s": 0.1,
        "end_s": 0.9, "crackle": 1, "wheeze": 0, "label": 1, "events": ["Fine Crackle"], "chest_location": "p4",
        "acquisition_mode": None, "device": "Yunting Model II", "age_years": 11.0, "sex": "F", "bmi": None,
        "diagnosis": None, "source_sampling_rate": 8000, "part": "test_inter",
        "recording_path": str(corpus / "test_inter" / "wav" / f"{THREE}.wav"),
    }  # fmt: skip
    assert rows(corpus, tmp_path)[0]["sex"] == "M"


@pytest.mark.parametrize("train", ["train", "train2022"])
def test_the_published_layout_gives_the_same(corpus: Path, tmp_path: Path, train: str) -> None:
    published = tmp_path / "published"
    shutil.copytree(corpus / "train" / "wav", published / f"{train}_wav")
    shutil.copytree(corpus / "train" / "json", published / f"{train}_json")
    shutil.copytree(corpus / "test_inter" / "wav", published / "test2022_wav")
    shutil.copytree(corpus / "test_inter" / "json", published / "test2022_json" / "inter_test_json")
    found = rows(published, tmp_path)
    expected = rows(corpus, tmp_path)
    for row in found + expected:
        row.pop("recording_path")
    assert found == expected


def test_the_intra_and_inter_tests_share_a_folder_of_sounds(corpus: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    shutil.copytree(corpus / "train" / "wav", published / "test2022_wav")
    for name, folder in ((ONE, "intra_test_json"), (TWO, "inter_test_json")):
        (published / "test2022_json" / folder).mkdir(parents=True)
        shutil.copy(corpus / "train" / "json" / f"{name}.json", published / "test2022_json" / folder)
    assert {row["recording_id"]: row["part"] for row in rows(published, tmp_path)} == {
        ONE: "test_intra",
        TWO: "test_inter",
    }


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({**EVENT, "type": "Squawk"}, "event 2: type 'Squawk'"),
        ({**EVENT, "start": "soon"}, "event 2: .*milliseconds"),
        ({**EVENT, "end": "100"}, "event 2: ends at 0.1 s but starts at 0.1 s"),
        ({**EVENT, "end": "1002"}, "event 2: .*lasts 1.000 s"),
        ({"start": "1", "end": "2"}, "event 2: lacks one of the keys"),
    ],
)
def test_bad_events_are_named_by_number(event: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"record_annotation": "DAS", "event_annotation": [EVENT, event]}))
    with pytest.raises(AnnotationError, match=words):
        read_events(path, duration_s=1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"event_annotation": [\n{"start"', "line 2: not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ('{"record_annotation": "DAS"}', "event_annotation: is missing"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_files_that_are_no_annotation(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=words):
        read_events(path)


def test_unknown_record_labels(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"record_annotation": "Fine", "event_annotation": []}')
    with pytest.raises(AnnotationError, match="record_annotation: 'Fine' is none of"):
        read_record_label(tmp_path / "a.json")


def test_what_does_not_pair_is_named(corpus: Path, tmp_path: Path) -> None:
    (corpus / "train" / "json" / f"{ONE}.json").unlink()
    with pytest.raises(InputError, match=f"audio without annotation: .*{ONE}"):
        rows(corpus, tmp_path)
    (corpus / "train" / "wav" / f"{TWO}.wav").unlink()
    with pytest.raises(InputError, match=rf"annotation without audio: .*{TWO}.*\(1 more"):
        rows(corpus, tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        assert [row["recording_id"] for row in rows(corpus, tmp_path, allow_missing=True)] == [THREE]


def test_annotations_alone_do_for_events_only(corpus: Path, tmp_path: Path) -> None:
    for path in corpus.rglob("*.wav"):
        path.unlink()
    with pytest.warns(UserWarning, match="without any audio"):
        assert len(rows(corpus, tmp_path)) == 3
    with pytest.warns(UserWarning), pytest.raises(InputError, match="level record needs"):
        rows(corpus, tmp_path, level="record")


def test_a_recording_in_two_splits_a_bad_name_and_a_wrong_folder(corpus: Path, tmp_path: Path) -> None:
    for kind, suffix in (("wav", "wav"), ("json", "json")):
        shutil.copy(corpus / "train" / kind / f"{ONE}.{suffix}", corpus / "test_inter" / kind)
    with pytest.raises(InputError, match="is in train too"):
        rows(corpus, tmp_path)
    (corpus / "test_inter" / "json" / f"{ONE}.json").rename(corpus / "test_inter" / "json" / "65083_five_0_p1_10.json")
    with pytest.raises(InputError, match="not an SPRSound name"):
        rows(corpus, tmp_path)
    with pytest.raises(InputError, match="no SPRSound folders"):
        rows(corpus / "train" / "wav", tmp_path)
    with pytest.raises(InputError, match="sprsound has no level 'cycle'; valid: event, record"):
        rows(corpus, tmp_path, level="cycle")


def test_a_repeated_event_counts_once_and_normal_excludes_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def events(*types: str) -> list[Any]:
        listed = [{"start": "10", "end": "900", "type": kind} for kind in types]
        path.write_text(json.dumps({"record_annotation": "CAS", "event_annotation": listed}))
        return read_events(path)

    assert [event.names for event in events("Wheeze", "Rhonchi", "Wheeze")] == [("Wheeze",), ("Rhonchi",)]
    for types in (("Wheeze", "Normal"), ("Normal", "Normal", "Stridor")):
        with pytest.raises(AnnotationError, match=rf"event {len(types)}: Normal and another type have the same times"):
            events(*types)
