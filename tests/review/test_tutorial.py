"""The tutorial: its scripts and commands print what it says, and fifty answers become a corpus that trains a model."""

import re
import shlex
from pathlib import Path

from forked import Forked, script
from laennec.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "review.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.S | re.M)


def plain(text):
    """A transcript without numbers and the width of columns, and without lines that depend on numbers."""
    of_numbers = re.compile("train epoch|kept|note|(windows|recordings|crackle|wheeze): .*row")
    lines = [line for line in text.splitlines() if not of_numbers.match(line)]
    text = re.sub(r"\b[0-9a-f]{64}\b|-?\d+(\.\d+)?", "#", "\n".join(lines))
    return re.sub(r"(not defined|#)( \[#, #\])?", "#", re.sub(r"\s+", " ", text)).strip()


def test_the_tutorial_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = 0
    for kind, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            name, _, code = block.partition("\n")
            Path(name.removeprefix("# ")).write_text(code)
            continue
        command, _, wanted = block.removeprefix("$ ").partition("\n")
        program, *words = shlex.split(command)
        work = script(Path(words[0]).read_text()) if program == "python" else Forked(lambda words=words: main(words))
        done = work.done()
        assert done.returncode == 0, done.stderr
        first, dots, last = plain(wanted).partition(" ... ")
        shown = plain(done.stdout)
        assert shown.startswith(first) and shown.endswith(last) if dots else shown == first, (command, done.stdout)
        commands += 1
    assert commands == 5 and (tmp_path / "runs" / "reviewed" / "model" / "config.json").exists()
