"""An own corpus works from Python and from a recipe without an edit of the package."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import soundfile
import yaml

import laennec
from laennec.cli.main import main
from laennec.corpora import AnnotatedRecording, Corpus, Event, check_corpus, provenance
from laennec.errors import InputError
from laennec.training.record import read_run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_corpus.py"


@pytest.fixture
def ward(small_corpus: Path, tmp_path: Path) -> Path:
    """Recordings with the table that the example reads."""
    folder = tmp_path / "ward"
    folder.mkdir()
    rows = []
    for path in sorted(small_corpus.glob("*.wav")):
        waveform, rate = soundfile.read(path)
        soundfile.write(folder / f"{path.stem}.wav", waveform, rate)
        patient, *_, device = path.stem.split("_")
        for line in path.with_suffix(".txt").read_text().splitlines():
            rows.append([f"{path.stem}.wav", patient, device, *line.split()])
    with (folder / "cycles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "patient", "device", "start_s", "end_s", "crackle", "wheeze"], *rows])
    return folder


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the folder of the example, as its user does."""
    monkeypatch.chdir(EXAMPLE.parent)
    yield
    sys.modules.pop("own_corpus", None)


def test_the_example_runs_from_python(ward: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE, ward], capture_output=True, text=True, check=True)
    assert "train: " in done.stdout and "own_corpus:WardCorpus" in done.stdout


@pytest.mark.usefixtures("beside")
def test_its_tables_are_those_of_the_built_in_corpora(ward: Path, small_corpus: Path) -> None:
    own = laennec.load_corpus("own_corpus:WardCorpus", ward, protocol="none")
    built_in = laennec.load_corpus("synthetic", small_corpus, protocol="none")
    assert own["all"].features == built_in["all"].features
    for name in ("cycle_id", "patient_id", "start_s", "end_s", "label", "device"):
        assert list(own["all"][name]) == list(built_in["all"][name])
    assert provenance(own)["corpus"] == "ward" and len(provenance(own)["corpus_fingerprint"]) == 64
    before = provenance(own)["corpus_fingerprint"]
    table = ward / "cycles.csv"
    table.write_text(table.read_text().replace(",1,0\n", ",0,0\n", 1).replace(",1,0\r\n", ",0,0\r\n", 1))
    changed = laennec.load_corpus("own_corpus:WardCorpus", ward, protocol="none")
    assert provenance(changed)["corpus_fingerprint"] != before


@pytest.mark.usefixtures("beside")
def test_it_trains_and_scores_from_a_recipe(ward: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    recipe = tiny_recipe | {"corpus": {"name": "own_corpus:WardCorpus", "data_dir": str(ward)}}
    recipe["train"] = recipe["train"] | {"epochs": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path / "run")}))
    assert main(["train", str(path)]) == 0
    run = read_run(tmp_path / "run" / "run.json")
    assert run["corpus"]["name"] == "own_corpus:WardCorpus" and run["corpus"]["provenance"]["corpus"] == "ward"
    assert main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("beside")
def test_the_commands_take_it(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "own_corpus:WardCorpus", "--data-dir", str(ward)]) == 0
    assert main(["prepare", "own_corpus:WardCorpus", "--data-dir", str(ward), "--check"]) == 0
    capsys.readouterr()
    assert main(["prepare", "own_corpus:WardCorpus"]) == 2
    assert "https://example.org/ward (licence: CC BY 4.0)" in capsys.readouterr().err


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_corpus:main", "is no corpus; give a class that subclasses laennec.Corpus"),
        ("own_corpus:Corpus", "is no corpus"),
    ],
)
def test_wrong_names_are_one_line(name: str, words: str, ward: Path) -> None:
    with pytest.raises(InputError, match=words):
        laennec.load_corpus(name, ward)


@pytest.mark.usefixtures("beside")
def test_its_protocols_and_its_events_are_checked(ward: Path) -> None:
    with pytest.raises(InputError, match="ward has no protocol 'official'; valid: patient-60-20-20, random-80-20"):
        laennec.load_corpus("own_corpus:WardCorpus", ward, protocol="official")
    table = ward / "cycles.csv"
    lines = table.read_text().splitlines()
    broken = [*lines[-1].split(",")]
    broken[3:5] = ["5", "4"]
    table.write_text("\n".join([*lines, ",".join(broken)]) + "\n")
    with pytest.raises(InputError, match=r"event from 5\.0 to 4\.0 s"):
        laennec.load_corpus("own_corpus:WardCorpus", ward)
    assert len(check_corpus("own_corpus:WardCorpus", ward).problems) >= 1


class Bedside(Corpus):
    """A corpus of one recording and one event, each made of the given values."""

    name = "bedside"
    event: ClassVar[tuple] = (0.0, 1.0, 1, 0)
    changes: ClassVar[dict] = {}

    def find_recordings(self, folder: Path):
        path = min(folder.glob("*.wav"))
        values = {"patient_id": 7, "audio_path": str(path), "events": [Event(*self.event)]} | self.changes
        yield AnnotatedRecording("one", **values)


def test_numbers_of_patients_and_texts_of_paths_are_taken(ward: Path) -> None:
    (row,) = laennec.load_corpus(Bedside, ward, protocol="none")["all"]
    assert row["patient_id"] == "7" and Path(row["recording_path"]).parent == ward


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"event": ("0.0", "1.0", 1, 0)}, "one has an event from '0.0' to '1.0' s; give numbers"),
        ({"event": (0.0, 1.0, 2, 0)}, "one has an event with crackle 2 and wheeze 0; give 0, 1, or None"),
        ({"changes": {"events": None}}, "find_recordings yields .* with a tuple of Event"),
        ({"changes": {"events": [(0.0, 1.0)]}}, "find_recordings yields .* with a tuple of Event"),
        ({"find_recordings": lambda self, folder: [(folder, 7)]}, "find_recordings yields .* AnnotatedRecording"),
        ({"find_recordings": lambda self, folder: None}, "find_recordings: TypeError: .*; correct it"),
        ({"find_recordings": lambda self, folder: {}["age"]}, "find_recordings: KeyError: 'age'; correct it"),
    ],
)
def test_what_is_no_recording_is_one_line(ward: Path, wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=f"bedside: .*{said}"):
        laennec.load_corpus(type("Wrong", (Bedside,), wrong), ward)
