"""Stage 2: annotations are read exactly or refused by line, and cycles are cut and fitted by definite rules."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laennec.audio.cycles import (
    LABELS,
    AnnotationError,
    Cycle,
    check_annotation,
    cut,
    flags_of,
    label_of,
    prediction_windows,
    read_annotation,
    read_labels,
    sliding_windows,
    write_annotation,
)


@pytest.fixture
def text(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(content: str | bytes) -> Path:
        path = tmp_path / "101_1b1_Al_sc_Meditron.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_all_real_annotations_are_read_and_have_no_problem(shared_data: Path) -> None:
    count = dict.fromkeys(LABELS, 0)
    paths = sorted((shared_data / "icbhi2017_annotations").glob("*.txt"))
    for path in paths:
        assert check_annotation(path) == []
        for cycle in read_annotation(path):
            count[cycle.label] += 1
    assert len(paths) == 920
    assert count == {"normal": 3642, "crackle": 1864, "wheeze": 886, "both": 506}


def test_labels_and_flags_are_each_others_inverse() -> None:
    table = {(0, 0): "normal", (1, 0): "crackle", (0, 1): "wheeze", (1, 1): "both"}
    for flags, label in table.items():
        assert label_of(*flags) == label
        assert flags_of(label) == flags
    with pytest.raises(ValueError, match="flags are 0 or 1"):
        label_of(2, 0)
    with pytest.raises(ValueError, match="none of"):
        flags_of("Normal")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_blanks_and_byte_order_mark(text, ending: str) -> None:  # type: ignore[no-untyped-def]
    path = text("\ufeff0.036\t0.579\t0\t0" + ending + ending + "0.579 2.45  1\t1" + ending)
    assert read_annotation(path) == [Cycle(0.036, 0.579, 0, 0), Cycle(0.579, 2.45, 1, 1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-0.1\t1\t0\t0", "before the recording"),
        ("2\t1\t0\t0", "ends at 1 s but starts at 2 s"),
        ("nan\t1\t0\t0", "finite"),
        ("zero\t1\t0\t0", "times in seconds"),
        ("0,1\t1\t0\t0", "times in seconds"),
        ("0\t1\t2\t0", "0 or 1"),
        ("0\t1\t0", "3 columns"),
        ("3\t9.002\t0\t0", "the audio lasts 9.000 s"),
    ],
)
def test_a_bad_line_is_named(text, line: str, words: str) -> None:  # type: ignore[no-untyped-def]
    path = text(f"0\t0.5\t0\t0\n{line}\n")
    with pytest.raises(AnnotationError, match=words) as caught:
        read_annotation(path, duration_s=9.0)
    assert caught.value.line == 2
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert [str(problem) for problem in check_annotation(path, duration_s=9.0)] == [str(caught.value)]


def test_the_end_may_be_a_millisecond_off(text) -> None:  # type: ignore[no-untyped-def]
    path = text("0\t9.001\t0\t0")
    assert len(read_annotation(path, duration_s=9.0)) == 1
    with pytest.raises(AnnotationError):
        read_annotation(path, duration_s=8.9995)


@pytest.mark.parametrize("content", ["", "\n \n", b"\xff\xfe\x00\x01", b"0\t1\t0\t0\xe9"])
def test_files_without_annotation(text, content: str | bytes) -> None:  # type: ignore[no-untyped-def]
    path = text(content)
    with pytest.raises(AnnotationError) as caught:
        read_annotation(path)
    assert caught.value.line is None
    assert len(check_annotation(path)) == 1


def test_an_absent_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(AnnotationError, match="cannot be read"):
            read_annotation(path)


def test_the_check_lists_everything_at_once(text) -> None:  # type: ignore[no-untyped-def]
    path = text("0\t1\t0\t0\n0.5\t3\t0\t1\nx\t1\t0\t0\n2.5\t4\t7\t0\n2.9\t12\t0\t0\n1\t2\t0\t0\n")
    problems = check_annotation(path, duration_s=10.0)
    assert [problem.line for problem in problems] == [2, 3, 4, 5, 6]
    assert "before the cycle of line 1 ends at 1 s" in problems[0].reason
    assert "before the cycle of line 2 ends at 3 s" in problems[4].reason


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    cycles = [Cycle(0.0, 1.25, 0, 1), Cycle(1.25, 3.001, 1, 1)]
    write_annotation(tmp_path / "a.txt", cycles)
    assert read_annotation(tmp_path / "a.txt") == cycles
    assert (tmp_path / "a.txt").read_text() == "0.000\t1.250\t0\t1\n1.250\t3.001\t1\t1\n"


def test_audacity_labels(text) -> None:  # type: ignore[no-untyped-def]
    path = text(
        "0.5\t1.5\tcrackle\n\\\t100.0\t2000.0\n1.5\t2.5\tWheezes\n2.5\t3\tboth\n3\t4\tcrackle+wheeze\n"
        "4\t5\twheeze, crackles\n5\t6\tnormal\n"
    )
    assert [cycle.label for cycle in read_labels(path)] == ["crackle", "wheeze", "both", "both", "both", "normal"]
    assert read_labels(path)[0] == Cycle(0.5, 1.5, 1, 0)


@pytest.mark.parametrize(
    "line", ["0\t1\t", "0\t1\tcough", "0\t1\tnormal+crackle", "1\t0\tnormal", "a\t1\tnormal", "0\t9\tnormal", "0\t1"]
)
def test_bad_audacity_lines(text, line: str) -> None:  # type: ignore[no-untyped-def]
    path = text(f"0\t1\tnormal\n{line}")
    with pytest.raises(AnnotationError) as caught:
        read_labels(path, duration_s=5)
    assert caught.value.line == 2


def test_cut_by_the_published_rule(shared_root: Path) -> None:
    cases = json.loads((shared_root / "conformance" / "waveform_rules.json").read_text())["cases"]
    case = next(case for case in cases if case["id"] == "slice_rule")
    columns = zip(case["inputs"]["values"], case["expected"]["starts"], case["expected"]["lengths"], strict=True)
    for (start_s, end_s, samples, rate), start, length in columns:
        piece = cut(np.arange(samples, dtype=np.float32), int(rate), start_s, end_s)
        assert len(piece) == length
        assert length == 0 or piece[0] == start


def test_cut_clamps_and_never_fails() -> None:
    wave = np.arange(10, dtype=np.float32)
    assert cut(wave, 10, 0.5, 2).tolist() == [5, 6, 7, 8, 9]
    assert cut(wave, 10, 3, 4).tolist() == []
    assert cut(wave, 10, -1, 0.2).tolist() == [0, 1]
    assert cut(wave, 10, 0.19, 0.39).tolist() == [1, 2]


def test_windows_by_hand() -> None:
    assert sliding_windows(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert sliding_windows(9, 4, 4) == [(0, 4), (4, 8), (5, 9)]
    assert sliding_windows(3, 4, 4) == [(0.0, 3)]
    assert sliding_windows(0, 4, 4) == []
    assert len(sliding_windows(0.3, 0.1, 0.1)) == 3


def test_the_last_predicted_window_does_not_repeat_the_one_before_it() -> None:
    assert prediction_windows(9.04, 3, 1.5) == [(0, 3), (1.5, 4.5), (3, 6), (4.5, 7.5), pytest.approx((6.04, 9.04))]
    assert prediction_windows(9.8, 3, 1.5) == sliding_windows(9.8, 3, 1.5)
    assert prediction_windows(9.04, 3, 3) == sliding_windows(9.04, 3, 3)  # without it a moment would be lost
    assert prediction_windows(3.04, 3, 1.5) == sliding_windows(3.04, 3, 1.5)


@pytest.mark.parametrize("cover", [sliding_windows, prediction_windows])
@pytest.mark.parametrize("duration_s", [0.7, 5.0, 6.02, 19.987, 60.0])
@pytest.mark.parametrize(("window_s", "hop_s"), [(3, 3), (3, 1.5), (2.7, 0.9), (0.1, 0.1)])
def test_windows_cover_every_moment(cover: Any, duration_s: float, window_s: float, hop_s: float) -> None:
    windows = cover(duration_s, window_s, hop_s)
    assert windows[0][0] == 0
    assert windows[-1][1] == pytest.approx(duration_s)
    for (start, end), (following, _) in itertools.pairwise(windows):
        assert end - start == pytest.approx(window_s)
        assert start < following <= end + 1e-9
    assert len(windows) <= math.ceil(duration_s / hop_s) + 1


@pytest.mark.parametrize("arguments", [(5, 0, 1), (5, 2, 0), (5, 2, 3), (math.nan, 2, 1), (math.inf, 2, 1), (-1, 2, 1)])
def test_windows_that_are_none(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        sliding_windows(*arguments)
