"""A Space runs as it lies: its own copy of the package, its own model, pinned needs."""

import ast
import importlib.metadata
import shutil
import sys

import httpx
import pytest
import yaml
from page_client import Served, ask, upload

from laennec.cli.main import main
from laennec.hub.space import write_space


@pytest.fixture(scope="module")
def space(tiny_run, tmp_path_factory):
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("space") / "run")
    assert main(["export", str(run), "--format", "space"]) == 0
    return run / "export-space"


def test_the_folder_says_what_a_space_needs(space):
    text = (space / "README.md").read_text()
    settings = yaml.safe_load(text.split("---")[1])
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and (space / "app.py").is_file()
    assert settings["sdk_version"] == importlib.metadata.version("gradio") and settings["title"] == "tiny"
    assert len(settings["short_description"]) <= 60
    assert "no medical device" in text and "rule youden" in text
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["torch"] == importlib.metadata.version("torch").split("+")[0] and "laennec" not in pins
    assert not [p for p in space.rglob("*") if p.name == "__pycache__" or p.suffix in (".pyc", ".pyi")]


def imported(path):
    """What a module imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]


def test_the_pins_cover_what_the_copied_package_imports(space):
    waiting, seen, foreign = ["laennec.inference.serve", "laennec.modeling", "laennec.inference.app"], set(), {}
    while waiting:
        name = waiting.pop()
        place = space.joinpath(*name.split("."))
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for other in imported(path):
            waiting += [other] if other.startswith("laennec.") else []
            if (top := other.split(".")[0]) not in (*sys.stdlib_module_names, "laennec"):
                foreign[top] = path
    assert {"torch", "numpy", "soundfile", "uvicorn", "datasets"} <= set(foreign) and len(seen) > 30
    owners = importlib.metadata.packages_distributions()
    pinned = {line.split("==")[0].lower() for line in (space / "requirements.txt").read_text().splitlines()}
    for name, path in foreign.items():
        assert {owner.lower() for owner in owners[name]} & pinned, f"{path} imports {name}"


def test_it_starts_and_answers_with_what_it_holds(space, small_corpus, tmp_path):
    place = shutil.copytree(space, tmp_path / "elsewhere")
    with (place / "laennec" / "templates" / "app.css").open("a") as file:
        file.write(".of-this-copy {}")
    run = "import runpy; sys.path.insert(0, '.'); runpy.run_path('app.py', run_name='__main__')"
    page = Served(run, place, PYTHONPATH=None, GRADIO_SERVER_PORT="0")
    try:
        sound = sorted(small_corpus.glob("*.wav"))[0]
        answer = ask(page.address, upload(page.address, sound))
        html = answer["output"]["data"][0]
        assert answer["success"] and "la-answer" in html and sound.name in html
        said = httpx.get(f"{page.address}/config").text
        assert "The model (tiny)" in said and "by the rule youden" in said
        assert "of-this-copy" in httpx.get(page.address).text + httpx.get(f"{page.address}/theme.css").text
        assert page.sent_files() == []
    finally:
        code = page.end()
    assert code == 0 and "OUTBOUND" not in page.said, page.said
    assert list(page.temporary.glob("laennec-app-*")) == []


def test_another_folder_is_not_replaced(tiny_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        write_space(tiny_run, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
