"""A corpus by its name, split, with its provenance written into every split."""

import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

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


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A stand-in for the complete database: 920 names of tiny recordings."""
    folder = tmp_path / "ICBHI_final_database"
    folder.mkdir()
    lines = []
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    sound = tmp_path / "tiny.wav"
    soundfile.write(sound, noise, 4000)
    content = bytearray(sound.read_bytes())
    for number in range(920):
        name = f"{100 + number // 8}_{number % 8}b1_Al_sc_Meditron"
        content[-2:] = number.to_bytes(2, "little")
        (folder / f"{name}.wav").write_bytes(content)
        (folder / f"{name}.txt").write_text(f"0\t0.1\t{number % 2}\t{number // 2 % 2}\n")
        lines.append(f"{name}\t{'train' if number < 552 else 'test'}\n")
    (tmp_path / "ICBHI_challenge_train_test.txt").write_text("".join(lines))
    return folder


@pytest.mark.filterwarnings("ignore:.*no (demographics|diagnosis) table")
def test_919_of_920_are_refused_by_name(database: Path, tmp_path: Path) -> None:
    whole = load_corpus("icbhi2017", database, validation_fraction=0, cache_dir=tmp_path / "cache")
    assert sizes(whole) == {"train": 552, "test": 368}
    assert provenance(whole)["missing_recordings"] == 0 and provenance(whole)["stamp"] is None
    for suffix in (".wav", ".txt"):
        (database / f"150_3b1_Al_sc_Meditron{suffix}").unlink()
    with pytest.raises(InputError) as caught:
        load_corpus("icbhi2017", database, cache_dir=tmp_path / "cache")
    assert "Respiratory Sound Database are missing (150_3b1_Al_sc_Meditron)" in str(caught.value)
    assert "\n" not in str(caught.value) and "--allow-missing" in str(caught.value)
    with pytest.warns(UserWarning, match="1 of the 920"):
        parts = load_corpus("icbhi2017", database, allow_missing=True, cache_dir=tmp_path / "cache")
    assert sum(sizes(parts).values()) == 919 and "919 of the 920" in provenance(parts)["stamp"]
    with pytest.warns(UserWarning, match="1 of the 920"):
        load_corpus("icbhi2017", database, protocol="patient-60-20-20", cache_dir=tmp_path / "cache")
    (tmp_path / "ICBHI_challenge_train_test.txt").unlink()
    with pytest.raises(InputError, match=r"needs ICBHI_challenge_train_test\.txt"):
        load_corpus("icbhi2017", database, cache_dir=tmp_path / "cache")


def test_a_synthetic_corpus_needs_no_data(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patients": 8, "cycles_per_recording": 3, "max_rate_hz": 4000, "cache_dir": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = load_corpus("synthetic", **settings)
    assert list(parts) == ["train", "validation", "test"] and min(sizes(parts).values()) > 0
    again = load_corpus("synthetic", **settings)
    assert provenance(again) == provenance(parts)
    other = load_corpus("synthetic", **settings, corpus_seed=1)
    assert provenance(other)["corpus_fingerprint"] != provenance(parts)["corpus_fingerprint"]
    official = load_corpus("synthetic", **settings, protocol="official")
    assert provenance(official)["stamp"] is None or "incomplete" not in provenance(official)["stamp"]


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
    ],
)
def test_wrong_requests(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_corpus(name, **settings)


def test_a_cache_that_cannot_be_written(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="choose another"):
        load_corpus("icbhi2017", shared_data / "icbhi2017_annotations", cache_dir=tmp_path / "file")
