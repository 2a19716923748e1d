"""A corpus as Parquet, plain to everybody's `datasets`, and read back as it was, bit for bit."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import exported_corpora
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from exported_corpora import Small, without_paths

from laennec.audio.cycles import cut
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.corpora import PROTOCOLS, CycleWaveforms, export_corpus, load_corpus, provenance
from laennec.corpora.hub.exported import CARD, MANIFEST
from laennec.corpora.splits import WITH_FOLDS
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
KINDS = ("icbhi2017", "sprsound", "physionet2016", "folder")
LEVELS = {"sprsound": ("event", "record"), "physionet2016": ("recording", "window")}


@pytest.fixture(scope="module")
def corpora(
    shared_data: Path, some_recordings: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Small]:
    place = tmp_path_factory.mktemp("corpora")
    return {
        "icbhi2017": exported_corpora.icbhi2017(place / "icbhi", shared_data),
        "sprsound": exported_corpora.sprsound(place / "spr", shared_data),
        "physionet2016": exported_corpora.physionet2016(place / "physionet", some_recordings),
        "folder": exported_corpora.own_recordings(place / "own", some_recordings),
    }


@pytest.fixture(scope="module")
def exports(corpora: dict[str, Small], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setenv("LAENNEC_CACHE", str(place / "cache"))
        return {
            kind: export_corpus(small.name, small.folder, place / kind, **small.settings).folder
            for kind, small in corpora.items()
        }


def both(kind: str, corpora: dict[str, Small], exports: dict[str, Path], **settings: Any) -> list[Any]:
    """The corpus as it is and as its export gives it; where the annotations lie is not said of the export."""
    small = corpora[kind]
    settings = small.settings | settings
    restored = {name: value for name, value in settings.items() if name != "annotations"}
    return [load_corpus(kind, small.folder, **settings), load_corpus(kind, exports[kind], **restored)]


@pytest.mark.parametrize(
    ("kind", "level"), [(kind, level) for kind in KINDS for level in LEVELS.get(kind, (None,))]
)  # fmt: skip
def test_rows_fingerprints_and_samples_come_back_as_they_were(
    kind: str, level: str | None, corpora: dict[str, Small], exports: dict[str, Path], tmp_path: Path
) -> None:
    more = {"window_s": 1.5} if level == "window" else {}
    one, other = both(kind, corpora, exports, level=level, **more)
    assert provenance(other) == provenance(one) and provenance(one)["corpus_fingerprint"]
    assert list(other) == list(one) and sum(map(len, one.values())) > 5
    for part in one:
        assert other[part].features == one[part].features
        assert without_paths(other[part]) == without_paths(one[part])
    first, again = (
        CycleWaveforms(parts["train"].select(range(0, 9, 3)), 5000, ButterworthFilter("lowpass", 900), tmp_path / name)
        for name, parts in (("one", one), ("other", other))
    )
    assert first.key == again.key
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))


PLAIN = """
import hashlib, io, json, sys
sys.modules["laennec"] = sys.modules["torchcodec"] = None        # neither may be needed
import datasets, soundfile
datasets.disable_progress_bars()
said = {}
for folder in sys.argv[2:]:
    parts = datasets.load_dataset(folder, cache_dir=sys.argv[1])
    raw = parts.cast_column("audio", datasets.Audio(decode=False))
    recordings = datasets.load_dataset(folder, "recordings", cache_dir=sys.argv[1])
    streamed = datasets.load_dataset(folder, streaming=True)
    sounds = {}
    for part in raw.values():
        for row in part:
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32", always_2d=True)
            digest = hashlib.sha256(samples.mean(axis=1).tobytes()).hexdigest()
            sounds[row["cycle_id"]] = [rate, len(samples), digest, row["audio"]["path"]]
    said[folder] = {
        "cycles": {name: part["cycle_id"][:] for name, part in parts.items()},
        "streamed": [row["cycle_id"] for row in streamed["train"].select_columns(["cycle_id"])],
        "audio": str(parts["train"].features["audio"]),
        "label": str(parts["train"].features["label"]),
        "sounds": sounds,
        "columns": {name: part.remove_columns("audio").to_list() for name, part in parts.items()},
        "recordings": recordings["corpus"].remove_columns(["audio"]).to_list(),
        "annotations": datasets.load_dataset(folder, "annotations", cache_dir=sys.argv[1])["corpus"].num_rows,
    }
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def plain(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without laennec and torchcodec finds in every export."""
    folders = {kind: str(path) for kind, path in exports.items()}
    cache = str(tmp_path_factory.mktemp("datasets"))
    done = subprocess.run([sys.executable, "-c", PLAIN, cache, *folders.values()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return {kind: said[folder] for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_datasets_reads_the_named_splits(
    kind: str, plain: dict[str, Any], corpora: dict[str, Small], exports: dict[str, Path]
) -> None:
    one, _ = both(kind, corpora, exports)
    found = plain[kind]
    assert found["cycles"] == {name: list(part["cycle_id"]) for name, part in one.items() if len(part)}
    assert found["streamed"] == found["cycles"]["train"] and found["annotations"] > 0
    rates = {row["source_sampling_rate"] for rows in found["columns"].values() for row in rows}
    declared = rates.pop() if len(rates) == 1 else 16000
    assert f"Audio(sampling_rate={declared}, decode=True" in found["audio"]
    assert "names=['normal', 'crackle', 'wheeze', 'both']" in found["label"]
    for part, rows in found["columns"].items():
        names = [name for name in one[part].column_names if name != "recording_path"]
        assert [{name: row[name] for name in names} for row in rows] == without_paths(one[part])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cycle_is_what_cutting_its_recording_gives(
    kind: str, plain: dict[str, Any], corpora: dict[str, Small], exports: dict[str, Path]
) -> None:
    import hashlib

    one, _ = both(kind, corpora, exports, protocol="none")
    sounds = plain[kind]["sounds"]
    assert len(sounds) == len(one["all"])
    for row in list(one["all"])[::5] + list(one["all"])[-3:]:
        recording = read_recording(row["recording_path"])
        piece = cut(recording.waveform, recording.sampling_rate, row["start_s"], row["end_s"])
        rate, samples, digest, name = sounds[row["cycle_id"]]
        assert (rate, samples) == (recording.sampling_rate, len(piece)) and name.startswith(row["cycle_id"])
        # one channel of the mean of two may differ from the mean of what was cut in nothing, for it is the same sum
        assert digest == hashlib.sha256(np.ascontiguousarray(piece).tobytes()).hexdigest(), row["cycle_id"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_protocol_that_the_corpus_supports_is_a_column(
    kind: str, plain: dict[str, Any], corpora: dict[str, Small], exports: dict[str, Path]
) -> None:
    facts = json.loads((exports[kind] / MANIFEST).read_text())
    rows = [row for part in plain[kind]["columns"].values() for row in part]
    wanted = {
        "icbhi2017": {"official", "official-strict"}, "sprsound": {"sprsound-official"},
        "physionet2016": {"database-out", "recording-80-20"}, "folder": {"patient-60-20-20", "random-80-20"},
    }[kind]  # fmt: skip
    assert wanted <= set(facts["protocols"]) and (kind != "physionet2016" or "patient-5fold" not in facts["protocols"])
    for protocol, said in facts["protocols"].items():
        for fold, fingerprint in enumerate(said["split_fingerprints"]):
            if fold > 1:
                continue
            mine = load_corpus(
                kind, corpora[kind].folder, **(corpora[kind].settings | {"protocol": protocol, "fold": fold})
            )
            assert provenance(mine)["split_fingerprint"] == fingerprint
            if protocol in WITH_FOLDS:
                assert said["column"] == f"fold_{protocol.replace('-', '_')}"
                assert {r["cycle_id"] for r in rows if r[said["column"]] == fold} == set(mine["test"]["cycle_id"])
                continue
            assert said["column"] == f"split_{protocol.replace('-', '_')}" and fold == 0
            for part, table in mine.items():
                assert {r["cycle_id"] for r in rows if r[said["column"]] == part} == set(table["cycle_id"])
    assert set(facts["protocols"]) <= set(PROTOCOLS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_is_a_row_with_its_cycles(
    kind: str, plain: dict[str, Any], corpora: dict[str, Small], exports: dict[str, Path]
) -> None:
    cycles: dict[str, list[Any]] = {}
    for rows in plain[kind]["columns"].values():
        for row in rows:
            cycles.setdefault(row["recording_id"], []).append(row)
    recordings = plain[kind]["recordings"]
    assert {row["recording_id"] for row in recordings} >= set(cycles)
    for row in recordings:
        own = sorted(cycles.get(row["recording_id"], []), key=lambda cycle: cycle["cycle_index"])
        assert [c["cycle_id"] for c in row["cycles"]] == [c["cycle_id"] for c in own]
        assert [(c["start_s"], c["crackle"]) for c in row["cycles"]] == [(c["start_s"], c["crackle"]) for c in own]
        assert all(row["patient_id"] == cycle["patient_id"] for cycle in own)
        if kind != "physionet2016":
            parts = {cycle["split_random_80_20"] for cycle in own}
            assert row["split_random_80_20"] == (parts.pop() if len(parts) == 1 else None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_what_is_in_it(kind: str, exports: dict[str, Path]) -> None:
    text, facts = (exports[kind] / CARD).read_text(), json.loads((exports[kind] / MANIFEST).read_text())
    head = yaml.safe_load(text.split("---\n")[1])
    configs = {config["config_name"]: config for config in head["configs"]}
    assert configs["cycles"]["default"] is True and set(configs) >= {"cycles", "recordings"}
    assert head["license"] == "other" and "{{" not in text and "undefined" not in text.lower()
    written = {name.rsplit("-", 1)[0] for name in facts["files"]}
    assert {files["path"].removesuffix("-*.parquet") for c in configs.values() for files in c["data_files"]} == written
    assert facts["corpus_fingerprint"] in text and facts["split_fingerprint"] in text
    assert all(said["column"] in text for said in facts["protocols"].values())
    assert ("BibTeX" in text or "```bibtex" in text) == (kind in ("icbhi2017", "sprsound", "physionet2016"))
    words = {
        "icbhi2017": "patients 156 and 218", "sprsound": "patients of test_intra are in train",
        "physionet2016": "Patients are not published", "folder": "every person recorded agreed",
    }  # fmt: skip
    assert words[kind] in text
    if facts["leaks"]:
        assert all(line in text for line in facts["leaks"])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_an_export_names_a_place_on_this_machine(
    kind: str, exports: dict[str, Path], corpora: dict[str, Small], tmp_path_factory: pytest.TempPathFactory
) -> None:
    places = [str(tmp_path_factory.getbasetemp()).encode(), str(Path.home()).encode() + b"/", str(Path.cwd()).encode()]
    for path in exports[kind].rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            columns = [name for name in table.column_names if name != "audio"]
            content = repr(table.select(columns).to_pylist()).encode() + repr(table.schema.metadata).encode()
        else:
            content = path.read_bytes() if path.is_file() else b""
        assert not any(place in content for place in places), path


def test_large_splits_are_several_files(corpora: dict[str, Small], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = export_corpus(
        "sprsound", corpora["sprsound"].folder, tmp_path / "out", shard_bytes=100_000, sampling_rate=16000,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    shards = sorted(path.name for path in (made.folder / "recordings").iterdir())
    assert len(shards) > 4 and shards[1] == "corpus-00001.parquet"
    assert all(path.stat().st_size < 350_000 for path in (made.folder / "recordings").iterdir())
    assert seen[-1][0] == seen[-1][1] == len(seen)
    parts = datasets.load_dataset(str(made.folder), cache_dir=str(tmp_path / "datasets"))
    assert {k: len(v) for k, v in parts.items()} == {k: len(v) for k, v in made.splits.items() if len(v)}
    assert parts["train"].features["audio"].sampling_rate == 16000
    again = load_corpus("sprsound", made.folder)
    assert {k: without_paths(v) for k, v in again.items()} == {k: without_paths(v) for k, v in made.splits.items()}


def test_the_corpus_of_anybodys_data_sets_reads_the_cycles(exports: dict[str, Path]) -> None:
    parts = load_corpus("hub", exports["sprsound"], label_column="label", patient_column="patient_id", train="train",
                        test="test_intra")  # fmt: skip
    assert parts["train"].features["category"].names == ["normal", "crackle", "wheeze", "both"]
    waveform = CycleWaveforms(parts["test"], 8000)[0]
    sound = datasets.load_dataset("parquet", data_files=str(next((exports["sprsound"] / "cycles").glob("test*"))),
                                  split="train").cast_column("audio", datasets.Audio(decode=False))[0]  # fmt: skip
    assert (waveform == soundfile.read(io.BytesIO(sound["audio"]["bytes"]), dtype="float32")[0]).all()


@pytest.fixture(scope="module")
def own_labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Recordings with labels of their own, a column of patients of another name and devices of few patients."""
    folder = tmp_path_factory.mktemp("own") / "recordings"
    folder.mkdir()
    lines = ["recording,start_s,end_s,label,Subject,device"]
    recorded = "a1 A, a2 A, b0 B, b1 B, b2 B, b3 B, c1 C, a2 B, c1 B"  # without device B, only a1 is left to train on
    for k, (patient, device) in enumerate(map(str.split, recorded.split(", "))):
        soundfile.write(folder / f"r{k}.wav", np.random.default_rng(k).uniform(-0.5, 0.5, 8000), 4000)
        labels = ("normal", ("stridor", "rhonchi")[k % 2])
        lines += [f"r{k},{j},{j + 1},{label},{patient},{device}" for j, label in enumerate(labels)]
    (folder / "c.csv").write_text("\n".join(lines))
    return folder, {"patient_column": "Subject", "labels": ["stridor", "rhonchi"]}


def test_an_export_is_read_with_the_options_it_was_made_with(
    own_labels: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, options = own_labels
    made = export_corpus("folder", folder, tmp_path / "out", tables_dir=None, **options)
    again = load_corpus("folder", made.folder, patient_column=None, level=None)  # as a recipe that does not set them
    assert {k: without_paths(v) for k, v in again.items()} == {k: without_paths(v) for k, v in made.splits.items()}
    assert set(again["train"]["patient_id"]) <= {"a1", "a2", "b0", "b1", "b2", "b3", "c1"}
    assert again["train"].features["label"].names == ["normal", "stridor", "rhonchi"]
    assert "is 0 normal, 1 stridor, 2 rhonchi; unknown is null." in (made.folder / CARD).read_text()
    other = load_corpus("folder", made.folder, labels=["rhonchi", "stridor"])
    assert other["train"].features["label"].names == ["normal", "rhonchi", "stridor"]
    facts = json.loads((made.folder / MANIFEST).read_text())
    assert facts["options"] == options | {"allow_missing": False, "unlabelled": False}
    facts["options"] |= {"annotations": "/etc/passwd", "tables_dir": "/etc"}  # somebody else's paths are not followed
    (made.folder / MANIFEST).write_text(json.dumps(facts))
    assert len(load_corpus("folder", made.folder)["train"]) == len(again["train"])
    (made.folder / MANIFEST).write_text(json.dumps(facts | {"options": {"labels": "stridor"}}))
    with pytest.raises(InputError, match="labels is 'stridor'; it should be a valid list"):
        load_corpus("folder", made.folder)


def test_a_fold_without_validation_is_a_fold_and_the_next_ones_follow(
    own_labels: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, options = own_labels
    made = export_corpus("folder", folder, tmp_path / "out", protocol="none", **options)
    rows = pq.read_table(next((made.folder / "cycles").iterdir())).to_pylist()
    assert {(row["device"], row["fold_device_out"]) for row in rows} == {("A", 0), ("B", 1), ("C", 2)}
    prints = made.manifest["protocols"]["device-out"]["split_fingerprints"]
    assert prints[0] and prints[1] is None and prints[2]
    card = (made.folder / CARD).read_text()
    assert f"`{prints[0][:12]}` none `{prints[2][:12]}`" in card
