"""The table of promises: each script replaces only its own row, and the page shows the rows of the file."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "soak"))

import rows  # noqa: E402
from docs.render import render  # noqa: E402

MARKER = "# Page\n\n<!-- laennec:reliability reliability.json -->\n<!-- laennec:end -->\n"


def test_a_row_replaces_its_own_and_leaves_the_others(tmp_path, monkeypatch, capsys):
    out = tmp_path / "reliability.json"
    monkeypatch.setattr(sys, "argv", ["tests/soak/kills.py", "--kills", "5", "--out", str(out), "--found=/x"])
    rows.put(out, "kills", "it goes on", {"kills": 5, "differ": 1}, held=False)
    rows.put(out, "decoders", "a | b", {"files": 7}, held=True)
    with pytest.raises(SystemExit) as ended:
        rows.keep(out, "kills", "it goes on", {"kills": 9, "differ": 2}, held=False)
    assert ended.value.code == 1
    rows.put(None, "kills", "never kept", {}, held=True)
    kept = json.loads(out.read_text())["rows"]
    assert [(row["name"], row["held"], row["figures"].get("kills")) for row in kept] == [
        ("decoders", True, None), ("kills", False, 9),
    ]  # fmt: skip
    assert kept[1]["command"] == "python tests/soak/kills.py --kills 5"
    (tmp_path / "page.md").write_text(MARKER)
    assert not render(tmp_path / "page.md") and render(tmp_path / "page.md", check=True)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[5].startswith("| a &#124; b | yes | files: 7 | `python tests/soak/kills.py --kills 5` | 2")
    assert lines[6].startswith("| it goes on | **no** | kills: 9; differ: 2 | ")
    assert capsys.readouterr().out.count("NOT HELD") == 2


def test_every_promise_of_this_repository_is_held_and_named_once():
    kept = json.loads((ROOT / "docs" / "results" / "reliability.json").read_text())["rows"]
    assert kept and all(row["held"] for row in kept)
    assert len({row["name"] for row in kept}) == len(kept)
    for row in kept:
        script = row["command"].split()[1]
        assert (ROOT / script).is_file() and "/tmp" not in row["command"]
