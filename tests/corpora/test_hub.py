"""Any audio classification data set, as Parquet and as ESC-50, Speech Commands and IEMOCAP are published."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import soundfile

import audio_twins
from audio_twins import ESC50_CLASSES, WORDS
from hub_server import HubServer
from laennec.corpora import CycleWaveforms, check_corpus, load_corpus, provenance
from laennec.corpora.hub.corpus import Hub
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ESC50 = {"label_column": "category", "fold_column": "fold", "patient_column": "src_file"}
IEMOCAP = {
    "fold_column": "session", "patient_column": "speaker", "label_map": {"exc": "hap"},
    "labels": ["neu", "hap", "ang", "sad"],
}  # fmt: skip


@pytest.fixture(scope="module")
def esc50(tmp_path_factory: pytest.TempPathFactory, some_recordings: list[Path]) -> Path:
    return audio_twins.esc50_github(tmp_path_factory.mktemp("esc50") / "ESC-50-master", some_recordings)


@pytest.fixture(scope="module")
def esc50_parquet(tmp_path_factory: pytest.TempPathFactory, esc50: Path) -> Path:
    return audio_twins.esc50_hub(tmp_path_factory.mktemp("esc50_hub"), esc50)


@pytest.fixture(scope="module")
def speech_commands(tmp_path_factory: pytest.TempPathFactory, some_recordings: list[Path]) -> Path:
    return audio_twins.speech_commands(tmp_path_factory.mktemp("speech") / "speech_commands_v0.02", some_recordings)


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory: pytest.TempPathFactory, some_recordings: list[Path]) -> Path:
    return audio_twins.iemocap(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release", some_recordings)


def classes(table: datasets.Dataset) -> list[str | None]:
    return [None if v is None else table.features["category"].int2str(v) for v in table["category"]]


def test_esc50_is_the_same_from_github_and_from_the_hub(esc50: Path, esc50_parquet: Path) -> None:
    one, other = (Hub(folder, **ESC50) for folder in (esc50, esc50_parquet))
    rows, twins = one.table(), other.table()
    assert rows.features["category"].names == sorted(ESC50_CLASSES)
    for column in ("cycle_id", "patient_id", "category", "fold", "audio_sha256", "start_s", "end_s"):
        assert sorted(map(str, rows[column])) == sorted(map(str, twins[column]))
    assert one.manifest.corpus_fingerprint == other.manifest.corpus_fingerprint
    assert one.manifest.table_fingerprint != other.manifest.table_fingerprint
    truth = {row["filename"].removesuffix(".wav"): row for row in audio_twins.esc50_rows()}
    for table in (rows, twins):
        for name, label, fold in zip(table["recording_id"], classes(table), table["fold"], strict=True):
            assert (label, fold) == (truth[name]["category"], truth[name]["fold"])
    assert {v for row in rows.to_list() for v in (row["crackle"], row["wheeze"], row["label"])} == {None}


def test_sounds_out_of_parquet_are_those_that_went_in(esc50: Path, esc50_parquet: Path) -> None:
    table = Hub(esc50_parquet, **ESC50).table()
    for row, waveform in zip(table.to_list(), CycleWaveforms(table, 8000), strict=True):
        original = esc50 / "audio" / f"{row['recording_id']}.wav"
        assert row["audio_sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
        assert (waveform == soundfile.read(original, dtype="float32")[0]).all()
        assert Path(row["recording_path"]).parent.parent.name == "sounds"


@pytest.mark.parametrize("fold", [1, 5])
def test_the_published_folds(esc50_parquet: Path, fold: int) -> None:
    parts = load_corpus("hub", esc50_parquet, protocol="published-folds", fold=fold, **ESC50)
    assert set(parts["test"]["fold"]) == {fold}
    assert fold not in parts["train"]["fold"] and fold not in parts["validation"]["fold"]
    assert len(parts["validation"]) == 8 and set(classes(parts["validation"])) == set(ESC50_CLASSES)
    groups = [set(table["patient_id"]) for table in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))  # the two takes of a source stay together
    origin = provenance(parts)
    assert (origin["fold"], origin["stamp"], origin["leaks"]) == (fold, None, [])


def test_without_a_group_column_the_split_says_what_it_cannot_promise(esc50: Path) -> None:
    options = ESC50 | {"patient_column": None}
    with pytest.warns(UserWarning, match="no patient_column, so a split keeps recordings apart"):
        parts = load_corpus("hub", esc50, protocol="published-folds", fold=2, **options)
    assert "patients unknown" in provenance(parts)["stamp"]
    assert set(parts["train"]["patient_id"]) == {None}


def test_speech_commands_by_its_lists(speech_commands: Path) -> None:
    parts = load_corpus("hub", speech_commands, patient_column="speaker")
    assert {name: len(table) for name, table in parts.items()} == {"train": 16, "validation": 4, "test": 4}
    assert set(parts["test"]["patient_id"]) == {"00000005"} and set(parts["validation"]["patient_id"]) == {"00000004"}
    assert parts["test"].features["category"].names == sorted(WORDS)  # the folder of noise is no word
    for table in parts.values():
        assert [name.split("/")[0] for name in table["recording_id"]] == classes(table)
    assert provenance(parts)["protocol"] == "published-parts"
    assert provenance(parts)["validation"] == "the validation split of the dataset itself"


def test_a_listed_file_that_is_not_there_is_named(speech_commands: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(speech_commands, tmp_path / "own"))
    (own / "bed" / "00000005_nohash_1.wav").unlink()
    with pytest.raises(InputError, match=r"testing_list.txt: bed/00000005_nohash_1.wav is not in the folder"):
        Hub(own).check_usable()
    assert len(Hub(own, allow_missing=True).table()) == 23


def test_iemocap_leaves_a_session_out(iemocap: Path) -> None:
    parts = load_corpus("hub", iemocap, protocol="published-folds", fold=3, **IEMOCAP)
    assert set(parts["test"]["patient_id"]) == {"Ses03F", "Ses03M"}
    assert sum(map(len, parts.values())) == 5 * 2 * 5  # seven emotions, of which fru and xxx are no class here
    assert parts["test"].features["category"].names == ["neu", "hap", "ang", "sad"]
    assert Counter(classes(parts["test"])) == {"neu": 2, "hap": 4, "ang": 2, "sad": 2}
    speakers = [set(table["patient_id"]) for table in parts.values()]
    assert sum(map(len, speakers)) == 10 and provenance(parts)["stamp"] is None


def test_what_is_left_out_is_counted(iemocap: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out, other classes: fru \(10\), xxx \(10\)"):
        Hub(iemocap, **IEMOCAP).check_usable()


def parquet(folder: Path, esc50: Path, **splits: int) -> Path:
    """Parquet with a ClassLabel and so many rows for each split."""
    sounds = sorted((esc50 / "audio").iterdir())
    feature = datasets.ClassLabel(names=["no", "yes", "never"])
    first = 0
    for split, count in splits.items():
        rows = [
            {"audio": {"bytes": sound.read_bytes(), "path": sound.name}, "label": k % 2, "who": f"{split}{k % 3}"}
            for k, sound in enumerate(sounds[first : first + count])
        ]
        audio_twins.write_parquet(folder / f"{split}-00000-of-00001.parquet", rows, feature)
        first += count
    return folder


def test_validation_is_carved_by_groups_where_there_is_none(esc50: Path, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "parts", esc50, train=12, test=6)
    parts = load_corpus("hub", folder, patient_column="who", validation_fraction=0.3)
    assert len(parts["validation"]) == 4 and not set(parts["validation"]["patient_id"]) & set(
        parts["train"]["patient_id"]
    )


def test_what_is_kept_of_parquet_is_never_believed(esc50: Path, tmp_path: Path) -> None:
    """Other labels of equal size and time, and damage to everything in the cache, are the result of an empty cache."""

    def labels(cache: str) -> list[Any]:
        table = Hub(tmp_path / "parts", cache_dir=tmp_path / cache).table()
        return [classes(table), table["audio_sha256"], [len(sound) for sound in CycleWaveforms(table, 8000)]]

    (file,) = parquet(tmp_path / "parts", esc50, train=6).iterdir()
    first, before = labels("cache"), file.stat()
    content = file.read_bytes()
    sounds = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "c"))["train"]
    sounds = sounds.cast_column("audio", datasets.Audio(decode=False)).map(lambda row: {"label": 1 - row["label"]})
    sounds.to_parquet(file)
    assert file.stat().st_size == len(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    swapped = labels("cache")
    assert swapped[0] != first[0] and swapped == labels("empty")
    for path in (tmp_path / "cache" / "hub").rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    assert labels("cache") == swapped
    assert not (tmp_path / "cache" / "hub" / "datasets").exists()


def test_parts_may_be_named(esc50: Path, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "parts", esc50, train=6, validation=4, test=6)
    with pytest.warns(UserWarning, match=r"left out, other splits: test \(6\)"):
        parts = load_corpus("hub", folder, test="validation", validation="none")
    assert len(parts["test"]) == 4 and sum(map(len, parts.values())) == 10


def test_unlabelled_rows_have_no_class(esc50: Path, tmp_path: Path) -> None:
    sounds = sorted((esc50 / "audio").iterdir())[:3]
    rows = [{"audio": {"bytes": s.read_bytes(), "path": s.name}, "label": k - 1} for k, s in enumerate(sounds)]
    audio_twins.write_parquet(tmp_path / "d" / "train.parquet", rows, datasets.ClassLabel(names=["no", "yes"]))
    assert classes(load_corpus("hub", tmp_path / "d", protocol="none")["all"]) == [None, "no", "yes"]


def test_classes_that_are_numbers_are_renamed(esc50: Path, tmp_path: Path) -> None:
    sounds = sorted((esc50 / "audio").iterdir())[:2]
    rows = [{"audio": {"bytes": s.read_bytes(), "path": s.name}, "label": k} for k, s in enumerate(sounds)]
    audio_twins.write_parquet(tmp_path / "d" / "train.parquet", rows, datasets.Value("int64"))
    table = load_corpus("hub", tmp_path / "d", protocol="none", label_map={0: "no", "1": "yes"})["all"]
    assert classes(table) == ["no", "yes"]


def test_a_split_column_stands_for_splits(esc50: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(esc50, tmp_path / "own"))
    table = own / "meta" / "esc50.csv"
    lines = table.read_text().splitlines()
    said = [lines[0] + ",use", *(f"{line},{'fit' if k % 4 else 'held out'}" for k, line in enumerate(lines[1:]))]
    table.write_text("\n".join(said) + "\n")
    parts = load_corpus("hub", own, label_column="category", part_column="use", train="fit", test="held out")
    assert len(parts["test"]) == 10 and sum(map(len, parts.values())) == 40


@pytest.mark.parametrize("layout", ["metadata", "folders"])
def test_folders_of_splits(esc50: Path, tmp_path: Path, layout: str) -> None:
    for k, sound in enumerate(sorted((esc50 / "audio").iterdir())[:12]):
        split, label = ("train", "test")[k % 2], ("cat", "dog")[k // 2 % 2]
        place = tmp_path / "d" / split / (label if layout == "folders" else ".")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound, place / f"{k}.wav")
        if layout == "metadata":
            metadata = place / "metadata.csv"
            known = metadata.read_text() if metadata.exists() else "file_name,label\n"
            metadata.write_text(f"{known}{k}.wav,{label}\n")
    parts = load_corpus("hub", tmp_path / "d")
    assert len(parts["test"]) == 6 and sum(map(len, parts.values())) == 12
    assert Counter(classes(parts["test"])) == {"cat": 3, "dog": 3}


def test_one_file_of_parquet_and_a_saved_dataset(esc50: Path, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "p", esc50, train=6)
    file = next(folder.glob("*.parquet"))
    loaded = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "c"))
    loaded.save_to_disk(str(tmp_path / "saved"))
    found = [Hub(place, layout="datasets") for place in (file, tmp_path / "saved")]
    assert [len(builder.table()) for builder in found] == [6, 6]
    assert len({builder.manifest.corpus_fingerprint for builder in found}) == 1


def test_a_changed_class_is_another_corpus(esc50: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(esc50, tmp_path / "own"))
    before = Hub(own, **ESC50).manifest.corpus_fingerprint
    assert before == Hub(esc50, **ESC50).manifest.corpus_fingerprint
    table = own / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("rain", "dog", 1))
    assert Hub(own, **ESC50).manifest.corpus_fingerprint != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_column": "class"}, "label_column is 'class'; the columns are split, filename, fold"),
        ({"label_column": "category", "fold_column": "take"}, "take of .* is 'A', which ends in no number"),
        ({"label_column": "category", "audio_column": "take"}, "the columns with encoded sounds are audio"),
        ({"label_column": "category", "labels": ["dog", "bird"]}, "no sound is labelled bird; the classes are crying"),
        ({"label_column": "category", "train": "all", "test": "none"}, "no sounds of split all or none"),
        ({"label_column": "category", "layout": "parquet"}, "layout is 'parquet'; it can be datasets, table"),
    ],
)
def test_wrong_columns_are_named(esc50_parquet: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Hub(esc50_parquet, **options).check_usable()


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Parquet files and no sounds"):
        Hub(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder, and no Hub id"):
        Hub(tmp_path / "gone")
    with pytest.raises(InputError, match="no data_dir given"):
        load_corpus("hub")
    with pytest.raises(InputError, match="hub has no option label_colum; valid: repo"):
        load_corpus("hub", tmp_path, label_colum="x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"bad.parquet: cannot be read as Parquet"):
        Hub(tmp_path / "bad.parquet")


def test_code_of_a_data_set_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    folder.mkdir()
    (folder / "coded.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot be read as a data set"):
        Hub(folder, layout="datasets")
    assert not (tmp_path / "ran").exists()


def test_a_sound_that_is_none_is_named(esc50: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(esc50, tmp_path / "own"))
    next((own / "audio").iterdir()).write_bytes(b"nothing to hear")
    report = check_corpus("hub", own, **ESC50)
    assert len(report.problems) == 1 and "not audio that can be decoded" in report.problems[0]
    assert report.counts["category"] == dict.fromkeys(report.counts["category"], 10)
    row = audio_twins.esc50_rows()[0]
    with (own / "meta" / "esc50.csv").open("a") as file:
        file.write(f"gone.wav,1,0,{row['category']},True,1,A\n")
    with pytest.raises(InputError, match=r"line 42: 'gone.wav' is not in the folder"):
        Hub(own, **ESC50).check_usable()


def prepare(tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`laennec prepare hub` in a process of its own, because the Hub's address is read when it starts."""
    own = {"LAENNEC_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    pairs = [f"--option={name}={value}" for name, value in ESC50.items()]
    return subprocess.run(
        [sys.executable, "-m", "laennec", "prepare", "hub", *flags, *pairs],
        capture_output=True,
        text=True,
        env={**os.environ, **own, **environment},
    )


def test_the_hub_gives_what_the_folder_gives_and_its_refusals_are_one_line(esc50_parquet: Path, tmp_path: Path) -> None:
    said = "test: 8 cycles of 4 patients; 2 crying_baby, 2 dog, 2 door_wood_knock, 2 rain"
    flags = ("--protocol", "published-folds", "--fold", "2")
    local = provenance(load_corpus("hub", esc50_parquet, protocol="published-folds", fold=2, **ESC50))
    with HubServer() as hub:
        hub.add("somebody/esc50", esc50_parquet, kind="dataset")
        hub.add("somebody/closed", esc50_parquet, kind="dataset", gated=True)
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        remote = prepare(tmp_path, "--option=repo=somebody/esc50", *flags, **online)
        assert remote.returncode == 0 and said in remote.stdout, remote.stderr
        assert local["corpus_fingerprint"][:12] in remote.stdout and local["split_fingerprint"][:12] in remote.stdout
        refused = prepare(tmp_path, "--option=repo=somebody/closed", **online)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert "somebody/closed: cannot be downloaded from the Hub" in refused.stderr
        assert "local folder as data_dir (--data-dir); if it is private or gated, ask its owners" in refused.stderr


def test_columns_with_gaps_come_back_as_floating_point(esc50: Path, tmp_path: Path) -> None:
    sounds, nan = sorted((esc50 / "audio").iterdir())[:6], float("nan")
    rows = [
        {"audio": {"bytes": s.read_bytes(), "path": s.name}, "label": [1.0, nan][k % 2], "who": [nan, 7.0][k % 2],
         "fold": k // 2 + 1.0}
        for k, s in enumerate(sounds)
    ]  # fmt: skip
    audio_twins.write_parquet(tmp_path / "d" / "train.parquet", rows, datasets.Value("float64"))
    columns = {"patient_column": "who", "fold_column": "fold"}
    table = load_corpus("hub", tmp_path / "d", protocol="none", **columns)["all"]
    assert classes(table) == ["1.0", None] * 3 and table["patient_id"][:] == [None, "7.0"] * 3
    assert table["fold"][:] == [1, 1, 2, 2, 3, 3]
