"""The search is exact, filtered by what is known, and refuses what another model made."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.runs import one_line

import laennec
from laennec.audio.cycles import cut
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.explore.index import _metadata


@pytest.fixture(scope="module")
def folder(tiny_run, small_corpus, tmp_path_factory):
    """The cycles of the small corpus, embedded."""
    out = tmp_path_factory.mktemp("index")
    assert main(["embed", str(tiny_run), "synthetic", "--data-dir", str(small_corpus), "--out", str(out)]) == 0
    return out


@pytest.fixture
def index(folder, tiny_run, small_corpus):
    opened = laennec.EmbeddingIndex.open(folder, tiny_run)
    return opened.join(laennec.load_corpus("synthetic", small_corpus, protocol="none"))


def test_the_most_similar_spans_are_those_of_a_plain_loop(index):
    row = index.rows.iloc[5]
    found = index.search(row["recording"], top=7, span=(row["start_s"], row["end_s"]))
    vector = index.embeddings[5]
    cosine = [float(v @ vector / np.linalg.norm(v) / np.linalg.norm(vector)) for v in index.embeddings]
    assert found.index[0] == 5 and found["similarity"].iloc[0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found["similarity"], sorted(cosine, reverse=True)[:7], atol=1e-5)


def test_a_waveform_finds_what_its_recording_finds(index):
    row = index.rows.iloc[3]
    recording = read_recording(row["recording"])
    sound = cut(recording.waveform, recording.sampling_rate, row["start_s"], row["end_s"])
    found = index.search(sound, top=1, sampling_rate=recording.sampling_rate)
    assert found.index[0] == 3 and found["similarity"].iloc[0] > 0.999


def test_filters_keep_what_they_name(index):
    query, span = index.rows["recording"][0], (index.rows["start_s"][0], index.rows["end_s"][0])
    patients = sorted(set(index.rows["patient_id"]))[:2]
    found = index.search(query, 100, span=span, patient=patients, label="normal")
    wanted = index.rows[index.rows["patient_id"].isin(patients) & (index.rows["label"] == "normal")]
    assert sorted(found.index) == sorted(wanted.index) and len(found)
    others = index.search(query, 100, span=span, other_patients=True)
    assert len(others) and index.rows["patient_id"][0] not in set(others["patient_id"])
    device = index.rows["device"][0]
    assert set(index.search(query, 100, span=span, device=device)["device"]) == {device}


def test_labels_join_by_name(index, small_corpus):
    corpus = laennec.load_corpus("synthetic", small_corpus, protocol="none")["all"]
    names = corpus.features["label"].names
    known = {row["cycle_id"]: names[row["label"]] for row in corpus}
    assert index.rows["label"].tolist() == [known[cycle] for cycle in index.rows["cycle_id"]]


def test_a_row_with_several_own_labels_has_each_of_them(tiny_run, small_corpus, tmp_path):
    sound = next(small_corpus.rglob("*.wav"))
    shutil.copy(sound, tmp_path)
    stem = sound.stem
    (tmp_path / "c.csv").write_text(
        f"recording,start_s,end_s,label\n{stem},0,1,stridor\n{stem},0,1,rhonchi\n{stem},1,2,stridor\n{stem},2,3,normal\n"
    )
    corpus = laennec.load_corpus("folder", tmp_path, protocol="none")["all"]
    assert _metadata(corpus)["label"].tolist() == ["rhonchi + stridor", "stridor", "normal"]


def test_windows_get_patient_device_and_label_by_their_recording(tiny_run, small_corpus, tmp_path):
    assert main(["embed", str(tiny_run), str(small_corpus), "--window-s", "2", "--out", str(tmp_path)]) == 0
    index = laennec.EmbeddingIndex.open(tmp_path, tiny_run)
    assert index.rows["patient_id"].isna().all()
    with pytest.raises(InputError, match="the patient of the query is unknown; name the corpus"):
        index.search(index.rows["recording"][0], span=(0.0, 1.0), other_patients=True)
    index.join(laennec.load_corpus("synthetic", small_corpus, protocol="none"))
    assert index.rows[["patient_id", "device", "chest_location"]].notna().all(axis=None)
    for _, row in index.rows.iterrows():
        cycles = laennec.read_annotation(Path(row["recording"]).with_suffix(".txt"))
        overlaps = [min(c.end_s, row["end_s"]) - max(c.start_s, row["start_s"]) for c in cycles]
        halves = [min(c.end_s - c.start_s, row["end_s"] - row["start_s"]) / 2 for c in cycles]
        count = [c for c, overlap, half in zip(cycles, overlaps, halves, strict=True) if overlap >= half - 1e-6]
        flags = (max((c.crackle for c in count), default=None), max((c.wheeze for c in count), default=None))
        wanted = {(0, 0): "normal", (1, 0): "crackle", (0, 1): "wheeze", (1, 1): "both"}.get(flags)
        assert row["label"] == wanted
    assert {"normal", "crackle", "wheeze"} <= set(index.rows["label"])
    first = index.rows.iloc[0]
    found = index.search(first["recording"], 100, span=(0.0, 2.0), label="wheeze", device=first["device"])
    assert set(found["label"]) == {"wheeze"} and set(found["device"]) == {first["device"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"patient": "nobody"}, "patient 'nobody': no span has it"),
        ({"label": "wheez"}, "did you mean wheeze?"),
        ({"colour": "red"}, "it can be patient, device, location, label"),
        ({"top": 0}, "top 0"),
        ({"span": (2.0, 1.0)}, "correct the span"),
        ({"span": (0.0, 1e3)}, "is not within its"),
    ],
)
def test_a_search_that_cannot_be_says_why(index, given, said):
    with pytest.raises(InputError, match=None) as error:
        index.search(index.rows["recording"][0], **({"span": (0.0, 1.0)} | given))
    assert said in str(error.value)


def test_an_index_without_its_corpus_says_what_a_filter_needs(folder, tiny_run):
    index = laennec.EmbeddingIndex.open(folder, tiny_run)
    with pytest.raises(InputError, match="--corpus"):
        index.search(index.rows["recording"][0], span=(0.0, 1.0), device="Meditron")
    with pytest.raises(InputError, match="no recording of the index"):
        index.search(np.zeros(8000) + 0.1, sampling_rate=4000, other_patients=True)


def test_the_command_prints_a_table_and_writes_it(folder, tiny_run, index, tmp_path, capsys):
    query, out = index.rows["recording"][0], tmp_path / "found.csv"
    command = ["search", str(folder), query, "--model", str(tiny_run), "--span", "0", "1", "--top", "3"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    table = pd.read_csv(out)
    assert len(printed) == 5 and len(table) == 3 and table["similarity"].is_monotonic_decreasing
    assert table["recording"].iloc[0] in set(index.rows["recording"])
    out.write_text("corrected")
    assert main([*command, "--out", str(out)]) == 2
    one_line(capsys, f"{out}: is there already", "--overwrite")
    assert out.read_text() == "corrected"
    assert main([*command, "--out", str(out), "--overwrite"]) == 0 and len(pd.read_csv(out)) == 3


def test_bad_input_is_one_line(folder, tiny_run, index, tmp_path, capsys):
    clip = index.rows["recording"][0]
    assert main(["search", str(folder), clip]) == 2
    one_line(capsys, "made by another model", "--model")
    assert main(["search", str(tmp_path / "nowhere"), clip]) == 2
    one_line(capsys, "no such file", "laennec embed")
    (tmp_path / "laennec.embeddings.parquet").write_bytes(b"PAR1 nothing")
    assert main(["search", str(tmp_path), clip]) == 2
    one_line(capsys, "no table of embeddings")
    shutil.copy(folder / "laennec.embeddings.parquet", tmp_path / "cut.parquet")
    content = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    assert main(["search", str(tmp_path / "cut.parquet"), clip]) == 2
    one_line(capsys, "damaged")
    assert main(["search", str(folder), clip, "--model", str(tiny_run)]) == 2
    one_line(capsys, "--span START END")
    assert main(["search", str(folder), clip, "--model", str(tiny_run), "--data-dir", "x"]) == 2
    one_line(capsys, "name it too")
