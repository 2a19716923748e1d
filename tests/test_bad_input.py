"""Mistakes of users on the command line: one line with file, reason and remedy, exit code 2, no unfinished files."""

import shutil

import numpy as np
import pytest
import soundfile
import yaml

from laennec.cli.main import main
from laennec.corpora import load_corpus
from runs import half_made, one_line

RATE = 4000
TONE = (0.3 * np.sin(np.arange(30 * RATE) / 7)).astype(np.float32)


def truncated(path):
    soundfile.write(path, TONE, RATE)
    path.write_bytes(path.read_bytes()[:5000])


def no_samples(path):
    soundfile.write(path, TONE[:0], RATE)


def not_a_number(path):
    soundfile.write(path, np.where(np.arange(len(TONE)) == 77, np.nan, TONE), RATE, subtype="FLOAT")


BAD = {
    "truncated": (truncated, "cut short"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "zero length": (no_samples, "it has no samples"),
    "no audio": (lambda path: path.write_text("Dear diary,\n" * 50), "not audio that can be decoded"),
    "NaN": (not_a_number, "sample 77 is NaN or infinite"),
    "silent": (lambda path: soundfile.write(path, TONE * 0, RATE), "silent: every sample is 0"),
    "opposite channels": (
        lambda path: soundfile.write(path, np.column_stack([TONE, -TONE]), RATE, subtype="FLOAT"),
        "silent: the mean of its channels is 0",
    ),
}


@pytest.fixture
def corpus(small_corpus, tmp_path, monkeypatch):
    """A copy of the small corpus that a test may damage, with its own cache."""
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(small_corpus, tmp_path / "corpus")


@pytest.fixture
def recipe(tiny_recipe, corpus, tmp_path):
    """A recipe file for the copied corpus."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"corpus": tiny_recipe["corpus"] | {"data_dir": str(corpus)}}))
    return path


def train(recipe, out, *arguments):
    return main(["train", str(recipe), "--output_dir", str(out), "--train.epochs", "1", *arguments])


# ---------------------------------------------------------------- recordings


def test_predict_of_nothing_but_a_bad_recording_leaves_earlier_results(tiny_run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "laennec.predictions.csv").write_text("earlier")
    truncated(tmp_path / "x.wav")
    command = ["predict", str(tiny_run), str(tmp_path / "x.wav"), "--out", str(tmp_path / "out"), "--overwrite"]
    assert main(command) == 2
    one_line(capsys, tmp_path / "x.wav", "cut short")
    assert (tmp_path / "out" / "laennec.predictions.csv").read_text() == "earlier"


def test_training_lists_every_bad_recording_in_one_go_and_keeps_the_good_ones(
    small_corpus, corpus, recipe, tmp_path, capsys
):
    parts = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")
    used = [
        corpus / f"{name}.wav" for part in ("train", "validation") for name in sorted(set(parts[part]["recording_id"]))
    ]
    # the first and the last are in different splits
    spoilt = dict(zip([used[-1], *used], BAD, strict=False))
    whole = {sound: sound.read_bytes() for sound in spoilt}
    for sound, kind in spoilt.items():
        BAD[kind][0](sound)
    assert train(recipe, tmp_path / "run") == 2
    err = one_line(capsys)
    for sound, kind in spoilt.items():
        assert f"{sound}: {BAD[kind][1]}" in err
    assert half_made(tmp_path) == [] and not (tmp_path / "run").exists()
    cached = set((tmp_path / "cache" / "waveforms").rglob("*.f32"))
    assert len(cached) >= len(used) - len(spoilt)
    times = {p: p.stat().st_mtime_ns for p in cached}
    for sound, content in whole.items():
        sound.write_bytes(content)
    assert train(recipe, tmp_path / "run") == 0
    assert {p: p.stat().st_mtime_ns for p in cached} == times
    capsys.readouterr()


def test_prepare_lists_header_and_sound_problems(corpus, tmp_path, capsys):
    sounds = sorted(corpus.glob("*.wav"))
    truncated(sounds[0])
    not_a_number(sounds[5])
    sounds[9].with_suffix(".txt").write_text("0\t99\t0\t0\n")
    assert main(["prepare", "synthetic", "--data-dir", str(corpus), "--sampling-rate", "4000"]) == 2
    one_line(capsys, "3 of 16 recordings cannot be used", sounds[0], sounds[5], sounds[9].with_suffix(".txt"))
    assert len(list((tmp_path / "cache" / "waveforms").rglob("*.f32"))) == 13


def test_evaluate_names_a_recording_that_went_bad_since_training(tiny_run, corpus, tmp_path, capsys):
    sound = sorted(corpus.glob("*.wav"))[3]
    truncated(sound)
    out = tmp_path / "out"
    assert main(["evaluate", str(tiny_run), "--data-dir", str(corpus), "--out", str(out)]) == 2
    one_line(capsys, sound, "cut short")
    assert not out.exists()


# ---------------------------------------------------------------- annotations and tables


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("0.1\t1.0\t0\t0\n1.0\t99.0\t1\t0\n", "line 2: ends at 99 s but the audio lasts"),
        ("0.1\t1.0\t0\t2\n", "line 1: flags '0' and '2' must be 0 or 1"),
        ("0.1\t1.0\t0\n", "line 1: 3 columns, not 4"),
        ("1.0\t0.1\t0\t0\n", "line 1: "),
        ("", "the annotation is empty"),
        (None, "audio without annotation"),
    ],
    ids=["beyond the end", "wrong flags", "columns", "backwards", "empty", "missing"],
)
def test_an_annotation_that_does_not_match_is_named(corpus, recipe, tiny_run, tmp_path, capsys, content, reason):
    sound = sorted(corpus.glob("*.wav"))[2]
    annotation = sound.with_suffix(".txt")
    annotation.unlink()
    if content is not None:
        annotation.write_text(content)
    run = tmp_path / "run"
    for command in (
        ["prepare", "synthetic", "--data-dir", str(corpus)],
        ["train", str(recipe), "--output_dir", str(run)],
    ):
        assert main(command) == 2
        one_line(capsys, sound if content is None else annotation, reason, ";")
    others = [str(p) for p in sorted(corpus.glob("*.wav"))[1:4]]
    out = tmp_path / "out"
    assert main(["predict", str(tiny_run), *others, "--annotation", str(corpus), "--out", str(out)]) == 2
    one_line(capsys, annotation, reason if content is not None else "cannot be read (No such file")
    assert len(list(out.glob("*.laennec.json"))) == 2


def test_a_missing_split_file_is_named(shared_data, tmp_path, capsys):
    folder = tmp_path / "alone" / "database"
    folder.mkdir(parents=True)
    for path in sorted((shared_data / "icbhi2017_subset").iterdir())[:20]:
        (folder / path.name).symlink_to(path)
    assert main(["prepare", "icbhi2017", "--data-dir", str(folder)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "ICBHI_challenge_train_test.txt" in err[-1] and "--tables-dir" in err[-1]
    assert all(line.startswith("laennec: note: ") for line in err[:-1])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_cycle_shorter_than_one_frame_is_named_before_training(corpus, recipe, tmp_path, capsys, frozen):
    for sound in sorted(corpus.glob("*.wav")):
        with sound.with_suffix(".txt").open("a") as file:
            file.write("0.100\t0.110\t0\t0\n")
    assert train(recipe, tmp_path / "run", "--encoder.trainable", "frozen" if frozen else "full") == 2
    err = one_line(capsys, "cycle at 0.1 to 0.11 s", "shorter than one frame (64 ms)", "correct the annotation")
    assert err.count("cycle at") > 5  # all of them, by file
    repeat = ["--features.length", "repeat", "--features.duration_s", "2"]
    assert train(recipe, tmp_path / "repeat", *repeat) == 0


def test_a_corpus_too_small_to_split_is_one_line(tmp_path, tiny_recipe, capsys):
    options = {"patients": 1, "recordings_per_patient": 1, "max_rate_hz": 4000}
    corpus = {"name": "synthetic", "data_dir": str(tmp_path / "corpus"), "options": options}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe | {"corpus": corpus}))
    assert train(tmp_path / "r.yaml", tmp_path / "run") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("laennec: ")


# ---------------------------------------------------------------- recipes and checkpoints


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_model_of_another_library_is_one_line(shared_root, small_corpus, tmp_path, capsys, command):
    for source in (
        shared_root / "weights" / "whisper_base_encoder",
        shared_root / "weights" / "mn04_as_mAP_432.pt",
        tmp_path / "absent",
        "nobody/absent",
    ):
        arguments = {
            "predict": [str(small_corpus)],
            "evaluate": ["--corpus", "synthetic", "--data-dir", str(small_corpus)],
            "export": [],
        }[command]
        assert main([command, str(source), *arguments, "--out", str(tmp_path / "out")]) == 2
        one_line(capsys, source, ";")
        assert not (tmp_path / "out").exists()


def test_a_run_record_or_front_end_that_is_torn_is_one_line(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "run.json").write_text('{"name": "ti')
    assert main(["evaluate", str(run)]) == 2
    one_line(capsys, run / "run.json", "not valid JSON")
    (run / "model" / "preprocessor_config.json").write_text('{"feature_extractor_type": "Laenn')
    assert main(["predict", str(run), __file__, "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, run / "model", "front end")


def test_a_run_is_not_given_up_for_one_that_cannot_begin(corpus, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(recipe, run) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    sound = sorted(corpus.glob("*.wav"))[0]
    truncated(sound)
    capsys.readouterr()
    for arguments in (["--overwrite"], ["--overwrite", "--encoder.weights", "absent.pt"]):
        assert train(recipe, run, *arguments) == 2
        one_line(capsys)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert train(recipe, tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


def test_a_folder_without_permission_is_one_line(tiny_run, small_corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    sound = str(next(small_corpus.glob("*.wav")))
    assert main(["predict", str(tiny_run), sound, "--out", str(tmp_path / "file")]) == 2
    one_line(capsys, tmp_path / "file", "is a file, not a folder")
