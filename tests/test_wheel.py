"""The wheel and the sdist, installed where nothing of the checkout is at hand."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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


def test_an_installed_wheel_trains_and_predicts(dist, tmp_path):
    place = tmp_path / "environment"
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

    def run(*words):
        done = subprocess.run([python, *words], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def laennec(*words):
        return run("-m", "laennec", *words)

    assert Path(run("-c", "import laennec; print(laennec.__file__)")).is_relative_to(site)
    assert "demo/add_cnn" in laennec("recipes")
    corpus = ["--corpus.data_dir", "corpus", "--corpus.options", "{patients: 16, recordings_per_patient: 1}"]
    laennec("train", "demo/add_cnn", "--train.epochs", "1", "--output_dir", "run", *corpus)
    laennec("export", "run", "--format", "full", "--out", "model")
    laennec("predict", "model", "corpus", "--out", "timelines")
    assert (tmp_path / "timelines" / "predictions.csv").stat().st_size > 100
