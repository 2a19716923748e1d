"""The tutorial on own recordings, run as it stands on real recordings with labels renamed and in a German CSV."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from laennec.audio.cycles import read_annotation
from laennec.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "own_recordings.md"
NAMES = {"normal": "", "crackle": "Rhonchi", "wheeze": "stridor", "both": "stridor; rhonchi"}


@pytest.fixture
def tutorial(shared_data: Path, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the page, in a folder that holds what it begins with."""
    by_patient: dict[str, Path] = {}
    for path in sorted((shared_data / "icbhi2017_subset").glob("*.flac")):
        if path.name[:3] not in by_patient or "1\t1" in path.with_suffix(".txt").read_text():
            by_patient[path.name[:3]] = path
    few = [path for path in by_patient.values() if path.stat().st_size < 700_000][:10]
    diagnoses = dict(
        line.split() for line in (shared_data / "icbhi2017_tables" / "ICBHI_Challenge_diagnosis.txt").open()
    )
    rows = []
    for name, sounds in (("my_recordings", few), ("my_patients", few), ("new_recordings", few[:1])):
        (tmp_path / name).mkdir()
        for path in sounds:
            (tmp_path / name / path.name).symlink_to(path)
    for path in few:
        cycles = read_annotation(path.with_suffix(".txt"))
        for cycle in [*cycles[:3], *(cycle for cycle in cycles[3:] if cycle.label != "normal")][:5]:
            times = [f"{time:.3f}".replace(".", ",") for time in (cycle.start_s, cycle.end_s)]
            rows.append([path.name, *times, NAMES[cycle.label], path.name[:3]])
    with (tmp_path / "my_recordings" / "Befunde.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";", lineterminator="\r\n")
        table.writerows([["recording", "start_s", "end_s", "label", "patient_id"], *rows])
    people = "".join(f"{patient},{diagnoses[patient]}\n" for patient in by_patient if by_patient[patient] in few)
    (tmp_path / "my_patients" / "people.csv").write_text(f"patient_id,diagnosis\n{people}")
    (tmp_path / released.name).symlink_to(released)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.usefixtures("unpainted")
def test_the_tutorial_on_own_recordings(tutorial, tmp_path, capsys) -> None:
    said = {}
    for words in tutorial:
        if words[0] == "push":  # needs the Hub; tests/hub pushes
            continue
        quick = ["--epochs", "2"] if words[0] == "train" else []
        assert main([*words, *quick]) == 0, words
        said[" ".join(words[:2])] = capsys.readouterr().out
    assert "10 patients" in said["prepare folder"] and "no problems" in said["prepare folder"]
    first = said["train own_recordings/frozen_mobilenet"].splitlines()[0]
    assert first == "target: Rhonchi, stridor (multi_label: each by itself) of cycles"
    assert re.search(r"^\d+ cycles of \d patients", said["evaluate runs/mine"], re.M)
    config = json.loads((tmp_path / "my_model" / "config.json").read_text())
    assert config["id2label"] == {"0": "Rhonchi", "1": "stridor"} and config["span"] == "cycle"
    assert said["train own_recordings/diagnosis"].splitlines()[0].endswith("(single_label: exactly one) of recordings")
    rows = list(csv.DictReader((tmp_path / "diagnoses" / "predictions.csv").open()))
    assert len(rows) == 1 and float(rows[0]["start_s"]) == 0 and float(rows[0]["end_s"]) > 10
    assert len(list(csv.DictReader((tmp_path / "timelines" / "predictions.csv").open()))) > 8
