"""Edited or damaged run records: `laennec card` names the record in one line."""

import json
import shutil

import pytest

from laennec.errors import InputError
from laennec.hub.card import render_card

RECORDS = {
    "no calibration error": lambda run: run["operating_points"].pop("ece_before"),
    "a list for a temperature": lambda run: run["operating_points"]["temperatures"].update(crackle=[]),
    "a text for a calibration error": lambda run: run["operating_points"]["ece_after"].update(crackle="x"),
    "points that are a number": lambda run: run["window_points"].update(windows=7),
    "no name of the corpus": lambda run: run["corpus"].pop("name"),
    "a label that is an object": lambda run: run["labels"].append({}),
    "a time in a text": lambda run: run["timings"].update(total="x"),
    "a teacher that is a text": lambda run: run.update(teacher="x"),
    "notes that are a number": lambda run: run["operating_points"].update(notes=7),
}


@pytest.mark.parametrize("attack", RECORDS)
def test_a_card_of_a_damaged_record_is_one_line(tiny_run, tmp_path, attack):
    run = json.loads((tiny_run / "run.json").read_text())
    RECORDS[attack](run)
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="not of the form that laennec writes") as error:
        render_card(tmp_path / "run")
    assert str(tmp_path / "run" / "run.json") in str(error.value)
