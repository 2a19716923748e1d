"""The page is one file that shows and plays the spans, and its probes measure what the embedding holds."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import laennec
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.explore.map import write_map
from laennec.explore.probes import Probe, probes, verdict


def table(patients=20, recordings=3, spans=6):
    """Rows of spans with a label in half of the patients."""
    rows = [(f"{p}", f"{p}/{r}.wav", s) for p in range(patients) for r in range(recordings) for s in range(spans)]
    frame = pd.DataFrame(rows, columns=["patient_id", "recording", "start_s"])
    frame["end_s"] = frame["start_s"] + 1.0
    draw = np.random.default_rng(0)
    frame["label"] = np.where(draw.random(len(frame)) < 0.4, "wheeze", "normal")
    frame["device"] = np.where(frame["patient_id"].astype(int) % 2, "one", "other")
    frame["chest_location"] = draw.choice(["Al", "Ar", "Tc"], len(frame))
    return frame


def by_name(found):
    return {probe.name: probe for probe in found}


def test_a_probe_finds_what_is_in_the_embedding_and_nothing_else():
    rows, draw = table(), np.random.default_rng(1)
    noise = draw.standard_normal((len(rows), 12)).astype(np.float32)
    noise[:, 0] += 4.0 * (rows["label"] == "wheeze")
    noise[:, 1] += 4.0 * (rows["device"] == "one")
    found = by_name(probes(noise, rows))
    assert found["wheeze"].auroc > 0.95 and found["device"].auroc > 0.95
    assert found["wheeze"].interval[0] < found["wheeze"].auroc < found["wheeze"].interval[1]
    assert abs(found["chest location"].auroc - 0.5) < 0.12
    sentence = verdict(list(found.values()))
    assert sentence.startswith("Linear probes predict wheeze (") and "the device (" in sentence
    assert "chest location" not in sentence
    chance = verdict([Probe("crackle", "label", 0.52, None, ""), Probe("patient", "patient", 0.83, None, "")])
    assert (
        chance.startswith("Linear probes hardly predict crackle (0.52)") and "They predict the patient (0.83)" in chance
    )
    both = verdict([Probe("crackle", "label", 0.52, None, ""), Probe("wheeze", "label", 0.79, None, "")])
    assert both.startswith("Linear probes predict wheeze (0.79) of unseen patients, but hardly crackle (0.52)")


def test_patients_are_found_in_other_recordings_but_their_label_is_not_learnt_by_heart():
    rows = table()
    rows["label"] = np.where(rows["patient_id"].astype(int) % 3 == 0, "crackle", "normal")  # a trait of the patient
    people = np.eye(20, dtype=np.float32)[rows["patient_id"].astype(int)]
    found = by_name(probes(people + 0.1 * np.random.default_rng(0).standard_normal(people.shape), rows))
    assert found["patient"].auroc > 0.99 and found["crackle"].auroc < 0.7


def test_the_noise_of_a_recording_is_not_taken_for_its_patient():
    rows = table()
    numbers = rows["recording"].astype("category").cat.codes
    of_recordings = np.eye(60, dtype=np.float32)[numbers]
    assert by_name(probes(of_recordings, rows))["patient"].auroc < 0.6


def test_what_cannot_be_measured_says_why():
    rows = table(patients=6)
    rows["device"], rows["label"] = "one", None
    found = by_name(probes(np.random.default_rng(0).standard_normal((len(rows), 4)).astype(np.float32), rows))
    assert found["device"].auroc is None and "two are needed" in found["device"].note
    assert found["labels"].auroc is None and "corpus" in found["labels"].note
    del rows["patient_id"]
    rows["patient_id"] = None
    alone = probes(np.ones((len(rows), 4), np.float32), rows)
    assert all(probe.auroc is None for probe in alone) and "confounds cannot be probed" in verdict(alone)


@pytest.fixture(scope="module")
def index(tiny_run, small_corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    assert main(["embed", str(tiny_run), "synthetic", "--data-dir", str(small_corpus), "--out", str(out)]) == 0
    opened = laennec.EmbeddingIndex.open(out, tiny_run)
    return opened.join(laennec.load_corpus("synthetic", small_corpus, protocol="none"))


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_every_point_its_sound_and_no_address(index, tmp_path):
    found = write_map(index, tmp_path / "map.html", seed=1)
    page = (tmp_path / "map.html").read_text()
    data = data_of(page)
    assert len(data["x"]) == len(data["y"]) == len(index) and not re.search(r"https?://", page)
    assert all(sound.startswith("data:audio/mpeg;base64,") for sound in data["sound"])
    assert data["columns"]["label"].count("wheeze") == (index.rows["label"] == "wheeze").sum()
    assert set(data["columns"]) == {"label", "patient", "device", "place"}
    assert set(data["probabilities"]) == {"crackle", "wheeze"} and verdict(found).split(":")[0] in page
    again = tmp_path / "again.html"
    write_map(index, again, seed=1)
    assert again.read_text() == page


def test_probabilities_are_those_of_the_model(index, tiny_run):
    predictor = laennec.Predictor(*laennec.load_model(tiny_run))
    row = index.rows.iloc[0]
    annotation = row["recording"].replace(".wav", ".txt")
    wanted = predictor(row["recording"], annotation).probabilities
    np.testing.assert_allclose(index.probabilities()[: len(wanted)], wanted, atol=1e-5)


def test_sounds_beyond_the_limit_are_places_in_their_recordings(index, tmp_path):
    write_map(index, tmp_path / "map.html", points=20, sound_mb=0.05)
    page = (tmp_path / "map.html").read_text()
    sounds = data_of(page)["sound"]
    inside = [sound for sound in sounds if sound.startswith("data:")]
    assert 0 < sum(map(len, inside)) <= 50_000 and len(inside) < len(sounds) <= 20
    path, _, times = next(sound for sound in sounds if not sound.startswith("data:")).partition("#t=")
    assert (tmp_path / path).resolve().is_file() and len(times.split(",")) == 2


def test_names_of_other_people_cannot_run_in_the_page(index, tmp_path):
    evil = "</script><script>alert(1)</script>"
    index.rows["device"] = index.rows["device"].where(index.rows.index != 0, evil)
    write_map(index, tmp_path / "map.html", sound_mb=0)
    page = (tmp_path / "map.html").read_text()
    assert evil not in page and evil in data_of(page)["columns"]["device"]


def test_the_command_prints_the_probes(index, tiny_run, tmp_path, capsys):
    out, clip = str(tmp_path / "map.html"), str(index.rows["recording"][0])
    for hop, code in (("3", 2), ("0.5", 0)):
        folder = str(tmp_path / hop)
        assert main(["embed", str(tiny_run), clip, "--window-s", "3", "--hop-s", hop, "--out", folder]) == 0
        assert main(["map", folder, "--model", str(tiny_run), "--out", out]) == code
    said = capsys.readouterr()
    assert main(["map", folder, "--model", str(tiny_run), "--out", clip]) == 2
    assert f"{clip}: is there already" in capsys.readouterr().err and Path(clip).read_bytes()[:4] == b"RIFF"
    assert "needs 10 spans" in said.err and "not measured" in said.out and f"map: {out}" in said.out
    with pytest.raises(InputError, match="10 points or more"):
        write_map(index, tmp_path / "map.html", points=3)
