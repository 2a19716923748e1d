"""PhysioNet/CinC 2016 in its published layout, by recordings and by windows."""

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import audio_twins
from laennec.audio.cycles import AnnotationError
from laennec.cli.main import main
from laennec.corpora import check_corpus, load_corpus, provenance
from laennec.corpora.physionet2016 import PhysioNet2016, read_reference
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, some_recordings: list[Path]) -> Path:
    return audio_twins.physionet2016(tmp_path_factory.mktemp("physionet") / "challenge-2016", some_recordings)


@pytest.fixture
def own(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "own"))


def rows(folder: Path, **options: Any) -> list[dict[str, Any]]:
    return PhysioNet2016(folder, **options).table().to_list()


def test_a_row_is_a_recording(published: Path) -> None:
    found = rows(published)
    assert len(found) == 20
    first = found[0]
    wanted = ("cycle_id", "recording_id", "patient_id", "database", "fold", "part", "source_sampling_rate")
    assert [first[name] for name in wanted] == ["a0001#record", "a0001", None, "a", 0, "training-a", 2000]
    assert (first["start_s"], first["end_s"]) == (0.0, 4.3)
    assert (first["crackle"], first["wheeze"], first["label"], first["chest_location"]) == (None,) * 4
    assert Counter((row["database"], row["fold"], row["heart_sound"]) for row in found) == {
        ("a", 0, 1): 4, ("a", 0, 0): 4, ("b", 1, 1): 2, ("b", 1, 0): 4, ("e", 4, 1): 2, ("e", 4, 0): 4,
    }  # fmt: skip
    assert [row["signal_quality"] for row in found[:3]] == [0, 1, 1]


def test_a_row_is_a_window(published: Path) -> None:
    found = [row for row in rows(published, level="window", window_s=2.0, hop_s=1.0) if row["recording_id"] == "a0001"]
    # 4.3 s: starts each second as long as a window fits, and one more window that ends with the recording
    assert [(row["start_s"], round(row["end_s"], 6)) for row in found] == [(0, 2), (1, 3), (2, 4), (2.3, 4.3)]
    assert [row["cycle_id"] for row in found] == [f"a0001#{k:02d}" for k in range(4)]
    assert {row["heart_sound"] for row in found} == {1}
    assert len(rows(published, level="window", window_s=9)) == 20  # shorter recordings are one row each


def test_a_database_is_left_out(published: Path) -> None:
    parts = load_corpus("physionet2016", published, fold=4)
    assert set(parts["test"]["database"]) == {"e"} and len(parts["test"]) == 6
    assert set(parts["train"]["database"]) | set(parts["validation"]["database"]) == {"a", "b"}
    assert not set(parts["train"]["recording_id"]) & set(parts["validation"]["recording_id"])
    assert {0, 1} == set(parts["validation"]["heart_sound"])  # stratified by the corpus' own classes
    origin = provenance(parts)
    assert (origin["protocol"], origin["fold"], origin["level"]) == ("database-out", 4, "recording")
    assert "patients unknown" in origin["stamp"] and "recordings (patients are not known)" in origin["validation"]


def test_the_validation_folder_is_left_out_and_said_to_be_copies(published: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        PhysioNet2016(published).check_usable()
    assert any(
        "2 recordings, 2 of them copies of training recordings by content; left out" in str(w.message) for w in warned
    )


def test_the_leak_check_finds_the_copies(published: Path) -> None:
    with pytest.raises(InputError, match=r"train and test share 2 duplicated recordings \(a0001 = validation/a0001"):
        load_corpus("physionet2016", published, protocol="validation-folder", validation_folder=True)
    report = check_corpus("physionet2016", published, validation_folder=True)
    assert sum("the same sound under 2 names" in problem for problem in report.problems) == 2


def test_a_validation_folder_of_other_recordings_is_a_test_part(own: Path, some_recordings: list[Path]) -> None:
    sounds = audio_twins.excerpts(some_recordings[::-1], 2, 3.1, 2000)
    for name, sound in zip(("a0001", "e0006"), sounds, strict=True):
        audio_twins.write(own / "validation" / f"{name}.wav", sound, 2000)
    parts = load_corpus("physionet2016", own, protocol="validation-folder", validation_folder=True)
    assert sorted(parts["test"]["recording_id"]) == ["validation/a0001", "validation/e0006"]
    with pytest.raises(InputError, match="has no test split"):
        load_corpus("physionet2016", own, protocol="validation-folder")


def test_poor_recordings_can_be_left_out(published: Path, own: Path) -> None:
    assert {row["signal_quality"] for row in rows(published, quality="good")} == {1}
    assert len(rows(published, quality="good")) == 17
    shutil.rmtree(own / "annotations")
    assert {row["signal_quality"] for row in rows(own)} == {None}
    with pytest.raises(InputError, match="no signal quality"):
        PhysioNet2016(own, quality="good").check_usable()


def test_quality_may_stand_beside_the_recordings(own: Path) -> None:
    shutil.rmtree(own / "annotations")
    (own / "training-b" / "REFERENCE-SQI.csv").write_text("b0001,1,0\nb0002,1,1\n")
    found = {row["recording_id"]: row["signal_quality"] for row in rows(own)}
    assert (found["b0001"], found["b0002"], found["b0003"], found["a0001"]) == (0, 1, None, None)


def test_labels_that_disagree_are_named_and_the_reference_counts(own: Path) -> None:
    table = own / "annotations" / "updated" / "training-a" / "REFERENCE_withSQI.csv"
    table.write_text(table.read_text().replace("a0002,1,", "a0002,-1,"))
    with pytest.warns(UserWarning, match="another label than in REFERENCE.csv, which is used, for a0002"):
        builder = PhysioNet2016(own).check_usable()
    assert {row["recording_id"]: row["heart_sound"] for row in builder.table().to_list()}["a0002"] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a0009,2", "line 9: 'a0009,2' is not name,1"),
        ("a0009", "line 9: 'a0009' is not"),
        ("a0009,1,3", "line 9: 'a0009,1,3' is not"),
        ("a0001,1", "line 9: recording 'a0001' is in the table twice"),
        ("a0009,1", "no recording a0009 although REFERENCE.csv has it"),
    ],
)
def test_bad_references_are_named(own: Path, line: str, words: str) -> None:
    with (own / "training-a" / "REFERENCE.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=words):
        PhysioNet2016(own).check_usable()


def test_what_does_not_pair_is_refused_or_left_out(own: Path) -> None:
    (own / "training-b" / "b0001.wav").unlink()
    (own / "training-b" / "b0002.wav").rename(own / "training-b" / "x.wav")
    with pytest.raises(InputError, match=r"no recording b0001 although RECORDS has it; add it.* \(2 more"):
        PhysioNet2016(own).check_usable()
    assert len(rows(own, allow_missing=True)) == 18


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "event"}, "physionet2016 has no level 'event'; valid: recording, window"),
        ({"level": "window", "window_s": 0}, "window_s is 0"),
        ({"level": "window", "window_s": "long"}, "window_s is 'long'"),
        ({"level": "window", "window_s": 1, "hop_s": 2}, "hop_s 2 is longer than window_s 1"),
        ({"quality": "best"}, "quality 'best'"),
    ],
)
def test_bad_settings(published: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PhysioNet2016(published, **options)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="no folders training-a to training-f"):
        PhysioNet2016(tmp_path)
    with pytest.raises(InputError, match="no level 'event'; valid: recording, window"):
        load_corpus("physionet2016", tmp_path, level="event")


def test_a_reference_by_itself(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a1,1,1\na2, -1 , 0\n\na3,0\n")
    assert read_reference(tmp_path / "r.csv") == {"a1": (1, 1), "a2": (0, 0), "a3": (None, None)}
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_reference(tmp_path / "none.csv")


def test_the_command_line_checks_and_splits(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "physionet2016", "--data-dir", str(published), "--check"]) == 0
    assert "heart_sound: normal (12), abnormal (8)" in capsys.readouterr().out
    flags = ["--level", "window", "--option", "window_s=2.5", "--fold", "1", "--sampling-rate", "2000"]
    assert main(["prepare", "physionet2016", "--data-dir", str(published), *flags]) == 0
    assert "test: 12 cycles of 6 recordings; 8 normal, 4 abnormal" in capsys.readouterr().out
