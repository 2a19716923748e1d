"""The ICBHI 2017 database gives every published count, and a damaged copy of it is refused by name."""

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from laennec.audio.cycles import LABELS, AnnotationError
from laennec.corpora.icbhi2017 import Icbhi2017, read_demographics, read_diagnoses, read_folds, read_official_split
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

A, B = "101_1b1_Al_sc_Meditron", "102_2b2_Tc_mc_AKGC417L"


@pytest.fixture(scope="module")
def facts(shared_root: Path) -> dict[str, Any]:
    return json.loads((shared_root / "conformance" / "icbhi2017_facts.json").read_text())["cases"][0]["expected"]


@pytest.fixture(scope="module")
def cycles(shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The whole database from its 920 annotations, with the published split and folds as columns."""
    data = shared_root / "data"
    builder = Icbhi2017(data / "icbhi2017_annotations", cache_dir=tmp_path_factory.mktemp("cache"))
    frame = builder.table().to_pandas()
    frame["label"] = [LABELS[code] for code in frame["label"]]
    split = read_official_split(data / "icbhi2017_tables" / "ICBHI_challenge_train_test.txt")
    folds = read_folds(data / "icbhi2017_tables" / "patient_list_foldwise.txt")
    return frame.assign(split=frame["recording_id"].map(split), fold=frame["patient_id"].map(folds))


def counts(frame: pd.DataFrame) -> dict[str, int]:
    found = frame["label"].value_counts().to_dict()
    return {label: int(found.get(label, 0)) for label in LABELS} | {"total": len(frame)}


def test_totals(cycles: pd.DataFrame, facts: dict[str, Any]) -> None:
    assert counts(cycles) == facts["totals"]
    assert cycles["recording_id"].nunique() == facts["recordings"]
    assert cycles["patient_id"].nunique() == facts["patients"]
    assert cycles["cycle_id"].is_unique
    largest = cycles["patient_id"].value_counts()
    assert {(patient, int(largest[patient])) for patient, _ in facts["largest_patients_by_cycles"]} == {
        tuple(pair) for pair in facts["largest_patients_by_cycles"]
    }
    assert sorted(largest.head(5)) == sorted(count for _, count in facts["largest_patients_by_cycles"])


def test_places_devices_and_patients(cycles: pd.DataFrame, facts: dict[str, Any]) -> None:
    recordings = cycles.drop_duplicates("recording_id")
    assert recordings["chest_location"].value_counts().to_dict() == facts["chest_location_counts"]
    assert recordings["acquisition_mode"].value_counts().to_dict() == facts["acquisition_mode_counts"]
    devices = recordings.groupby("patient_id")["device"].nunique()
    assert sorted(devices[devices > 1].index) == facts["multi_device_patients"]
    patients = cycles.drop_duplicates("patient_id").set_index("patient_id")
    unknown = patients[patients["age_years"].isna() | patients["sex"].isna()]
    assert list(unknown.index) == [facts["missing_sex_and_age_patient"]]
    assert int((patients["age_years"] >= 19).sum()) == facts["adults_age_ge_19"]
    assert int((patients["age_years"] < 19).sum()) == facts["children_age_lt_19"]
    assert patients["diagnosis"].value_counts().to_dict() == facts["diagnosis_counts"]


def test_body_mass_index(cycles: pd.DataFrame, facts: dict[str, Any], shared_data: Path) -> None:
    """The published count of missing values is of the adult column; children get theirs from weight and height."""
    table = shared_data / "icbhi2017_tables" / "ICBHI_Challenge_demographic_information.txt"
    adult = [line.split()[3] for line in table.read_text().splitlines()]
    assert adult.count("NA") == facts["bmi_missing"]
    patients = cycles.drop_duplicates("patient_id").set_index("patient_id")
    assert patients.loc["103", "bmi"] == 33
    assert patients.loc["101", "bmi"] == pytest.approx(19 / 0.99**2)


def test_unknown_is_null_and_no_audio_is_claimed(cycles: pd.DataFrame) -> None:
    for column in ("events", "source_sampling_rate", "recording_path", "audio_sha256", "part"):
        assert cycles[column].isna().all()


def test_the_real_subset(shared_data: Path, tmp_path: Path) -> None:
    table = Icbhi2017(shared_data / "icbhi2017_subset", cache_dir=tmp_path).table().to_pandas()
    assert Counter(table["label"]) == {0: 757, 1: 181, 2: 131, 3: 52}
    assert (table["recording_id"].nunique(), table["patient_id"].nunique(), table["device"].nunique()) == (101, 44, 4)
    assert set(table["source_sampling_rate"]) == {4000, 44_100}
    assert table["audio_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert table["recording_path"].map(lambda path: Path(path).is_file()).all()


def test_the_published_split_file_and_the_cleaned_one_agree(shared_data: Path) -> None:
    tables = shared_data / "icbhi2017_tables"
    published = read_official_split(tables / "ICBHI_challenge_train_test.txt")
    assert published == read_official_split(tables / "official_split.txt")
    assert len(published) == 920
    assert published["226_1b1_Pl_sc_LittC2SE"] in ("train", "test")
    assert "226_1b1_Pl_sc_Meditron" not in published


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of two recordings with all its tables beside them."""
    folder = tmp_path / "corpus" / "ICBHI_final_database"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    for name in (A, B):
        soundfile.write(folder / f"{name}.wav", noise, 4000)
        (folder / f"{name}.txt").write_text("0.0\t1.0\t1\t0\n1.0\t2.0\t0\t1\n")
        noise = -noise
    tables = folder.parent
    (tables / "patient_diagnosis.csv").write_text("101,URTI\n102,NA\n")
    (tables / "demographic_info.txt").write_text("101 3 F NA 19 99\n102 70 M 33 NA NA\n")
    (tables / "official_split.txt").write_text(f"{A}\ttrain\n{B}\ttest\n")
    return folder


def build(path: Path, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    return Icbhi2017(path, cache_dir=tmp_path / "cache", **options).table().to_list()


def test_a_row_says_everything(corpus: Path, tmp_path: Path) -> None:
    row = build(corpus, tmp_path)[1]
    assert row.pop("audio_sha256") and row.pop("bmi") == pytest.approx(19 / 0.99**2)
    assert row == {
        "cycle_id": f"{A}#01", "recording_id": A, "patient_id": "101", "cycle_index": 1, "start_s": 1.0, "end_s": 2.0,
        "crackle": 0, "wheeze": 1, "label": 2, "events": None, "chest_location": "Al", "acquisition_mode": "sc",
        "device": "Meditron", "age_years": 3.0, "sex": "F", "diagnosis": "URTI", "source_sampling_rate": 4000,
        "recording_path": str(corpus / f"{A}.wav"), "part": None,
    }  # fmt: skip


def test_the_folder_above_and_the_archive_give_the_same_cycles(corpus: Path, tmp_path: Path) -> None:
    archive = tmp_path / "elsewhere" / "ICBHI_final_database.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(corpus, "ICBHI_final_database")
        for path in sorted(corpus.iterdir()):
            packed.write(path, f"ICBHI_final_database/{path.name}")
        packed.writestr("__MACOSX/ICBHI_final_database/._" + A + ".wav", b"resource fork")
    (archive.parent / "ICBHI_Challenge_diagnosis.txt").write_text("101\tCOPD\n")
    plain, above, packed_rows = build(corpus, tmp_path), build(corpus.parent, tmp_path), build(archive, tmp_path)
    assert plain == above
    assert [row["cycle_id"] for row in packed_rows] == [row["cycle_id"] for row in plain]
    assert [row["audio_sha256"] for row in packed_rows] == [row["audio_sha256"] for row in plain]
    assert packed_rows[0]["diagnosis"] == "COPD" and packed_rows[0]["age_years"] is None
    first, again = (Icbhi2017(path, cache_dir=tmp_path / "cache") for path in (corpus, archive))
    assert first.manifest.corpus_fingerprint == again.manifest.corpus_fingerprint


def test_what_does_not_pair_is_named(corpus: Path, tmp_path: Path) -> None:
    (corpus / f"{A}.txt").unlink()
    with pytest.raises(InputError, match=f"audio without annotation: .*{A}.wav"):
        build(corpus, tmp_path)
    assert {row["recording_id"] for row in build(corpus, tmp_path, allow_missing=True)} == {B}
    (corpus / f"{A}.txt").write_text("0\t1\t0\t0\n")
    (corpus / f"{B}.wav").unlink()
    with pytest.raises(InputError, match=f"annotation without audio: .*{B}.txt"):
        build(corpus, tmp_path)


def test_names_that_are_none(corpus: Path, tmp_path: Path) -> None:
    (corpus / "._hidden.wav").write_bytes(b"x")
    (corpus / "filename_format.txt").write_text("how files are named")
    assert len(build(corpus, tmp_path)) == 4
    shutil.copy(corpus / f"{A}.wav", corpus / "recording1.wav")
    with pytest.raises(InputError, match=r"recording1\.wav: not a name of this corpus"):
        build(corpus, tmp_path)
    (corpus / "recording1.wav").rename(corpus / "103_1b1_Al_sc_Stethomax.wav")
    with pytest.raises(InputError, match="not a name of this corpus"):
        build(corpus, tmp_path)
    (corpus / "103_1b1_Al_sc_Stethomax.wav").unlink()
    soundfile.write(corpus / f"{A}.flac", *soundfile.read(corpus / f"{A}.wav"))
    with pytest.raises(InputError, match="second recording of this name"):
        build(corpus, tmp_path)


def test_wrong_folders(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        build(tmp_path / "absent", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no ICBHI 2017 recordings"):
        build(tmp_path / "empty", tmp_path)
    shutil.copytree(corpus, corpus.parent / "copy")
    with pytest.raises(InputError, match="several folders"):
        build(corpus.parent, tmp_path)


def test_a_cycle_past_the_end_and_a_file_cut_short(corpus: Path, tmp_path: Path) -> None:
    (corpus / f"{B}.txt").write_text("0\t2.1\t0\t0\n")
    with pytest.raises(InputError, match=r"the audio lasts 2\.000 s"):
        build(corpus, tmp_path)
    (corpus / f"{B}.txt").write_text("0\t1\t0\t0\n")
    content = (corpus / f"{B}.wav").read_bytes()
    (corpus / f"{B}.wav").write_bytes(content[:9000])
    with pytest.raises(InputError, match=f"{B}.wav: cut short"):
        build(corpus, tmp_path)


def test_the_cache_follows_the_data(corpus: Path, tmp_path: Path) -> None:
    assert len(build(corpus, tmp_path)) == 4
    (corpus / f"{A}.txt").write_text("0.0\t1.5\t1\t1\n")
    rows = build(corpus, tmp_path)
    assert len(rows) == 3 and rows[0]["label"] == 3
    (corpus.parent / "patient_diagnosis.csv").write_text("101,COPD\n102,NA\n")
    assert build(corpus, tmp_path)[0]["diagnosis"] == "COPD"


def test_the_second_look_reads_no_file(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laennec.cache._SETTLED_S", -1.0)
    build(corpus, tmp_path)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("laennec.cache.sha256_of", refuse)
    assert len(build(corpus, tmp_path)) == 4
    (corpus / f"{A}.txt").write_text("0.0\t1.5\t1\t1\n")
    with pytest.raises(AssertionError, match=f"{A}.txt was read again"):
        build(corpus, tmp_path)


def table_of(kind: Any, corpus: Path, tables_dir: Path | None = None) -> Path | None:
    return Icbhi2017(corpus, tables_dir=tables_dir).find_table(kind)


def test_tables_are_found_on_the_nearest_level(corpus: Path, tmp_path: Path) -> None:
    assert table_of("split", corpus) == corpus.parent / "official_split.txt"
    assert table_of("folds", corpus) is None
    (corpus.parent / "tables").mkdir()
    (corpus.parent / "tables" / "patient_list_foldwise.txt").write_text("101 0\n102 1\n")
    assert table_of("folds", corpus) == corpus.parent / "tables" / "patient_list_foldwise.txt"
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "ICBHI_challenge_train_test.txt").write_text(f"{A}\ttest\n")
    assert table_of("split", corpus, tmp_path / "given") == tmp_path / "given" / "ICBHI_challenge_train_test.txt"
    assert table_of("diagnosis", corpus, tmp_path / "given") == corpus.parent / "patient_diagnosis.csv"
    with pytest.raises(InputError, match="no such folder"):
        table_of("split", corpus, tmp_path / "nowhere")


def test_tables_at_a_relative_place_are_read(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    shutil.move(corpus.parent / "patient_diagnosis.csv", apart)
    monkeypatch.chdir(tmp_path)
    corpus_ = Icbhi2017(corpus.relative_to(tmp_path), cache_dir=tmp_path / "cache", tables_dir="apart")
    assert apart / "patient_diagnosis.csv" in corpus_.tables
    assert set(corpus_.table()["diagnosis"]) == {"URTI", None}


def test_tables_that_disagree_are_refused(corpus: Path) -> None:
    other = corpus.parent / "ICBHI_challenge_train_test.txt"
    other.write_text(f"{B} test\r\n{A} train\r\n")
    assert table_of("split", corpus) == other
    other.write_text(f"{B} test\r\n{A} test\r\n")
    with pytest.raises(InputError, match="two split tables disagree"):
        table_of("split", corpus)


@pytest.mark.parametrize(
    ("read", "content", "line"),
    [
        (read_official_split, f"{A}\ttrain\n{B}\tvalidation\n", 2),
        (read_official_split, f"{A}\ttrain\n{A}\ttest\n", 2),
        (read_official_split, f"{A}\n", 1),
        (read_official_split, "", None),
        (read_folds, "101 0\n102 first\n", 2),
        (read_folds, "101 0\n101 1\n", 2),
        (read_diagnoses, "101,URTI,yes\n", 1),
        (read_demographics, "101 3 F NA 19\n", 1),
        (read_demographics, "101 3 F NA 19 99\n102 old F NA 19 99\n", 2),
        (read_demographics, "101 3 X NA 19 99\n", 1),
    ],
)
def test_bad_tables_are_named_by_line(read: Any, content: str, line: int | None, tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text(content)
    with pytest.raises(AnnotationError) as caught:
        read(path)
    assert caught.value.line == line


def test_missing_recordings_are_counted_and_named(corpus: Path) -> None:
    names = "".join(f"r{number:03d} train\n" for number in range(920))
    (corpus.parent / "official_split.txt").write_text(names)
    assert Icbhi2017(corpus).missing_recordings() == (920, 920, " (r000, r001, r002 and 917 more)")
    (corpus.parent / "official_split.txt").unlink()
    assert Icbhi2017(corpus).missing_recordings() == (918, 920, "")
    with pytest.raises(InputError, match=r"needs ICBHI_challenge_train_test\.txt"):
        Icbhi2017(corpus).published_split("official")


def test_a_repeated_line_counts_once_and_a_contradiction_is_refused(corpus: Path, tmp_path: Path) -> None:
    annotation = corpus / f"{A}.txt"
    before = build(corpus, tmp_path)
    annotation.write_text(annotation.read_text() + "0.0\t1.0\t1\t0\n")
    assert build(corpus, tmp_path) == before
    annotation.write_text(annotation.read_text() + "0.0\t1.0\t0\t0\n")
    for level in ("event", "recording"):
        with pytest.raises(InputError, match=r"the cycle at 0 to 1 s has two labels; correct one of the lines"):
            build(corpus, tmp_path, level=level)


@pytest.mark.parametrize(
    ("line", "words"), [("101 3,5 F NA 19 99", "7 values instead of 6"), ('101 3 "F" NA 19 99', "it has quotes")]
)
def test_decimal_commas_and_quotes_in_a_table_are_named(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text(line)
    with pytest.raises(AnnotationError, match=f"line 1: {words}; use decimal points and no quotes"):
        read_demographics(tmp_path / "table.txt")
