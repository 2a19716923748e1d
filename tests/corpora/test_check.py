"""The check finds every kind of damage in one pass."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import cut
from laennec.audio.features import LaennecFeatureExtractor
from laennec.cli.main import main
from laennec.corpora.check import _too_short, check_corpus
from laennec.corpora.recordings import AnnotatedRecording, Event
from laennec.errors import InputError


def test_every_kind_of_damage_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    names = [f"1{number:02d}_1b1_Al_sc_Meditron" for number in range(12)]
    for number, name in enumerate(names):
        soundfile.write(folder / f"{name}.wav", noise * (1 - number / 20), 4000, subtype="FLOAT")
        (folder / f"{name}.txt").write_text("0\t1\t0\t0\n1\t2\t1\t0\n")
    good = (folder / f"{names[0]}.wav").read_bytes()
    (folder / f"{names[1]}.wav").write_bytes(good[:9000])
    (folder / f"{names[2]}.wav").write_bytes(b"this is text")
    soundfile.write(folder / f"{names[3]}.wav", np.zeros(8000), 4000)
    soundfile.write(folder / f"{names[4]}.wav", np.where(np.arange(8000) == 5, np.nan, noise), 4000, subtype="FLOAT")
    (folder / f"{names[5]}.wav").write_bytes(b"")
    (folder / f"{names[6]}.wav").write_bytes(good)
    (folder / f"{names[7]}.txt").write_text("0\t1\t0\t0\n0.5\t2.5\t1\t0\n1\tx\t0\t0\n")
    (folder / f"{names[8]}.txt").write_text("")
    (folder / f"{names[9]}.txt").unlink()
    (folder / f"{names[10]}.wav").unlink()
    (folder / "ICBHI_challenge_train_test.txt").write_text("".join(f"{name} train\n" for name in [*names, "999_x"][1:]))
    seen = []
    report = check_corpus(
        "icbhi2017", folder, tables_dir=folder, cache_dir=tmp_path / "cache", progress=lambda *done: seen.append(done)
    )
    expected = {
        1: "cut short", 2: "not audio", 3: "silent", 4: "NaN", 5: "empty (0 bytes)", 7: "line 2: ends at 2.5 s",
        8: "annotation is empty", 9: "audio without annotation", 10: "annotation without audio",
    }  # fmt: skip
    for number, words in expected.items():
        assert any(names[number] in problem and words in problem for problem in report.problems), words
    problems = "\n".join(report.problems)
    assert f"{names[7]}.txt, line 3" in problems
    assert f"same sound under 2 names: {folder / names[0]}.wav, {folder / names[6]}.wav" in problems
    assert "not in the published split: 100_1b1" in problems and "999_x" in problems
    assert all("\n" not in problem for problem in report.problems)
    assert len(seen) == report.recordings
    assert f"{len(report.problems)} problems" in report.lines()


def test_overlaps_are_listed_although_they_load(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    soundfile.write(folder / "a.wav", noise, 4000)
    (folder / "cycles.csv").write_text("recording,start_s,end_s,label\na,0,1,normal\na,0.5,2,both\n")
    report = check_corpus("folder", folder, cache_dir=tmp_path / "cache")
    assert len(report.problems) == 1 and "starts before 1 s" in report.problems[0]
    assert report.cycles == 2


def test_cycles_shorter_than_one_frame_are_listed_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    for number in (1, 2):
        soundfile.write(folder / f"10{number}_1b1_Al_sc_Meditron.wav", noise / number, 4000)
    # 1 ms, 24 ms and just one frame of 25 ms; the second file is sound
    (folder / "101_1b1_Al_sc_Meditron.txt").write_text("0\t0.001\t0\t0\n0.5\t0.524\t1\t0\n1\t1.025\t0\t0\n")
    (folder / "102_1b1_Al_sc_Meditron.txt").write_text("0\t1\t0\t0\n")
    report = check_corpus("icbhi2017", folder, allow_missing=True, cache_dir=tmp_path / "cache")
    assert report.cycles == 4 and len(report.problems) == 2
    for problem, span in zip(report.problems, ("at 0 to 0.001 s", "at 0.5 to 0.524 s"), strict=True):
        assert str(folder / "101_1b1_Al_sc_Meditron.txt") in problem and span in problem
        assert "shorter than one frame (25 ms)" in problem and "\n" not in problem
    assert main(["prepare", "icbhi2017", "--data-dir", str(folder), "--allow-missing", "--check"]) == 2
    assert capsys.readouterr().out.count("problem: ") == 2


def test_what_the_check_calls_too_short_is_what_training_refuses(tmp_path: Path) -> None:
    """Times of three decimals around 25 ms, at starts where cutting to samples rounds either way."""
    extractors = [LaennecFeatureExtractor(name) for name in ("ast", "beats", "efficientat")]
    entry = AnnotatedRecording("a", "a", None, tmp_path / "a.txt")
    seen = set()
    for start in np.arange(0, 0.2, 0.007).round(3).tolist():
        for length in (0.024, 0.025, 0.026):
            event = Event(start, round(start + length, 3), 0, 0)
            refused = False
            for extractor in extractors:
                sound = np.zeros(extractor.sampling_rate, np.float32)
                piece = cut(sound, extractor.sampling_rate, event.start_s, event.end_s)
                refused |= extractor.frames(len(piece)) < 1
            assert bool(_too_short(entry, [event], None)) == refused
            seen.add((length, refused))
    assert {(0.024, True), (0.026, False)} <= seen


def test_a_corpus_that_cannot_be_scanned_is_a_report(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = check_corpus("sprsound", tmp_path / "empty", cache_dir=tmp_path / "cache")
    assert len(report.problems) == 1 and "no SPRSound folders" in report.problems[0]
    with pytest.raises(InputError, match="no such folder"):
        check_corpus("sprsound", tmp_path / "absent")
    with pytest.raises(InputError, match="did you mean 'icbhi2017'"):
        check_corpus("icbhi", tmp_path)
