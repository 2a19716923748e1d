"""Documents are current: generated pages, rendered tables, code blocks, command lines, links."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from docs.generate import PAGES, REFERENCE
from docs.render import documents, render

import laennec
from laennec.cli.main import COMMANDS, make_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for path in documents() if "templates" not in path.parts]
TRAINS = ("train", "pretrain")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name):
    assert (REFERENCE / name).read_text() == PAGES[name](), "run: python -m docs.generate"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_are_those_of_the_result_files(path):
    assert render(path, check=True), "run: python -m docs.render"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile_and_use_public_names(path):
    for block in blocks(path, "python"):
        if "--8<--" in block:
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "laennec":
                assert node.attr in laennec.__all__ or hasattr(laennec, node.attr), node.attr
            if isinstance(node, ast.ImportFrom) and node.module == "laennec":
                assert all(alias.name in laennec.__all__ for alias in node.names)


def commands(path: Path) -> list[list[str]]:
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if "laennec" in words[:1] or (words[:2] == ["accelerate", "launch"] and "laennec" in words):
            found.append(words[words.index("laennec") + 1 :])
    return found


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if commands(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_command_lines_are_understood(path):
    names, parser = set(COMMANDS), make_parser()
    for words in commands(path):
        assert words[0] in names, words
        if any("$" in word for word in words):
            continue
        _, rest = parser.parse_known_args(words)
        assert not rest or words[0] in TRAINS, (words, rest)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (path.parent / target).exists(), target


def test_a_tutorial_includes_each_example_of_an_own_object():
    page = (ROOT / "docs" / "tutorials" / "own_loss.md").read_text()
    included = re.findall(r'^--8<-- "(examples/.*)"$', page, re.M)
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("own_*.py")} <= set(included)


def test_the_readme_is_short_and_its_training_code_is_the_example():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 200
    example = (ROOT / "examples" / "train_without_yaml.py").read_text()
    assert len(example.splitlines()) <= 30
    shown = next(block for block in blocks(ROOT / "README.md", "python") if "LaennecTrainer" in block)
    for line in shown.splitlines():
        if "laennec." in line:
            assert re.sub(r"\(.*", "", line.strip()) in example, line
