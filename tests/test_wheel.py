"""The wheel and the sdist, installed where nothing of the checkout is at hand."""

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

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and sdist of a copy of what git knows."""
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
    """The wheel in an environment of its own: call it with a folder and a command line."""
    place = tmp_path_factory.mktemp("wheel") / "environment"
    venv.create(place, with_pip=False)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    # its dependencies are those of this environment, but for the checkout that is installed there
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
    assert (tmp_path / "timelines" / "predictions.csv").stat().st_size > 100


def test_the_transcripts_of_the_first_prediction_are_what_the_commands_print(installed, shared_data, tmp_path):
    page = (ROOT / "docs" / "tutorials" / "first_prediction.md").read_text(encoding="utf-8")
    sound, rate = soundfile.read(shared_data / "sprsound" / "train" / "wav" / "40976541_2.7_1_p1_3305.flac")
    (tmp_path / "recordings").mkdir()
    for name in ("recording.wav", "recordings/a.wav", "recordings/b.wav"):
        soundfile.write(tmp_path / name, sound[: 8 * rate], rate)
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page, re.S | re.M):
        (tmp_path / name).write_text(code)
    transcripts = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```", page, re.S | re.M)
    assert len(transcripts) >= 4
    for command, wanted in transcripts:
        out, err = installed(tmp_path, *shlex.split(command))
        said = [line for line in err.splitlines() if line.startswith("model: ") and line in wanted]
        found = "\n".join([*said, out])
        assert NUMBER.sub("#", found) == NUMBER.sub("#", wanted.strip()), command
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (found, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.011), command  # another processor rounds differently
