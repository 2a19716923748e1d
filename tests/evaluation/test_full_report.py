"""The report of a finished run: map, sounds, and the messages where they are missing."""

import base64
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from laennec.cli.main import main
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.errors import InputError
from laennec.evaluation.comparison.evaluations import evaluation_folder, read_evaluation
from laennec.evaluation.evaluate import score
from laennec.evaluation.report.details import RATE_HZ, cycle_sounds, frequency_ticks, playing_gain_db, spectrogram_uri
from laennec.evaluation.report.failures import worst_errors
from laennec.evaluation.report.write import report
from pages import Page, check_page
from runs import one_line


@pytest.fixture(scope="module")
def scored(tiny_run, tmp_path_factory):
    """A copy of the tiny run, scored on its test split."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "run",
                          ignore=shutil.ignore_patterns("evaluation-*", "export-*"))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        patch.setattr(
            "laennec.evaluation.evaluate.write_report", lambda folder, *_: (folder / "report.html").write_text("")
        )
        score(run, split="test")
    return run


@pytest.fixture(scope="module")
def full(scored, tmp_path_factory):
    """Its report with everything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        patch.setattr("laennec.evaluation.report.write.evaluation_plots", lambda *_, **__: {})
        return report(scored, out=tmp_path_factory.mktemp("page"))


@pytest.fixture
def copy(scored, tmp_path):
    return shutil.copytree(scored, tmp_path / "run")


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures, which take most of the time and are looked at elsewhere."""
    monkeypatch.setattr("laennec.evaluation.report.write.evaluation_plots", lambda *_, **__: {})


def heard(uri):
    return soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])), dtype="float32")


def test_the_page_holds_the_scores_of_the_evaluation_its_map_and_its_sounds(scored, full):
    assert full.path.name == "report.html" and full.missing == ()
    page = check_page(full.path.read_text())
    metrics = json.loads((scored / "evaluation-test" / "metrics.json").read_text())
    assert f"{metrics['values']['icbhi.Score']:.1f}" in page.text and "Split test" in page.text
    assert f"t-SNE of all {metrics['counts']['cycles']} cycles" in page.text
    assert len([a for a in page.all("use") if "x" in a]) == metrics["counts"]["cycles"]
    evaluation = read_evaluation(scored / "evaluation-test")
    rows = [row["row"] for group in worst_errors(evaluation.predictions) for row in group["rows"]]
    assert len(page.all("audio")) == len(rows) and full.sounds == len(set(rows)) > 0
    assert f"This page contains {len(set(rows))} excerpts" in page.text and "of synthetic, test split" in page.text
    for name in ("Intra-class clustering", "Cycle length", "net benefit"):
        assert name in page.text, name


def test_the_sounds_are_those_of_the_cycles(scored, full, small_corpus):
    page = Page(full.path.read_text())
    evaluation = read_evaluation(scored / "evaluation-test")
    table = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["test"]
    ids = list(table["cycle_id"])
    rows = [row for group in worst_errors(evaluation.predictions) for row in group["rows"]]
    for row, player in zip(rows, page.all("audio"), strict=True):
        expected = CycleWaveforms(table.select([ids.index(row["cycle_id"])]), RATE_HZ)[0]
        sound, rate = heard(player["src"])
        assert rate == RATE_HZ and len(sound) == min(len(expected), 12 * RATE_HZ)
        assert np.abs(sound).max() == pytest.approx(10 ** (-3 / 20), abs=1e-3)
        correlation = np.corrcoef(sound, expected[: len(sound)])[0, 1]
        assert correlation > 0.999, row["cycle_id"]


def test_no_audio_leaves_every_sound_out(scored, tmp_path, capsys, no_pictures):
    assert main(["report", str(scored), "--no-audio", "--out", str(tmp_path / "quiet.html")]) == 0
    text = (tmp_path / "quiet.html").read_text()
    page = check_page(text)
    assert "data:audio" not in text and not page.all("audio")
    assert "contains no recording" in page.text and "excerpts" not in capsys.readouterr().out
    assert sum("Spectrogram" in a["alt"] for a in page.all("img")) > 0


def test_without_corpus_or_model_there_is_a_page_that_says_so(copy, tmp_path, capsys, no_pictures):
    gone, other = str(tmp_path / "gone" / "away"), str(tmp_path / "other")
    run_path = copy / "evaluation-test" / "run.json"
    record = json.loads(run_path.read_text())
    record["config"]["corpus"]["data_dir"] = record["corpus"]["data_dir"] = gone
    run_path.write_text(json.dumps(record))
    before = json.loads((copy / "evaluation-test" / "metrics.json").read_text())
    assert main(["report", str(copy)]) == 0
    out = capsys.readouterr().out
    assert f"note: no map of the embedding and no sounds: {gone}: " in out and "(--data-dir, or data_dir)" in out
    page = check_page((copy / "evaluation-test" / "report.html").read_text())
    assert gone in page.text and not page.all("audio") and "missed" in page.text
    assert json.loads((copy / "evaluation-test" / "metrics.json").read_text()) == before
    assert main(["report", str(copy), "--data-dir", other]) == 2
    one_line(capsys, other)
    assert not (tmp_path / "gone").exists() and not (tmp_path / "other").exists()  # a report writes no corpus


def test_without_a_model_there_are_sounds_and_no_map(copy, tmp_path, capsys, no_pictures):
    (copy / "model").rename(tmp_path / "elsewhere")
    assert main(["report", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "--model" in out and "excerpts" in out
    page = Page((copy / "evaluation-test" / "report.html").read_text())
    assert page.all("audio") and not [a for a in page.all("use") if "x" in a] and "--model" in page.text
    assert main(["report", str(copy), "--model", str(tmp_path / "elsewhere")]) == 0
    assert [a for a in Page((copy / "evaluation-test" / "report.html").read_text()).all("use") if "x" in a]
    assert main(["report", str(copy), "--model", str(tmp_path)]) == 2
    one_line(capsys, tmp_path, "no model")


def test_another_model_or_another_corpus_is_refused(copy, tmp_path, capsys, no_pictures):
    from safetensors.torch import load_file, save_file

    weights = copy / "model" / "model.safetensors"
    changed = {name: value * 1.5 if value.is_floating_point() else value for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert main(["report", str(copy)]) == 0
    assert "predictions differ" in capsys.readouterr().out
    assert main(["report", str(copy), "--model", str(copy)]) == 2
    one_line(capsys, "predictions differ", "evaluate again")
    from laennec.corpora.synthetic import write_corpus

    other = write_corpus(tmp_path / "other", patients=16, recordings_per_patient=1, cycles_per_recording=3, seed=5,
                         max_rate_hz=4000)  # fmt: skip
    assert main(["report", str(copy), "--data-dir", str(other)]) == 2
    one_line(capsys, other, "not the corpus and split that was scored")


def test_bad_folders_and_files_are_one_line(copy, tmp_path, capsys):
    cases = [
        ([str(tmp_path / "absent")], "no such folder"),
        ([str(tmp_path)], "no evaluation there"),
        ([str(copy), "--split", "nowhere"], "no evaluation of nowhere (scored splits: test)"),
        ([str(copy), "--points", "3"], "--points 3"),
        ([str(copy / "evaluation-test"), "--split", "validation"], "an evaluation of test"),
    ]
    for arguments, said in cases:
        assert main(["report", *arguments]) == 2
        one_line(capsys, said)
    shutil.copytree(copy / "evaluation-test", copy / "evaluation-validation")
    assert main(["report", str(copy)]) == 2
    one_line(capsys, "several splits were scored (test, validation)")
    shutil.rmtree(copy / "evaluation-validation")
    folder = copy / "evaluation-test"
    metrics = json.loads((folder / "metrics.json").read_text())
    page = (folder / "report.html").read_bytes()

    def broken(name, content, *said):
        kept = (folder / name).read_bytes()
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        assert main(["report", str(copy)]) == 2
        one_line(capsys, *said)
        (folder / name).write_bytes(kept)

    broken("predictions.parquet", b"PAR1 nothing", "no readable predictions table")
    broken("predictions.parquet", None, "predictions.parquet: missing")
    broken("metrics.json", b"{}", "metrics.json lacks problem_type")
    broken("metrics.json", b"{", "not valid JSON")
    broken("run.json", b"{}", "run.json does not say what was scored")
    other = metrics | {"values": metrics["values"] | {"icbhi.Score": 99.0}}
    broken("metrics.json", json.dumps(other).encode(), "do not belong together", "'icbhi.Score' is 99.0")
    broken("metrics.json", json.dumps(metrics | {"intervals": None}).encode(), "not of the form that laennec writes")
    table = pd.read_parquet(folder / "predictions.parquet")
    buffer = io.BytesIO()
    table.drop(columns="logit_crackle").to_parquet(buffer)
    broken("predictions.parquet", buffer.getvalue(), "logit_crackle")
    assert (folder / "report.html").read_bytes() == page


def test_an_evaluation_outside_its_run_is_found_too(scored, tmp_path, no_pictures):
    folder = shutil.copytree(scored / "evaluation-test", tmp_path / "moved")
    assert evaluation_folder(folder) == folder and read_evaluation(folder).split == "test"
    made = report(folder, out=tmp_path / "page.html")
    assert made.sounds and "no model beside the evaluation" in made.missing[0]
    with pytest.raises(InputError, match="cannot write"):
        (tmp_path / "file").write_text("")
        report(folder, out=tmp_path / "file" / "page.html")


def test_a_spectrogram_shows_a_tone_where_its_tick_is(small_corpus):
    from matplotlib.image import imread

    t = np.arange(RATE_HZ) / RATE_HZ
    for hz, text in ((500, "500 Hz"), (1000, "1 kHz"), (1500, "1.5 kHz")):
        uri = spectrogram_uri(np.sin(2 * np.pi * hz * t).astype(np.float32))
        picture = imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        bright = picture[..., :3].sum(2).mean(1)[::-1].argmax()  # from below
        place = dict(frequency_ticks())[text]
        assert abs(100 * (bright + 0.5) / len(picture) - place) < 2.5, text
    assert spectrogram_uri(np.zeros(40, np.float32)).startswith("data:image/png")  # short and silent


def test_loudness_is_raised_and_said_and_silence_left_alone():
    quiet = np.full(100, 0.01, np.float32)
    assert playing_gain_db(quiet) == pytest.approx(37.0)
    assert playing_gain_db(np.full(100, 1e-6, np.float32)) == 60.0
    assert playing_gain_db(np.zeros(100, np.float32)) == 0.0 == playing_gain_db(np.zeros(0, np.float32))


def test_long_sounds_are_cut_and_too_many_have_pictures_only(small_corpus, monkeypatch):
    table = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["test"]
    monkeypatch.setattr("laennec.evaluation.report.details.MOST_SECONDS", 0.5)
    monkeypatch.setattr("laennec.evaluation.report.details.MOST_BYTES", 25_000)
    sounds = cycle_sounds(table, {k: k for k in range(4)})
    assert [sound.audio is not None for sound in sounds.values()] == [True, True, False, False]
    assert all(sound.seconds == 0.5 and not sound.whole and sound.picture for sound in sounds.values())
