"""A corpus by its name, split, with its provenance written into every split."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from laennec.corpora import load_corpus, provenance
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.errors import InputError

COUNTS = {"official": (4142, 2756), "official-strict": (4025, 2873)}


def sizes(parts: datasets.DatasetDict) -> dict[str, int]:
    return {name: len(table) for name, table in parts.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("protocol", COUNTS)
def test_the_whole_database_under_the_published_split(shared_data: Path, tmp_path: Path, protocol: str) -> None:
    folder = shared_data / "icbhi2017_annotations"
    parts = load_corpus("icbhi2017", folder, protocol=protocol, validation_fraction=0, cache_dir=tmp_path)
    assert sizes(parts) == dict(zip(("train", "test"), COUNTS[protocol], strict=True))
    carved = load_corpus("icbhi2017", folder, protocol=protocol, cache_dir=tmp_path)
    assert list(carved) == ["train", "validation", "test"]
    assert len(carved["train"]) + len(carved["validation"]) == COUNTS[protocol][0]
    validation, test = set(carved["validation"]["patient_id"]), set(carved["test"]["patient_id"])
    assert validation and not validation & (test | set(carved["train"]["patient_id"]))
    assert (provenance(carved)["stamp"] is None) == (protocol == "official-strict")


def test_the_real_subset_is_refused_where_all_are_needed(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "icbhi2017_subset"
    for protocol in ("official", "official-strict", "patient-5fold"):
        with pytest.raises(InputError, match=r"819 of the 920 .* missing \(101_1b1_Al_sc_Meditron.*allow_missing=True"):
            load_corpus("icbhi2017", folder, protocol=protocol, cache_dir=tmp_path)
    with pytest.warns(UserWarning) as told:
        parts = load_corpus("icbhi2017", folder, allow_missing=True, cache_dir=tmp_path)
    assert any("819 of the 920" in str(one.message) for one in told)
    assert any("split test of protocol official has no cycles" in str(one.message) for one in told)
    assert sum(sizes(parts).values()) == 1121 and len(parts["test"]) == 0
    assert "incomplete: 101 of the 920 recordings" in provenance(parts)["stamp"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_real_subset_under_other_protocols(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "icbhi2017_subset"
    parts = load_corpus("icbhi2017", folder, protocol="patient-60-20-20", cache_dir=tmp_path)
    assert sum(sizes(parts).values()) == 1121 and list(parts) == ["train", "validation", "test"]
    whole = load_corpus("icbhi2017", folder, protocol="none", cache_dir=tmp_path)
    assert sizes(whole) == {"all": 1121}
    assert provenance(whole)["corpus_fingerprint"] == provenance(parts)["corpus_fingerprint"]
    assert "split_fingerprint" not in provenance(whole)
    leaky = load_corpus("icbhi2017", folder, protocol="random-80-20", cache_dir=tmp_path)
    assert provenance(leaky)["stamp"].startswith("leaky: random cycles; incomplete")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_provenance_survives_what_people_do_with_tables(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "icbhi2017_subset"
    parts = load_corpus("icbhi2017", folder, protocol="patient-60-20-20", seed=3, cache_dir=tmp_path)
    origin = provenance(parts)
    assert origin["corpus"] == "icbhi2017" and origin["protocol"] == "patient-60-20-20" and origin["seed"] == 3
    assert origin["corpus_fingerprint"] == Icbhi2017(folder, cache_dir=tmp_path).manifest.corpus_fingerprint
    assert provenance(parts["train"].select(range(5)).filter(lambda row: row["crackle"] == 0)) == origin
    parts.save_to_disk(str(tmp_path / "saved"))
    assert provenance(datasets.load_from_disk(str(tmp_path / "saved"))) == origin
    assert provenance(datasets.Dataset.from_dict({"a": [1]})) == {}
    other = load_corpus("icbhi2017", folder, protocol="patient-60-20-20", seed=4, cache_dir=tmp_path)
    assert provenance(other)["split_fingerprint"] != origin["split_fingerprint"]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("icbhi", {}, "did you mean 'icbhi2017'"),
        ("icbhi2017", {}, "no data_dir given"),
        ("icbhi2017", {"protocol": "offical"}, "did you mean 'official'"),
        ("icbhi2017", {"data_dir": "no/such/place"}, "no such folder"),
        ("icbhi2017", {"data_dir": ".", "patients": 3}, "no option patients"),
        ("folder", {"data_dir": ".", "level": "record"}, "folder has no level 'record'; valid: event"),
        ("synthetic", {"patient": 3}, "no option patient"),
        ("synthetic", {"patients": "x"}, "patients is 'x'; it should be a valid integer.*option of corpus synthetic"),
        ("folder", {"data_dir": ".", "labels": "stridor"}, "labels is 'stridor'; it should be a valid list"),
        ("folder", {"data_dir": ".", "labels": [0, 1]}, "labels.0 is 0; it should be a valid string"),
        ("folder", {"data_dir": ".", "patient_column": 5}, "patient_column is 5; it should be a valid string"),
        ("folder", {"data_dir": ".", "annotations": 2024}, "annotations is 2024; it should be a valid string or path;"),
        ("folder", {"data_dir": ".", "unlabelled": "maybe"}, "unlabelled is 'maybe'; it should be a valid boolean"),
        ("hub", {"data_dir": ".", "label_map": "a"}, "label_map is 'a'; it should be a valid dictionary"),
        ("synthetic", {"validation_fraction": "0.2"}, "validation_fraction is '0.2'; give a share"),
    ],
)
def test_wrong_requests(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_corpus(name, **settings)
