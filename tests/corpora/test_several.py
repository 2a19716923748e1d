"""Several corpora as one: unique ids, common labels, provenance of each, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from laennec.corpora import check_duplicates, concatenate_corpora, load_corpus, provenance
from laennec.corpora.base import CYCLE_FEATURES
from laennec.corpora.load import corpus_class, described
from laennec.corpora.synthetic import write_corpus
from laennec.errors import InputError

Load = Callable[..., datasets.DatasetDict]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two corpora in ICBHI's layout whose patients and recordings have the same names, and other sounds."""
    sizes = {"patients": 10, "recordings_per_patient": 1, "cycles_per_recording": 3, "max_rate_hz": 4000}
    root = tmp_path_factory.mktemp("corpora")
    return {name: write_corpus(root / name, seed=seed, **sizes) for seed, name in enumerate(("synthetic", "icbhi2017"))}


@pytest.fixture
def load(folders: dict[str, Path], tmp_path: Path) -> Load:
    def loaded(name: str, protocol: str = "patient-60-20-20", **settings: Any) -> datasets.DatasetDict:
        return load_corpus(name, folders[name], protocol=protocol, cache_dir=tmp_path / "cache", **settings)

    return loaded


def ids(splits: Any, column: str) -> set[str]:
    return {value for table in splits.values() for value in table[column]}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_of_both_are_kept_and_no_id_is_of_both(load: Load) -> None:
    one, other = load("synthetic"), load("icbhi2017")
    assert ids(one, "patient_id") & ids(other, "patient_id"), "the ids of the two collide, or this shows nothing"
    both = concatenate_corpora([one, other])
    assert list(both) == ["train", "validation", "test"]
    for split, table in both.items():
        assert len(table) == len(one[split]) + len(other[split])
        assert set(table.column_names) == {*CYCLE_FEATURES, "corpus"}
        for column in ("cycle_id", "recording_id", "patient_id"):
            expected = [f"synthetic:{v}" for v in one[split][column]] + [f"icbhi2017:{v}" for v in other[split][column]]
            assert list(table[column]) == expected
        assert list(table["crackle"]) == [*one[split]["crackle"], *other[split]["crackle"]]
        assert list(table["label"]) == [c + 2 * w for c, w in zip(table["crackle"], table["wheeze"], strict=True)]
        assert list(table["corpus"]) == ["synthetic"] * len(one[split]) + ["icbhi2017"] * len(other[split])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_provenance_names_every_corpus_and_its_split(load: Load) -> None:
    one, other = load("synthetic"), load("icbhi2017", "patient-5fold", fold=1)
    origin = provenance(concatenate_corpora([one, other]))
    assert origin["corpus"] == "synthetic+icbhi2017"
    assert origin["corpora"] == {"synthetic": provenance(one), "icbhi2017": provenance(other)}
    assert origin["protocol"] == "synthetic: patient-60-20-20, icbhi2017: patient-5fold fold 1"
    changed = provenance(concatenate_corpora([one, load("icbhi2017", "patient-5fold", fold=2)]))
    assert changed["split_fingerprint"] != origin["split_fingerprint"]
    assert changed["corpus_fingerprint"] == origin["corpus_fingerprint"]
    leaky = load("icbhi2017", "random-80-20")
    origin = provenance(concatenate_corpora([one, leaky]))
    assert origin["stamp"] == "icbhi2017: leaky: random cycles"
    assert origin["leaks"] == [f"icbhi2017: {line}" for line in provenance(leaky)["leaks"]]
    assert origin["shared_patients"] == provenance(leaky)["shared_patients"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_corpus_left_out_is_all_test(load: Load) -> None:
    one, other = load("synthetic"), load("icbhi2017", "corpus-out")
    assert list(other) == ["test"] and len(other["test"]) == sum(len(t) for t in load("icbhi2017").values())
    both = concatenate_corpora([one, other])
    assert set(both["train"]["corpus"]) == set(both["validation"]["corpus"]) == {"synthetic"}
    assert provenance(both)["corpora"]["icbhi2017"]["split_fingerprint"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_device_that_is_held_out_of_one_corpus_is_in_no_other(load: Load) -> None:
    held_out = load("icbhi2017", "device-out", fold=0)
    with pytest.raises(InputError, match=r"icbhi2017 holds .* out .*synthetic trains on it; hold it out of synthetic"):
        concatenate_corpora([load("synthetic"), held_out])
    both = concatenate_corpora([load("synthetic", "device-out", fold=0), held_out])
    assert not set(both["test"]["device"]) & {*both["train"]["device"], *both["validation"]["device"]}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corpora_that_cannot_be_joined_are_refused_in_one_line(load: Load, folders: dict[str, Path]) -> None:
    one, other = load("synthetic"), load("icbhi2017")
    unknown = datasets.DatasetDict(
        {
            name: described(
                table.remove_columns("wheeze").add_column(
                    "wheeze", [None] * len(table), feature=table.features["wheeze"]
                ),
                provenance(table),
            )
            for name, table in other.items()
        }
    )
    same = load_corpus("icbhi2017", folders["synthetic"], protocol="patient-60-20-20")
    whole = load("icbhi2017", level="recording")
    for corpora, words in (
        ([], "no corpora given"),
        ([one, one], "synthetic is given twice"),
        ([one, unknown], "icbhi2017: no cycle has a known wheeze"),
        ([one, same], "synthetic and icbhi2017 have 10 recordings in common"),
        ([one, load("icbhi2017", "none")], "icbhi2017: with the protocol none .*; choose corpus-out"),
        ([one, whole], "not alike .synthetic event, icbhi2017 recording."),
    ):
        with pytest.raises(InputError, match=words):
            concatenate_corpora(corpora)
    with pytest.raises(InputError, match="are several corpora; load each"):
        load_corpus("synthetic+icbhi2017", "folder")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_of_a_training_sound_in_the_test_split_of_another_corpus_is_refused(load: Load, tmp_path: Path) -> None:
    """The copy has another container, so its bytes differ; in the same corpus the protocol would refuse it as well."""
    one = load("synthetic")
    row = one["train"][0]
    folder = tmp_path / "copied"
    folder.mkdir()
    sound, rate = soundfile.read(row["recording_path"], dtype="int16")
    soundfile.write(folder / "101_1b1_Al_sc_Meditron.flac", sound, rate)
    shutil.copy(Path(row["recording_path"]).with_suffix(".txt"), folder / "101_1b1_Al_sc_Meditron.txt")
    other = load_corpus("icbhi2017", folder, protocol="corpus-out", allow_missing=True, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"a list of corpora promises that no patient is shared, but the same sound"):
        check_duplicates(concatenate_corpora([one, other]), tmp_path / "cache")


def test_the_facts_of_several_corpora_are_those_of_each() -> None:
    both, sprsound, icbhi = (corpus_class(name) for name in ("sprsound+icbhi2017", "sprsound", "icbhi2017"))
    assert both.title == f"{sprsound.title} and {icbhi.title}"
    assert sprsound.citation in both.citation and icbhi.citation in both.citation
    assert all(any(line in shown for shown in both.limitations) for line in sprsound.limitations + icbhi.limitations)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_label_without_crackle_and_wheeze_is_not_normal(load: Load, tmp_path: Path) -> None:
    labels = ("squawk", "crackle;squawk", "", "wheeze", "crackle;wheeze", "NA")
    (tmp_path / "mine").mkdir()
    for k in range(len(labels)):
        soundfile.write(tmp_path / "mine" / f"r{k}.wav", np.random.default_rng(k).uniform(-0.5, 0.5, 8000), 4000)
    lines = [f"r{k},0,1,{label},p{k}" for k, label in enumerate(labels)]
    (tmp_path / "mine" / "c.csv").write_text("\n".join(["recording,start_s,end_s,label,patient_id", *lines]))
    own = load_corpus("folder", tmp_path / "mine", protocol="corpus-out", cache_dir=tmp_path / "cache")
    table = concatenate_corpora([load("synthetic"), own])["test"].filter(lambda row: row["corpus"] == "folder")
    assert table["label"][:] == [None, 1, 0, 2, 3, None] and table["crackle"][0] == 0
