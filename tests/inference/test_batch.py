"""Recordings are predicted as the model predicts them by hand; what cannot be predicted is listed."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from batches import by_hand

from laennec.audio.cycles import read_annotation, sliding_windows
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference import outputs as timelines
from laennec.inference.batch.recordings import find_recordings


@pytest.fixture
def recordings(small_corpus):
    return sorted(small_corpus.glob("*.wav"))[:3]


OURS = {"laennec.parameters.yaml", "laennec.journal.jsonl", ".laennec.tables.json"}


def predict(model, *inputs, out, **flags):
    arguments = ["predict", str(model), *map(str, inputs), "--out", str(out)]
    for name, value in flags.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return main(arguments)


def timeline(out, name):
    return json.loads((out / f"{name}.laennec.json").read_text())


def calibrated(source, path, spans, base=None, kind="events"):
    """Probabilities of the labels for spans, and the model's configuration."""
    rows, config = by_hand(source, path, spans, base)
    divisors, offsets = (np.array([*config.per_label(n, kind).values()]) for n in ("temperatures", "intercepts"))
    logits = [(start, end, output.logits[0].double().numpy()) for start, end, output in rows]
    return [(start, end, 1 / (1 + np.exp(-(z / divisors + offsets)))) for start, end, z in logits], config


@pytest.fixture(scope="module")
def models(tiny_run, frozen_run, released, tmp_path_factory):
    """The same two runs in every form, with the base a form needs."""
    folder = tmp_path_factory.mktemp("forms")
    assert main(["export", str(frozen_run), "--format", "full", "--out", str(folder / "full")]) == 0
    name = ["--base-name", "someone/mn04"]
    assert main(["export", str(frozen_run), "--format", "head", "--out", str(folder / "head"), *name]) == 0
    return {
        "run": (tiny_run, None),
        "frozen run": (frozen_run, None),
        "full export": (folder / "full", None),
        "head export": (folder / "head", str(released)),
    }


@pytest.mark.parametrize("form", ["run", "head export"])
def test_windows_are_predicted_as_by_the_model_alone(models, form, recordings, tmp_path):
    source, base = models[form]
    flags = {"base": base} if base else {}
    path = recordings[0]
    assert predict(source, path, out=tmp_path, window_s=2, hop_s=1, **flags) == 0
    wanted, config = calibrated(source, path, lambda d: sliding_windows(d, 2, 1), base, "windows")
    thresholds = config.operating_points["windows"]["thresholds"]
    got = timeline(tmp_path, path.stem)
    assert len(got["timeline"]) == len(wanted) and got["labels"] == config.label_names
    for row, (start, end, probabilities) in zip(got["timeline"], wanted, strict=True):
        assert (row["start_s"], row["end_s"]) == (round(start, 3), round(end, 3))
        for name, p in zip(config.label_names, probabilities, strict=True):
            assert row[f"{name}_probability"] == pytest.approx(p, abs=2e-6)
            if abs(p - thresholds[name]) > 1e-5:
                assert row[name] == int(p > thresholds[name])
    # the last window reaches the end
    assert got["timeline"][-1]["end_s"] == got["duration_s"]


def test_every_form_of_a_run_gives_the_same_files(models, recordings, tmp_path):
    for form in ("frozen run", "full export", "head export"):
        source, base = models[form]
        assert predict(source, *recordings[:2], out=tmp_path / form, **({"base": base} if base else {})) == 0
    files = sorted(p.name for p in (tmp_path / "frozen run").glob("[!.]*"))
    assert len(files) == 6
    stated = {}
    for form in ("frozen run", "full export", "head export"):
        for name in files:
            if name != "laennec.parameters.yaml":  # it names the folder the model came from
                assert (tmp_path / form / name).read_bytes() == (tmp_path / "frozen run" / name).read_bytes()
        fingerprint = timeline(tmp_path / form, recordings[0].stem)["model"]["fingerprint"]
        stated[form] = yaml.safe_load((tmp_path / form / "laennec.parameters.yaml").read_text())
        assert stated[form]["model"].pop("source") == str(models[form][0])
    assert stated["full export"] == stated["frozen run"] == stated["head export"]
    assert stated["frozen run"]["model"]["decision"]["rule"] == "youden"
    assert stated["frozen run"]["model"]["fingerprint"] == fingerprint


def test_json_and_csv_hold_the_same_and_either_can_be_had_alone(tiny_run, recordings, tmp_path):
    assert predict(tiny_run, *recordings, out=tmp_path / "both") == 0
    with (tmp_path / "both" / "laennec.predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [
        {"recording": str(p), **{k: str(v) for k, v in row.items()}}
        for p in recordings
        for row in timeline(tmp_path / "both", p.stem)["timeline"]
    ]
    assert rows == wanted
    for format, names in (
        ("csv", {"laennec.predictions.csv", "laennec.recordings.csv"}),
        ("json", {f"{p.stem}.laennec.json" for p in recordings}),
    ):
        assert predict(tiny_run, *recordings, out=tmp_path / format, format=format) == 0
        assert {p.name for p in (tmp_path / format).iterdir()} == names | OURS


@pytest.mark.parametrize("kind", ["file", "folder", "audacity"])
def test_annotated_cycles_are_predicted_instead_of_windows(tiny_run, recordings, tmp_path, kind):
    path = recordings[0]
    annotation = path.with_suffix(".txt")
    cycles = read_annotation(annotation)
    if kind == "audacity":
        annotation = tmp_path / "labels.txt"
        lines = [f"{c.start_s:.6f}\t{c.end_s:.6f}\t{c.label}\n\\\t0.000000\t2000.000000\n" for c in cycles]
        annotation.write_text("".join(lines))
    place = annotation.parent if kind == "folder" else annotation
    assert predict(tiny_run, path, out=tmp_path / "out", annotation=place) == 0
    got = timeline(tmp_path / "out", path.stem)["timeline"]
    wanted, config = calibrated(tiny_run, path, lambda _: [(c.start_s, c.end_s) for c in cycles])
    assert [(r["start_s"], r["end_s"]) for r in got] == [(c.start_s, c.end_s) for c in cycles]
    for row, (_, _, probabilities) in zip(got, wanted, strict=True):
        for name, p in zip(config.label_names, probabilities, strict=True):
            assert row[f"{name}_probability"] == pytest.approx(p, abs=2e-6)


def test_one_annotation_file_is_for_one_recording(tiny_run, recordings, tmp_path, capsys):
    annotation = recordings[0].with_suffix(".txt")
    assert predict(tiny_run, *recordings, out=tmp_path / "out", annotation=annotation) == 2
    err = capsys.readouterr().err
    assert "one annotation for 3 recordings" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert predict(tiny_run, *recordings, out=tmp_path / "out", annotation=tmp_path / "absent") == 2
    assert "absent: no such file or folder" in capsys.readouterr().err
    for ward in ("a", "b"):
        (tmp_path / ward).mkdir()
        shutil.copy(recordings[0], tmp_path / ward / "x.wav")
    shutil.copy(annotation, tmp_path / "x.txt")
    assert predict(tiny_run, tmp_path / "a", tmp_path / "b", out=tmp_path / "out", annotation=tmp_path) == 2
    assert f"x.txt: is for {tmp_path / 'a' / 'x.wav'} and {tmp_path / 'b' / 'x.wav'}" in capsys.readouterr().err


def test_predictions_agree_with_the_evaluation_of_the_same_cycles(tiny_run, small_corpus, tmp_path):
    """Serving and scoring are one front end: the validation logits of the run, temperature and sigmoid."""
    import pandas as pd

    table = pd.read_parquet(tiny_run / "predictions-validation.parquet")
    config = load_model(tiny_run)[0].config
    names = sorted(set(table["recording_id"]))
    inputs = [small_corpus / f"{name}.wav" for name in names]
    assert predict(tiny_run, *inputs, out=tmp_path, annotation=small_corpus) == 0
    for name in names:
        rows = timeline(tmp_path, name)["timeline"]
        scored = table[table["recording_id"] == name].sort_values("start_s")
        assert len(rows) == len(scored)
        for label in ("crackle", "wheeze"):
            logits = scored[f"logit_{label}"].astype(float) / config.temperatures[label]
            got = [row[f"{label}_probability"] for row in rows]
            np.testing.assert_allclose(got, 1 / (1 + np.exp(-logits)), atol=2e-6)


def test_the_same_stem_in_different_folders_does_not_collide(tiny_run, recordings, tmp_path):
    sound = recordings[0]
    places = ["a/b/rec.wav", "a_b/rec.wav", "a/b/rec.flac", "a/other.wav", "a_b_rec.wav.wav"]
    for place in places:
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".flac"):
            soundfile.write(tmp_path / "in" / place, *soundfile.read(sound))
        else:
            shutil.copy(sound, tmp_path / "in" / place)
    assert predict(tiny_run, tmp_path / "in", tmp_path / "in" / "a", out=tmp_path / "out") == 0
    found = [json.loads(p.read_text())["recording"] for p in (tmp_path / "out").glob("*.laennec.json")]
    assert sorted(found) == sorted(str(tmp_path / "in" / place) for place in places)
    assert (tmp_path / "out" / "other.laennec.json").exists()


def test_a_recording_shorter_than_a_window_is_one_window(tiny_run, tmp_path):
    tone = (0.1 * np.sin(np.arange(8000) / 5)).astype(np.float32)
    soundfile.write(tmp_path / "short.wav", tone, 16000)
    assert predict(tiny_run, tmp_path / "short.wav", out=tmp_path / "out") == 0
    rows = timeline(tmp_path / "out", "short")["timeline"]
    assert [(r["start_s"], r["end_s"]) for r in rows] == [(0.0, 0.5)]


def test_failed_recordings_are_listed_and_the_others_are_predicted(tiny_run, recordings, tmp_path, capsys):
    tone = (0.1 * np.sin(np.arange(16000) / 5)).astype(np.float32)
    soundfile.write(tmp_path / "blink.wav", tone[:100], 16000)
    (tmp_path / "words.wav").write_text("no sound")
    broken = [tmp_path / "blink.wav", tmp_path / "words.wav", tmp_path / "absent.wav"]
    assert predict(tiny_run, broken[0], recordings[0], *broken[1:], recordings[1], out=tmp_path / "out") == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("laennec: ") for line in lines)
    for path, line, said in zip(broken, lines, ("one frame (64 ms)", "not audio", "no such file"), strict=True):
        assert str(path) in line and said in line
    assert captured.out.startswith(
        f"predictions: {tmp_path / 'out'} (5 recordings, 3 failed; see laennec.failed.csv)\n"
    )
    names = {f"{p.stem}.laennec.json" for p in recordings[:2]}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {
        "laennec.predictions.csv",
        "laennec.recordings.csv",
        "laennec.failed.csv",
    } | OURS
    with (tmp_path / "out" / "laennec.failed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["recording"] for row in rows] == [str(path) for path in broken]
    assert [f"laennec: {row['reason']}" for row in rows] == lines


def test_a_cycle_shorter_than_a_frame_fails_its_recording_by_name(tiny_run, recordings, tmp_path, capsys):
    annotation = tmp_path / "a.txt"
    annotation.write_text("0.5\t2.0\t0\t0\n2.0\t2.01\t1\t0\n")
    assert predict(tiny_run, recordings[0], out=tmp_path / "out", annotation=annotation) == 2
    err = capsys.readouterr().err
    assert str(recordings[0]) in err and "2 to 2.01 s is 159 samples, shorter than one frame" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == OURS | {"laennec.failed.csv"}


def test_a_folder_without_recordings_is_one_line(tiny_run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "._x.wav").write_text("leftover of another system")
    assert predict(tiny_run, tmp_path / "in", out=tmp_path / "out") == 2
    assert "no recordings in" in capsys.readouterr().err


def test_recordings_of_folders_and_links_are_found_once(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for place in ("in/a.wav", "in/below/b.wav", "other/c.wav"):
        shutil.copy(recordings[0], place)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "below" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "also").symlink_to(tmp_path / "in" / "below")  # the files keep their own paths
    expected = [Path("in/a.wav"), Path("in/below/b.wav"), Path("in/linked/c.wav")]
    assert find_recordings("in") == find_recordings(["in", tmp_path / "in", "./in/a.wav"]) == expected
    assert find_recordings("in/a.wav") == [Path("in/a.wav")]


def test_a_folder_that_cannot_be_read_is_an_error(recordings, tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/closed"))

    monkeypatch.setattr("os.walk", walk)  # tests may run as a user who may read everything
    with pytest.raises(InputError, match="in/closed: this folder cannot be read"):
        find_recordings(shutil.copytree(recordings[0].parent, tmp_path / "in"))


@pytest.mark.parametrize(("rank", "size"), [("1", "1"), ("2", "2"), ("x", "2"), ("0", "0"), ("-1", "2")])
def test_processes_that_are_not_numbered_from_0_are_refused(
    tiny_run, recordings, tmp_path, monkeypatch, capsys, rank, size
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert predict(tiny_run, recordings[0], out=tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert f"RANK is {rank} and WORLD_SIZE {size}" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_what_reads_back_differently_does_not_count_as_written(tiny_run, recordings, tmp_path, capsys, monkeypatch):
    honest = timelines.atomic_write

    @contextlib.contextmanager
    def torn(path, *mode):
        with honest(path, *mode) as file:
            yield file
        path.write_bytes(path.read_bytes()[:-9])

    monkeypatch.setattr(timelines, "atomic_write", torn)
    assert predict(tiny_run, recordings[0], out=tmp_path) == 2
    assert "reads back differently" in capsys.readouterr().err
