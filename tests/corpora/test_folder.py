"""Anybody's folder, described by a CSV or by label files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from laennec.corpora import check_corpus
from laennec.corpora.folder.corpus import Folder
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "ward 3").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    soundfile.write(root / "a.wav", noise, 8000)
    soundfile.write(root / "ward 3" / "b.flac", noise[::-1], 8000)
    return root


def rows(folder: Path, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    return Folder(folder, cache_dir=tmp_path / "cache", **options).table().to_list()


def brief(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["cycle_id"], row["start_s"], row["end_s"], row["crackle"], row["wheeze"]) for row in found]


def test_a_full_table(folder: Path, tmp_path: Path) -> None:
    (folder / "cycles.csv").write_text(
        "recording,start_s,end_s,crackle,wheeze,patient_id,device,chest_location,sex,age_years,diagnosis,bmi\n"
        "a.wav,1.0,2.0,0,1,P1,Thinklabs,Al,female,61,COPD,27.5\n"
        "a,0,1.0,1,0,P1,,,,,,\n"
        "ward 3/b.flac,0.5,1.5,1,1,P2,,,m,NA,,\n"
    )
    found = rows(folder, tmp_path)
    assert brief(found) == [("a#00", 0, 1, 1, 0), ("a#01", 1, 2, 0, 1), ("ward 3/b#00", 0.5, 1.5, 1, 1)]
    wanted = ("patient_id", "device", "chest_location", "sex", "age_years", "diagnosis", "bmi", "source_sampling_rate")
    assert [found[0][name] for name in wanted] == ["P1", "Thinklabs", "Al", "F", 61, "COPD", 27.5, 8000]
    assert [found[2][name] for name in wanted[:-1]] == ["P2", None, None, "M", None, None, None]
    assert found[2]["recording_path"] == str(folder / "ward 3" / "b.flac")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_synonyms_and_delimiters(folder: Path, tmp_path: Path, delimiter: str) -> None:
    lines = ["File;Start;End;Label;Patient;remark", "b;0;1;Both;x;", "b;1;2;normal;x;ok", "a;0;1;crackle+wheeze;y;"]
    (folder / "c.csv").write_text("\ufeff" + "\n".join(lines).replace(";", delimiter) + "\n\n")
    assert [row["label"] for row in rows(folder, tmp_path)] == [3, 3, 0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.wav,0,1,normal,P1,", "line 3: recording 'c.wav' is not in the folder"),
        ("a,0,1,crackel,P1,", "line 3: label 'crackel': did you mean 'crackle'"),
        ("a,0,1,normal+cough,P1,", r"line 3: label 'normal\+cough' contains normal and another"),
        ("a,0,1,,P1,", "line 3: no label"),
        ("a,0,1,normal,P2,", "line 3: patient_id 'P2' differs"),
        ("a,0,1,normal,P1,-1", "line 3: age_years '-1'"),
    ],
)
def test_bad_lines_are_named(folder: Path, tmp_path: Path, line: str, words: str) -> None:
    (folder / "c.csv").write_text(f"recording,start_s,end_s,label,patient_id,age_years\na,0,1,normal,P1,\n{line}\n")
    with pytest.raises(InputError, match=words):
        rows(folder, tmp_path)


@pytest.mark.parametrize(
    ("header", "line", "words"),
    [
        ("recording,start_s,end_s", "a,0,1", "cycles need a column label"),
        ("recording,start_s,label", "a,0,normal", "start_s and end_s go together"),
        ("start_s,end_s,label", "0,1,normal", "must name each column once"),
        ("recording,file,start_s,end_s,label", "a,a,0,1,normal", "must name each column once"),
        ("recording,start_s,end_s,crackle,wheeze", "a,0,1,yes,0", "line 2: crackle 'yes'"),
        ("recording,start_s,end_s,crackle,wheeze,label", "a,0,1,1,0,wheeze", "line 2: label 'wheeze' contradicts"),
        ("recording,start_s,end_s,crackle,wheeze", "a,0,1,1,", "line 2: no label"),
        ("recording,start_s,end_s,label,sex", "a,0,1,normal,x", "line 2: sex 'x'"),
        ("recording,start_s,end_s,label", "", "no rows"),
    ],
)
def test_bad_tables(folder: Path, tmp_path: Path, header: str, line: str, words: str) -> None:
    (folder / "c.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(InputError, match=words):
        rows(folder, tmp_path)


def test_label_files_beside_the_recordings(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("0.0\t1.0\tcrackle\n\\\t100\t900\n1.0\t2.0\tnormal\n")
    (folder / "ward 3" / "b.txt").write_text("0.0\t1.5\t0\t1\n")
    assert brief(rows(folder, tmp_path)) == [("a#00", 0, 1, 1, 0), ("a#01", 1, 2, 0, 0), ("ward 3/b#00", 0, 1.5, 0, 1)]
    (folder / "people.csv").write_text("recording,patient_id,age\na,P7,50\nb,P8,\n")
    found = rows(folder, tmp_path)
    assert [(row["patient_id"], row["age_years"]) for row in found] == [("P7", 50), ("P7", 50), ("P8", None)]
    (folder / "a.txt").write_text("0.0\t1.0\tweeze\n")
    with pytest.raises(InputError, match=r"a\.txt, line 1: label 'weeze': did you mean 'wheeze'"):
        rows(folder, tmp_path)


def test_real_recordings_with_their_icbhi_text(shared_data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="101 of 101 recordings have no patient_id and count as a patient each"):
        found = rows(shared_data / "icbhi2017_subset", tmp_path)
    assert len(found) == 1121
    assert len({row["patient_id"] for row in found}) == 101


def test_unsorted_label_files_become_rows_in_the_order_of_time(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("1.0\t2.0\twheeze\n0.0\t1.0\tcrackle\n")
    assert brief(rows(folder, tmp_path)) == [("a#00", 0, 1, 1, 0), ("a#01", 1, 2, 0, 1)]
    assert "no problems" in check_corpus("folder", folder).lines()
    (folder / "a.txt").write_text("1.0\t2.0\twheeze\n0.0\t1.1\tcrackle\n")
    (problem,) = check_corpus("folder", folder).problems
    assert "cycle at 1 s of a starts before 1.1 s" in problem


def test_labels_in_the_table_and_in_label_files_need_a_choice(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,patient_id,label\na,P1,crackle\nb,P2,normal\n")
    (folder / "a.txt").write_text("0.0\t1.0\twheeze\n")
    with pytest.raises(InputError, match=r"c\.csv: has labels, and so has .*a\.txt; set corpus\.level \(--level\)"):
        rows(folder, tmp_path)
    assert brief(rows(folder, tmp_path, level="event")) == [("a#00", 0, 1, 0, 1)]
    whole = rows(folder, tmp_path, level="recording")
    assert brief(whole) == [("a#record", 0, 2, 1, 0), ("ward 3/b#record", 0, 2, 0, 0)]
    (folder / "c.csv").write_text("recording,patient_id,diagnosis\na,P1,COPD\nb,P2,\n")  # a fact, not the label
    assert [(row["wheeze"], row["diagnosis"]) for row in rows(folder, tmp_path)] == [(1, "COPD")]


@pytest.mark.parametrize("annotations", [None, "c.csv"])
def test_the_only_folder_in_a_folder_or_archive_may_hold_the_table(
    folder: Path, tmp_path: Path, annotations: str | None
) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,label\na.wav,0,1,both\nward 3/b.flac,0,1,normal\n")
    (tmp_path / "parent").mkdir()
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "mine")
    folder.rename(tmp_path / "parent" / "mine")
    for place in (tmp_path / "parent", Path(archive)):
        found = rows(place, tmp_path, annotations=annotations)
        assert brief(found) == [("a#00", 0, 1, 1, 1), ("ward 3/b#00", 0, 1, 0, 0)]


def test_rows_without_recording_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,label\na,0,1,both\nx,0,1,normal\n")
    with pytest.raises(InputError, match=r"line 3: recording 'x' is not .*; correct the name, or pass allow_missing"):
        rows(folder, tmp_path)
    with pytest.warns(UserWarning, match=r"left out, .*c\.csv, line 3: recording 'x' is not in the folder$"):
        assert brief(rows(folder, tmp_path, allow_missing=True)) == [("a#00", 0, 1, 1, 1)]
    with pytest.raises(InputError, match="folder has no patient tables"):
        rows(folder, tmp_path, tables_dir=tmp_path)


def test_patients_named_like_their_recordings(folder: Path, tmp_path: Path) -> None:
    table = "recording,start_s,end_s,label,patient_id\na,0,1,both,a\nb,0,1,normal,"
    (folder / "c.csv").write_text(table)
    assert "1 of 2 recordings have no patient_id" in Folder(folder, cache_dir=tmp_path).notes[0]
    (folder / "c.csv").write_text(table + "p")
    assert Folder(folder, cache_dir=tmp_path).notes == []
    (folder / "c.csv").write_text(table + "A")
    with pytest.raises(InputError, match="patients 'A' and 'a' may be one person"):
        rows(folder, tmp_path)
    (folder / "ward 3" / "b.flac").rename(folder / "A.flac")
    (folder / "c.csv").write_text("recording,start_s,end_s,label\na,0,1,both\nA,0,1,normal")
    assert len(rows(folder, tmp_path)) == 2  # nobody stated these patients


def test_recordings_without_annotation_are_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("0.0\t1.0\tcrackle\n")
    with pytest.warns(UserWarning, match=r"recordings without annotation are left out \(1\): ward 3/b"):
        assert len(rows(folder, tmp_path)) == 1


def test_every_row_beyond_its_recording_is_listed(folder: Path) -> None:
    (folder / "cycles.csv").write_text("recording,start_s,end_s,label\na,0,1,normal\na,1,9,normal\na,2,1,wheeze\n")
    problems = [str(problem) for problem in check_corpus("folder", folder).problems]
    assert len(problems) == 2 and "line 3" in problems[0] and "line 4" in problems[1]


@pytest.mark.parametrize("suffix", [".au", ".caf", ".oga", ".opus", ".w64"])
def test_recordings_that_predict_reads_are_found(folder: Path, tmp_path: Path, suffix: str) -> None:
    """`laennec review` writes a table for every sound that predict reads."""
    kind = {".oga": "OGG", ".opus": "OGG"}.get(suffix)
    soundfile.write(folder / f"c{suffix}", np.zeros(8000), 8000, format=kind, subtype="OPUS" if kind else None)
    (folder / "labels.csv").write_text(f"recording,label\na.wav,normal\nc{suffix},wheeze\n")
    assert brief(rows(folder, tmp_path)) == [("a#record", 0, 2, 0, 0), ("c#record", 0, 1, 0, 1)]


def test_rare_files_beside_a_recording_and_blocks_of_audacity_are_not_recordings(folder: Path, tmp_path: Path) -> None:
    blocks = folder / "a_data" / "e00"
    blocks.mkdir(parents=True)
    for path in (folder / "a.au", blocks / "e0000.au"):
        soundfile.write(path, np.zeros(8000), 8000)
    (folder / "labels.csv").write_text("recording,label\na,normal\n")
    assert brief(rows(folder, tmp_path)) == [("a#record", 0, 2, 0, 0)]


def test_unlabelled_recordings_and_cycles_for_self_supervision(folder: Path, tmp_path: Path) -> None:
    found = rows(folder, tmp_path, unlabelled=True)
    assert brief(found) == [("a#record", 0, 2, None, None), ("ward 3/b#record", 0, 2, None, None)]
    assert [row["label"] for row in found] == [None, None]
    (folder / "a.txt").write_text("0.0\t1.0\tcrackle\n")
    assert brief(rows(folder, tmp_path, unlabelled=True)) == [
        ("a#00", 0, 1, 1, 0),
        ("ward 3/b#record", 0, 2, None, None),
    ]
    lines = "recording,start_s,end_s,label,patient_id\na,0,1,wheeze,P1\na,1,2,,P1\n"
    (folder / "c.csv").write_text(lines)
    assert brief(rows(folder, tmp_path, unlabelled=True)) == [
        ("a#00", 0, 1, 0, 1), ("a#01", 1, 2, None, None), ("ward 3/b#record", 0, 2, None, None)
    ]  # fmt: skip
    (folder / "c.csv").write_text("recording,start_s,end_s\nb,0.5,1\n")
    assert brief(rows(folder, tmp_path, unlabelled=True))[0][0] == "ward 3/b#00"
    (folder / "c.csv").write_text("recording,patient_id,chest_location\na,P1,Al\nb,P2,\n")
    (folder / "a.txt").unlink()
    whole = rows(folder, tmp_path, unlabelled=True)
    assert [(r["patient_id"], r["chest_location"], r["end_s"]) for r in whole] == [("P1", "Al", 2), ("P2", None, 2)]
    (folder / "c.csv").write_text("recording,start_s,end_s,crackle,wheeze\na,0,1,1,\n")
    with pytest.raises(InputError, match="line 2: no label"):
        rows(folder, tmp_path, unlabelled=True)


def test_which_table_and_which_recording(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is annotated"):
        rows(folder, tmp_path)
    for name in ("one", "two"):
        (folder / f"{name}.csv").write_text(
            f"recording,start_s,end_s,label\na,0,1,{'normal' if name == 'one' else 'both'}\n"
        )
    with pytest.raises(InputError, match="several CSV files"):
        rows(folder, tmp_path)
    assert rows(folder, tmp_path, annotations="two.csv")[0]["label"] == 3
    assert rows(folder, tmp_path, annotations=folder / "one.csv")[0]["label"] == 0
    with pytest.raises(InputError, match="no such annotation table"):
        rows(folder, tmp_path, annotations="three.csv")
    (folder / "two.csv").unlink()
    (folder / "a.wav").rename(folder / "ward 3" / "a.wav")
    assert rows(folder, tmp_path)[0]["recording_id"] == "ward 3/a"
    (folder / "ward 4").mkdir()
    (folder / "ward 4" / "a.wav").write_bytes((folder / "ward 3" / "a.wav").read_bytes())
    with pytest.raises(InputError, match="line 2: recording 'a' could be ward 3/a, ward 4/a"):
        rows(folder, tmp_path)


def test_a_folder_without_recordings(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no recordings"):
        rows(tmp_path / "empty", tmp_path)
