"""Labels of the user's own in the corpus folder: names, columns, label files, whole recordings, patients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from laennec.corpora import check_corpus, load_corpus, provenance
from laennec.corpora.folder.corpus import Folder
from laennec.errors import InputError
from laennec.training.data.targets import span_of, target_of, targets_of
from laennec.training.recipe import TargetSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of two seconds: p1_left, p1_right, p2_left."""
    root = tmp_path / "mine"
    root.mkdir()
    for k, name in enumerate(("p1_left", "p1_right", "p2_left")):
        noise = np.random.default_rng(k).uniform(-0.5, 0.5, 16_000).astype(np.float32)
        soundfile.write(root / f"{name}.wav", noise, 8000)
    return root


def table_of(folder: Path, tmp_path: Path, **options: Any) -> Any:
    return Folder(folder, cache_dir=tmp_path / "cache", **options).table()


def classes(table: Any) -> list[str | None]:
    names = table.features["label"].names
    return [None if value is None else names[value] for value in table["label"][:]]


def target(table: Any) -> tuple[Any, ...]:
    found = target_of(table, TargetSettings())
    return found.problem_type, found.column, targets_of(table, TargetSettings()).names


def test_a_german_table_with_several_labels_in_a_cell(folder: Path, tmp_path: Path) -> None:
    lines = (
        "file;start_s;end_s;label;Patient", 'p1_left.wav;0,0;0,5;"Stridor; Rhonchi";P1', "p1_left.wav;0,5;1;stridor;P1",
        "p1_right;0;1,25;;P1", "p1_right;1,25;2;normal;P1", "p2_left;0;1;rhonchi|wheezes;P2", "p2_left;1;2;NA;P2",
    )  # fmt: skip
    (folder / "c.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = table_of(folder, tmp_path)
    assert found["end_s"][:] == [0.5, 1.0, 1.25, 2.0, 1.0, 2.0]
    assert classes(found) == ["Rhonchi+Stridor", "Stridor", "normal", "normal", "Rhonchi+wheeze", None]
    assert found["Stridor"][:] == [1, 1, 0, 0, 0, None] and found["wheeze"][:] == [0, 0, 0, 0, 1, None]
    assert set(found["crackle"][:]) == {None}  # nobody was asked about crackles
    assert target(found) == ("multi_label", None, ["wheeze", "Rhonchi", "Stridor"])
    assert targets_of(found, TargetSettings()).labels.tolist()[0] == [0, 1, 1]


def test_exactly_one_label_a_row_is_one_class_of_several(folder: Path, tmp_path: Path) -> None:
    lines = "recording,start_s,end_s,label\np1_left,0,1,snore\np1_left,1,2,Fine Crackle\np2_left,0,1,\n"
    (folder / "c.csv").write_text(lines)
    found = table_of(folder, tmp_path)
    assert classes(found) == ["snore", "Fine Crackle", "normal"]
    assert target(found) == ("single_label", None, ["normal", "Fine Crackle", "snore"])
    chosen = target_of(found, TargetSettings(problem_type="multi_label"))
    assert (chosen.column, chosen.names) == ("events", ["Fine Crackle", "snore"])
    assert targets_of(found, chosen).labels.tolist() == [[0, 1], [1, 0], [0, 0]]


def test_columns_of_0_and_1_are_labels(folder: Path, tmp_path: Path) -> None:
    lines = "recording\tstart_s\tend_s\tstridor\tsnore\tremark\np1_left\t0\t1\t1\t0\tok\np2_left\t0\t1\t0\t0\t\n"
    (folder / "c.csv").write_text(lines)
    found = table_of(folder, tmp_path)
    assert target(found) == ("multi_label", None, ["stridor"]) and classes(found) == ["stridor", "normal"]
    (folder / "c.csv").write_text(lines.replace("0\t0\t\n", "1\t1\t\n"))
    assert target(table_of(folder, tmp_path)) == ("multi_label", None, ["stridor", "snore"])
    assert "snore" not in table_of(folder, tmp_path, labels=["stridor"]).column_names
    (folder / "c.csv").write_text("recording,start_s,end_s,label\np1_left,0,1,a;b\np2_left,0,1,normal\n")
    wanted = ["b", "without example", "a"]
    assert target(table_of(folder, tmp_path, labels=wanted)) == ("multi_label", None, wanted)


@pytest.mark.parametrize("labels", [None, ["stridor", "snore"]])
def test_every_cell_of_a_label_column_is_0_or_1(folder: Path, tmp_path: Path, labels: list[str] | None) -> None:
    lines = (
        "recording,start_s,end_s,stridor,snore,age,remark\np1_left,0,1,1,0,1,\np1_right,0,1,0,1,1,\np2_left,0,1,{}\n"
    )
    (folder / "c.csv").write_text(lines.format("1.0,0.0,1,"))
    assert classes(table_of(folder, tmp_path, labels=labels)) == ["stridor", "snore", "stridor"]
    (folder / "c.csv").write_text(lines.format(",0,1,"))
    with pytest.raises(InputError, match=r"c.csv, line 4: stridor '' must be 0 or 1; correct it"):
        table_of(folder, tmp_path, labels=labels)
    (folder / "c.csv").write_text(lines.format("NA,,1,"))
    assert classes(table_of(folder, tmp_path, labels=labels, unlabelled=True)) == ["stridor", "snore", None]


def test_named_label_columns_and_crackles_as_numbers(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,stridor,smoker\np1_left,0,1,1,0\np2_left,0,1,yes,1\n")
    with pytest.raises(InputError, match="line 3: stridor 'yes' must be 0 or 1"):
        table_of(folder, tmp_path, labels=["stridor"])
    guess = "columns taken as labels: smoker; if one of them is no label, name the labels in corpus.options.labels"
    assert guess in Folder(folder, cache_dir=tmp_path).notes[0]
    (folder / "c.csv").write_text("recording,start_s,end_s,crackle,wheeze\np1_left,0,1,1.0,0.0\n")
    plain = Folder(folder, cache_dir=tmp_path)
    assert classes(plain.table()) == ["crackle"] and not any("taken as labels" in note for note in plain.notes)


def test_the_cached_table_is_of_these_options(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text(
        "recording,start_s,end_s,label\np1_left,0,1,snore\np1_right,0,1,\np2_left,0,1,normal\n"
    )
    assert classes(table_of(folder, tmp_path)) == ["snore", "normal", "normal"]
    assert classes(table_of(folder, tmp_path, unlabelled=True)) == ["snore", None, "normal"]
    rules = [Folder(folder, cache_dir=tmp_path, labels=labels).rule for labels in (None, ["snore"], ["snore", "x"])]
    assert len(set(rules)) == 3


def test_a_table_of_crackles_and_wheezes_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,label\np1_left,0,1,both\np2_left,0,1,crackles\n")
    plain = Folder(folder, cache_dir=tmp_path / "cache")
    assert plain.extra_columns == {} and plain.rule == "" and plain.level == "event"
    assert classes(plain.table()) == ["both", "crackle"] and plain.table()["events"][:] == [None, None]
    assert target(plain.table()) == ("multi_label", None, ["crackle", "wheeze"])


def test_labels_that_the_recipe_states_are_all_there_are(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,label\np1_left,0,1,stridr\np2_left,0,1,snore\n")
    assert classes(table_of(folder, tmp_path)) == ["stridr", "snore"]
    with pytest.raises(InputError, match=r"c.csv: label 'stridr' is none of snore, stridor; .*did you mean 'stridor'"):
        table_of(folder, tmp_path, labels=["snore", "stridor"])
    assert target(table_of(folder, tmp_path, labels=["stridr", "snore"]))[2] == ["stridr", "snore"]
    (folder / "c.csv").write_text("recording,start_s,end_s,label\np1_left,0,1,device;snore\n")
    with pytest.raises(InputError, match="label 'device' has the name of a column"):
        table_of(folder, tmp_path)


def test_label_tracks_and_selection_tables(folder: Path, tmp_path: Path) -> None:
    (folder / "p1_left.txt").write_text("0,0\t1,0\tstridor\n0,0\t1,0\tsnore\n0,5\t2,0\t\n")
    head = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tAnnotation\n"
    rows = "1\tWaveform 1\t0.25\t1.5\t0\tsnore\n1\tSpectrogram 1\t0.25\t1.5\t0\tsnore\n"
    (folder / "p2_left.Table.1.selections.txt").write_text(head + rows)
    found = table_of(folder, tmp_path)
    assert classes(found) == ["snore+stridor", "normal", "snore"] and found["start_s"][:] == [0, 0.5, 0.25]
    assert "no problems" in check_corpus("folder", folder).lines()  # spans of own labels may overlap
    (folder / "p2_left.Table.1.selections.txt").write_text((head + rows).replace("Annotation", "Sound"))
    with pytest.raises(InputError, match=r"no column annotation or label .*corpus.options.label_column: .*sound"):
        table_of(folder, tmp_path)
    assert classes(table_of(folder, tmp_path, label_column="Sound"))[2] == "snore"
    (folder / "p2_left.txt").write_text("0\t1\tsnore\n")
    with pytest.raises(InputError, match=r"two annotations \(p2_left.txt, p2_left.Table.1.selections.txt\); remove"):
        table_of(folder, tmp_path)


def test_a_row_without_times_is_a_whole_recording(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,label\np1_left,asthma\np1_right,asthma\np2_left,COPD\n")
    found = table_of(folder, tmp_path)
    assert found["cycle_id"][:] == ["p1_left#record", "p1_right#record", "p2_left#record"] and found["end_s"][0] == 2
    assert target(found) == ("single_label", None, ["asthma", "COPD"]) and span_of(found) == "recording"
    (folder / "c.csv").write_text("recording,label\np1_left,crackle\np1_right,normal\np2_left,both\n")
    found = table_of(folder, tmp_path)
    assert target(found)[2] == ["crackle", "wheeze"] and found["wheeze"][:] == [0, 0, 1]
    assert span_of(found) == "recording"


def test_cycles_can_be_put_together_to_recordings(folder: Path, tmp_path: Path) -> None:
    lines = "recording,start_s,end_s,label\np1_left,0,1,snore\np1_left,1,2,stridor\np2_left,0,1,\n"
    (folder / "c.csv").write_text(lines)
    assert classes(table_of(folder, tmp_path, level="recording")) == ["snore+stridor", "normal"]


def test_one_row_a_patient(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("Person;diagnosis;age\nP1;COPD;61,5\nP2;;4\n")
    with pytest.raises(InputError, match=r"must .* have recording or file \(or patient_id, for one row a patient\)"):
        table_of(folder, tmp_path)
    with pytest.raises(InputError, match=r"line 2: no recording has patient 'P1' in its name; .*patient_pattern"):
        table_of(folder, tmp_path, patient_column="person")
    (folder / "c.csv").write_text("Person;diagnosis;age\np1;COPD;61,5\np2;;4\n")
    found = table_of(folder, tmp_path, patient_column="person")
    assert found["patient_id"][:] == ["p1", "p1", "p2"] and found["age_years"][:] == [61.5, 61.5, 4]
    assert classes(found) == ["COPD", "COPD", None] == found["diagnosis"][:]  # an unknown diagnosis is not "normal"
    (folder / "c.csv").write_text("patient,diagnosis\nleft,COPD\nright,asthma\n")
    assert table_of(folder, tmp_path, patient_pattern="left|right")["patient_id"][:] == ["left", "right", "left"]


def test_patients_from_names(folder: Path, tmp_path: Path) -> None:
    (folder / "c.csv").write_text("recording,start_s,end_s,label\np1_left,0,1,snore\np2_left,0,1,stridor\n")
    with pytest.warns(UserWarning, match=r"2 of 2 recordings have no patient_id .* corpus.options.patient_pattern"):
        table_of(folder, tmp_path)
    assert table_of(folder, tmp_path, patient_pattern="^p([0-9]+)_")["patient_id"][:] == ["1", "2"]
    for pattern, words in (("x", "'x' finds no patient in the name p1_left"), ("(", "patient_pattern '\\('")):
        with pytest.raises(InputError, match=words):
            table_of(folder, tmp_path, patient_pattern=pattern)
    with pytest.raises(InputError, match=r"no column 'who' \(corpus.options.patient_column\); .* recording, start_s"):
        table_of(folder, tmp_path, patient_column="who")
    (folder / "visit").mkdir()
    for sound in sorted(folder.glob("*.wav")):
        sound.rename(folder / "visit" / sound.name)
    for pattern in ("^[^_]+", "(?<=visit/)[^_]+"):  # in the name of the file, or in the path below the folder
        assert table_of(folder, tmp_path, patient_pattern=pattern)["patient_id"][:] == ["p1", "p2"]


def test_a_blank_patient_beside_another_id_of_the_same_name(folder: Path, tmp_path: Path) -> None:
    lines = "recording,start_s,end_s,label,patient_id\np1_left,0,1,snore,{}\np1_right,0,1,snore,\np2_left,0,1,snore,\n"
    (folder / "c.csv").write_text(lines.format("p1"))
    assert table_of(folder, tmp_path, patient_pattern="^[^_]+")["patient_id"][:] == ["p1", "p1", "p2"]
    (folder / "c.csv").write_text(lines.format("P9"))
    with pytest.raises(InputError, match=r"p1_right has no patient_id, but p1_left, .* 'p1', has 'P9'; fill it in$"):
        table_of(folder, tmp_path, patient_pattern="^[^_]+")


def test_icbhi_by_recording_by_abnormality_and_by_diagnosis(small_corpus: Path) -> None:
    rows = load_corpus("synthetic", small_corpus, protocol="none")["all"]
    whole = load_corpus("synthetic", small_corpus, protocol="none", level="recording")["all"]
    assert len(whole) == len(set(rows["recording_id"])) and span_of(whole) == "recording" and span_of(rows) == "cycle"
    assert provenance(whole)["level"] == "recording"
    of_first = [k for k, name in enumerate(rows["recording_id"]) if name == whole["recording_id"][0]]
    assert whole["wheeze"][0] == max(rows["wheeze"][k] for k in of_first)
    abnormal = targets_of(rows, TargetSettings(column="abnormal"))
    assert abnormal.names == ["normal", "abnormal"]
    assert abnormal.labels.tolist() == [int(c or w) for c, w in zip(rows["crackle"], rows["wheeze"], strict=True)]
    diagnosis = targets_of(whole, TargetSettings(column="diagnosis"))
    assert diagnosis.labels.ndim == 1 and set(diagnosis.names) == set(whole["diagnosis"])
