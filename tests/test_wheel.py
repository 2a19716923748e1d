"""The wheel and the sdist, installed without access to the checkout."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile

from laennec.audio.cycles import read_annotation

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and sdist, built from a copy of the files that git tracks."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if (name.startswith(("src/", "recipes/")) or "/" not in name) and (source.is_symlink() or source.is_file()):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy / name, follow_symlinks=False)
    for kind in ("sdist", "wheel"):
        build = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, check=True, capture_output=True)
    return out


def test_wheel_and_sdist_hold_recipes_templates_and_metadata(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.yaml")}
    assert {f"laennec/{name}" for name in recipes} <= set(inside)
    assert "laennec/py.typed" in inside and any(name.startswith("laennec/templates/") for name in inside)
    metadata = zipfile.ZipFile(wheel).read(next(n for n in inside if n.endswith("METADATA"))).decode()
    assert all(f"\n{key}: " in metadata for key in ("Author", "Project-URL", "Classifier", "License-Expression"))
    with tarfile.open(sdist) as file:
        assert any(name.endswith("recipes/demo/add_cnn.yaml") for name in file.getnames())


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The wheel in its own environment: a function of a folder and the words of a command."""
    place = tmp_path_factory.mktemp("wheel") / "environment"
    venv.create(place, with_pip=False)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    # the dependencies come from this environment; its editable install of the checkout has no effect there
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(site)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}

    def run(folder, *words):
        words = ["-m", *words] if words[0] == "laennec" else words[1:]
        done = subprocess.run([python, *words], cwd=folder, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    where, _ = run(place, "python", "-c", "import laennec; print(laennec.__file__)")
    assert Path(where).is_relative_to(site)
    return run


def test_an_installed_wheel_trains_and_predicts(installed, tmp_path):
    def laennec(*words):
        return installed(tmp_path, "laennec", *words)[0]

    assert "demo/add_cnn" in laennec("recipes")
    corpus = ["--corpus.data_dir", "corpus", "--corpus.options", "{patients: 16, recordings_per_patient: 1}"]
    laennec("train", "demo/add_cnn", "--train.epochs", "1", "--output_dir", "run", *corpus)
    laennec("export", "run", "--format", "full", "--out", "model")
    laennec("predict", "model", "corpus", "--out", "timelines")
    assert (tmp_path / "timelines" / "laennec.predictions.csv").stat().st_size > 100


TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.S | re.M)
RESULT = re.compile(r"'[\d.e-]+'|[+-]?\d+\.\d+|\*|True|False|not defined")
CLOCK = re.compile(r"\d+(\.\d+)? s\b")


def first_prediction(data: Path, folder: Path) -> None:
    """Files of the tutorial: the first eight seconds of a recording of SPRSound."""
    sound, rate = soundfile.read(data / "sprsound" / "train" / "wav" / "40976541_2.7_1_p1_3305.flac")
    (folder / "recordings").mkdir()
    for name in ("recording.wav", "recordings/a.wav", "recordings/b.wav"):
        soundfile.write(folder / name, sound[: 8 * rate], rate)


def train_in_python(data: Path, folder: Path) -> None:
    """Files of the tutorial: 101 recordings of ICBHI 2017, and one of them to predict."""
    (folder / "icbhi").symlink_to(data / "icbhi2017_subset")
    (folder / "icbhi2017_tables").symlink_to(data / "icbhi2017_tables")
    (folder / "recording.wav").symlink_to(data / "icbhi2017_subset" / "201_1b1_Ar_sc_Meditron.flac")


def own_recordings(data: Path, folder: Path) -> None:
    """Recordings of ICBHI 2017 with other labels, in a CSV as a spreadsheet in Germany writes it, and diagnoses."""
    names = {"normal": "", "crackle": "Rhonchi", "wheeze": "stridor", "both": "stridor; rhonchi"}
    sounds = sorted((data / "icbhi2017_subset").glob("*.flac"))
    diagnoses = dict(line.split() for line in (data / "icbhi2017_tables" / "ICBHI_Challenge_diagnosis.txt").open())
    rows = []
    for name, some in (("my_recordings", sounds), ("my_patients", sounds), ("new_recordings", sounds[:2])):
        (folder / name).mkdir()
        for path in some:
            (folder / name / path.name).symlink_to(path)
    for path in sounds:
        for cycle in read_annotation(path.with_suffix(".txt")):
            times = [f"{time:.3f}".replace(".", ",") for time in (cycle.start_s, cycle.end_s)]
            rows.append([path.name, *times, names[cycle.label], path.name[:3]])
    with (folder / "my_recordings" / "findings.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";", lineterminator="\r\n")
        table.writerows([["recording", "start_s", "end_s", "label", "patient_id"], *rows])
    patients = sorted({path.name[:3] for path in sounds})
    people = "".join(f"{patient},{diagnoses[patient]}\n" for patient in patients)
    (folder / "my_patients" / "people.csv").write_text(f"patient_id,diagnosis\n{people}")


def transcripts(page: str, folder: Path, run) -> list[tuple[str, str, str]]:
    """Write the scripts of a tutorial into a folder, run its commands there: (command, printed, in the page)."""
    found = []
    for kind, block in BLOCK.findall(page):
        if kind == "python" and (named := re.match(r"# (\w+\.py)\n", block)):
            (folder / named[1]).write_text(block[named.end() :])
        elif kind == "console":
            command, _, wanted = block.removeprefix("$ ").partition("\n")
            out, _ = run(folder, *shlex.split(command))
            found.append((command, CLOCK.sub("# s", out), CLOCK.sub("# s", wanted.strip())))
    return found


def without_results(text: str) -> str:
    """The lines of a transcript without the results that rounding in training can change."""
    lines = [line for line in text.splitlines() if not line.startswith(("warning:", "note:", "kept:"))]
    return re.sub(" +", " ", RESULT.sub("#", "\n".join(lines)))


# results of a training differ between processors; predictions of the model in the package hardly do
@pytest.mark.parametrize("prepare", [first_prediction, train_in_python, own_recordings])
def test_the_transcripts_of_a_tutorial_are_what_its_commands_print(prepare, installed, shared_data, released, tmp_path):
    (tmp_path / released.name).symlink_to(released)
    prepare(shared_data, tmp_path)
    page = (TUTORIALS / f"{prepare.__name__}.md").read_text(encoding="utf-8")
    found = transcripts(page, tmp_path, installed)
    assert len(found) >= 4
    for command, printed, wanted in found:
        if prepare is not first_prediction:
            printed, wanted = without_results(printed), without_results(wanted)
        first, dots, last = NUMBER.sub("#", wanted).partition("\n...\n")  # a line of dots: lines left out
        shown = NUMBER.sub("#", printed)
        assert shown.startswith(first) and shown.endswith(last) if dots else shown == first, command
        if prepare is first_prediction:
            numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, wanted)]
            assert numbers[0] == pytest.approx(numbers[1], abs=0.011), command
