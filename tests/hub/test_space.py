"""A Space contains its own copy of the package, its own model, and pinned requirements."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from laennec.cli.main import main
from laennec.hub.export import write_space

WAIT_S = 300


@pytest.fixture(scope="module")
def space(tiny_run, tmp_path_factory):
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("space") / "run")
    assert main(["export", str(run), "--format", "space"]) == 0
    return run / "export-space"


def test_the_folder_has_what_a_space_needs(space):
    text = (space / "README.md").read_text()
    settings = yaml.safe_load(text.split("---")[1])
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and (space / "app.py").is_file()
    assert settings["sdk_version"] == importlib.metadata.version("gradio") and settings["title"] == "tiny"
    assert len(settings["short_description"]) <= 60
    assert "not a medical device" in text and "rule youden" in text
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["torch"] == importlib.metadata.version("torch").split("+")[0]
    assert {"gradio", "transformers", "soundfile", "huggingface_hub"} <= {name.replace("-", "_") for name in pins}
    assert not {"laennec", "pytest", "onnx"} & set(pins)
    assert not [p for p in space.rglob("*") if p.name == "__pycache__" or p.suffix in (".pyc", ".pyi")]


def test_it_serves_its_own_model_with_its_own_package(space, small_corpus, tmp_path):
    place = shutil.copytree(space, tmp_path / "elsewhere")
    with (place / "laennec" / "templates" / "app.css").open("a") as file:
        file.write(".of-this-copy {}")
    script = (
        "import runpy, sys; sys.path.insert(0, '.')\n"
        "import laennec.inference.page.app as app, threading, httpx\n"
        "def check(address, serve=app.serve_model):\n"
        "    print('config', httpx.get(address + '/config').text, httpx.get(address).text, flush=True)\n"
        "    stop.set()\n"
        "stop, serve = threading.Event(), app.serve_model\n"
        "app.serve_model = lambda *a, **k: serve(*a, **{**k, 'ready': check, 'stop': stop})\n"
        "runpy.run_path('app.py', run_name='__main__')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, env=environment, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stderr
    assert "Model: `tiny`" in done.stdout and "rule youden" in done.stdout and "of-this-copy" in done.stdout
    assert list(tmp_path.glob("laennec-app-*")) == []


def test_a_folder_with_other_files_is_not_replaced(tiny_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        write_space(tiny_run, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
