"""What `find_recordings` of one's own corpus may yield."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from laennec.corpora import AnnotatedRecording, Corpus, Event, load_corpus
from laennec.errors import InputError


class Ward(Corpus):
    """Recordings with the values of `given`, each with one event."""

    name = "ward"
    given: tuple[dict[str, Any], ...] = ()

    def find_recordings(self, folder: Path) -> list[AnnotatedRecording]:
        values = {"patient_id": "p", "audio_path": folder / "a.wav", "events": (Event(0.0, 1.0, 1, 0),)}
        return [AnnotatedRecording(**({"recording_id": f"r{k}"} | values | own)) for k, own in enumerate(self.given)]


def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *given: dict[str, Any]) -> list[dict[str, Any]]:
    monkeypatch.setattr(Ward, "given", given)
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 4000)
    return load_corpus(Ward, tmp_path, protocol="none", cache_dir=tmp_path / "cache")["all"].to_list()


@pytest.mark.parametrize("unknown", [float("nan"), np.float64("nan"), pd.NA, pd.NaT, None])
def test_what_pandas_reads_from_an_empty_cell_is_unknown(
    unknown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("patient_id", "device", "age_years", "bmi", "sex", "diagnosis", "chest_location")
    (row,) = rows(monkeypatch, tmp_path, dict.fromkeys(names, unknown))
    assert {row[name] for name in names} == {None}


def test_values_are_of_the_type_of_their_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"recording_id": 3, "device": 5, "age_years": np.int64(7), "events": [Event(0, 1, True, False, ("x",))]}
    (row,) = rows(monkeypatch, tmp_path, given)
    assert [row[name] for name in ("recording_id", "device", "age_years")] == ["3", "5", 7.0]
    assert (row["crackle"], row["wheeze"], row["label"], row["events"]) == (1, 0, 1, ["x"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"recording_id": "a"}, {"recording_id": "a"}], "recording_id 'a' for .*a.wav, .* that of another recording"),
        ([{"recording_id": 1}, {"recording_id": "1"}], "recording_id '1' for .*a.wav, .* that of another recording"),
        ([{"recording_id": None}], "recording_id None for .*a.wav, which is unknown"),
        ([{"recording_id": float("nan")}], "recording_id None for .*a.wav, which is unknown"),
        ([{"age_years": "5"}], "age_years of r0 is '5'; give a number or None"),
        ([{"bmi": "high"}], "bmi of r0 is 'high'; give a number or None"),
        ([{"events": (Event(0.0, 1.0, 1, 0, names="stridor"),)}], "names 'stridor'; give a tuple of names"),
    ],
)
def test_what_cannot_be_told_apart_or_read_is_refused(
    given: list[Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"ward: Ward.find_recordings.*{words}"):
        rows(monkeypatch, tmp_path, *given)
