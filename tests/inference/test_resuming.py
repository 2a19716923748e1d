"""A batch that was killed at any moment goes on where it stopped, and ends as one that was not."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from batches import Counting, content, copied

from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.batch import journal
from laennec.inference.batch.journal import JOURNAL
from laennec.inference.batch.run import predict

FORMATS = ("json", "csv", "audacity", "raven")


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    return copied(small_corpus, tmp_path_factory.mktemp("recordings"), "bad", "r0", "r1", "r2", "r3")


@pytest.fixture
def make(tiny_run):
    model, extractor = load_model(tiny_run)
    return lambda **settings: Counting(model, extractor, **{"window_s": 2, "hop_s": 1, **settings})


def in_a_process_of_its_own(work):
    """Run something that may kill its process; whether it came to its end."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def dying_at(stop, call, honest):
    """A system call that kills its process the `stop`-th time, and half a line of the journal before that."""
    left = [stop]

    def dying(*arguments):
        if not left[0]:
            if call == "write":
                honest(arguments[0][: len(arguments[0]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return honest(*arguments)

    return dying


def killed_at(stop, call, work):
    """Whether some work was killed at its `stop`-th call of this kind; in a process of its own."""

    def dying_work():
        if call != "write":
            setattr(os, call, dying_at(stop, call, getattr(os, call)))
        else:
            honest = journal.appending

            @contextlib.contextmanager
            def appending(path, size):
                with honest(path, size) as add:
                    yield dying_at(stop, call, add)

            journal.appending = appending
        work()

    return not in_a_process_of_its_own(dying_work)


@pytest.mark.parametrize(
    ("call", "places"), [pytest.param("replace", 18, marks=pytest.mark.soak), ("fsync", 24), ("write", 6)]
)
def test_a_kill_at_any_call_of_writing_costs_nothing_but_time(make, recordings, tmp_path, call, places):
    """Killed at every place at which a file is synced or renamed or a line is half written, then run again."""
    predict(make(), [recordings], tmp_path / "whole", formats=FORMATS)
    wanted, out = content(tmp_path / "whole"), tmp_path / "out"

    def work():
        predict(make(), [recordings], out, formats=FORMATS)

    stop = 0
    while killed_at(stop, call, work):
        if stop % 2:  # and what goes on from there is killed too
            killed_at(stop // 2, call, work)
        work()
        assert content(out) == wanted
        shutil.rmtree(out)
        stop += 1
    assert stop == places and content(out) == wanted


def test_stored_predictions_are_not_computed_again(make, recordings, tmp_path, capsys):
    first = make()
    done = predict(first, [recordings], tmp_path, formats=FORMATS)
    assert first.computed == ["bad.wav", "r0.wav", "r1.wav", "r2.wav", "r3.wav"] and done.resumed == 0
    before = content(tmp_path)
    again = make()
    done = predict(again, [recordings], tmp_path, formats=FORMATS)
    assert again.computed == ["bad.wav"] and done.resumed == 4 and len(done.failed) == 1
    assert content(tmp_path) == before
    # a torn and a damaged end of the journal, or other numbers in it, cost the lines from there on
    file = tmp_path / JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    changed = lines[4].replace(b'_probability":0.', b'_probability":0.9', 1)
    assert changed != lines[4]
    for spoilt, lost in (
        ([*lines[:5], lines[5][:-9]], ["r3.wav"]),
        ([*lines[:4], b"\xff\n", *lines[5:]], ["r2.wav", "r3.wav"]),
        ([*lines[:4], changed, *lines[5:]], ["r2.wav", "r3.wav"]),
    ):
        file.write_bytes(b"".join(spoilt))
        again = make()
        predict(again, [recordings], tmp_path, formats=FORMATS)
        assert again.computed == ["bad.wav", *lost] and content(tmp_path) == before
    assert "damaged after 2 recordings" in capsys.readouterr().err


def test_a_changed_annotation_is_predicted_again(make, small_corpus, tmp_path):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    annotation = tmp_path / f"{sound.stem}.txt"
    for text, computed in (("0.1\t1.5\tx\n", 1), ("0.1\t1.5\tx\n", 0), ("0.1\t1.6\tx\n", 1)):
        annotation.write_text(text)
        predictor = make()
        predict(predictor, [sound], tmp_path / "out", annotation=tmp_path)
        assert len(getattr(predictor, "computed", [])) == computed
    rows = json.loads((tmp_path / "out" / f"{sound.stem}.laennec.json").read_text())["timeline"]
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0.1, 1.6)]


def test_other_formats_are_written_from_stored_predictions(make, recordings, tmp_path):
    predict(make(), [recordings], tmp_path / "out", formats=("json",))
    again = make()
    predict(again, [recordings], tmp_path / "out", formats=FORMATS)
    assert again.computed == ["bad.wav"]
    predict(make(), [recordings], tmp_path / "anew", formats=FORMATS)
    assert content(tmp_path / "out") == content(tmp_path / "anew")
    (tmp_path / "out" / "r2.laennec.json").unlink()
    pictured = make()
    predict(pictured, [recordings], tmp_path / "out", formats=(*FORMATS, "picture"))
    assert len(pictured.computed) == 5  # pictures show the sound
    assert (tmp_path / "out" / "r2.laennec.json").exists() and len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.parametrize("added", ["raven", "picture"])
def test_a_result_that_was_corrected_by_hand_stays_when_another_format_is_added(make, recordings, tmp_path, added):
    sound = recordings / "r1.wav"
    predict(make(), [sound], tmp_path, formats=("audacity",))
    corrected = tmp_path / "r1.laennec.labels.txt"
    corrected.write_text("0.1\t0.5\tcrackle\n")
    result = predict(make(), [sound], tmp_path, formats=("audacity", added))
    assert corrected.read_text() == "0.1\t0.5\tcrackle\n" and all(Path(file).exists() for file in result.files)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window_s": 3}, "spans window_s was 2.0, now 3.0"),
        ({"smoothing": 0.5}, "smoothing was null"),
        ({"smoothing": 0.5, "neighbours": 1}, "smoothing was null"),
        ({"thresholds": {"crackle": 0.125}}, "decision rule was"),
        ("another model", "model was"),
    ],
)
def test_other_settings_are_refused_in_one_line_or_replace_all(make, recordings, tmp_path, settings, said):
    predict(make(), [recordings], tmp_path, formats=FORMATS)
    before = content(tmp_path)
    other = make(**(settings if isinstance(settings, dict) else {}))
    if settings == "another model":
        other.model.head.classifier.bias.data += 1
    with pytest.raises(InputError) as error:
        predict(other, [recordings], tmp_path)
    assert said in str(error.value) and "--overwrite" in str(error.value)
    assert content(tmp_path) == before
    predict(other, [recordings / "r1.wav"], tmp_path, overwrite=True)
    assert set(content(tmp_path)) == {
        "r1.laennec.json",
        "laennec.predictions.csv",
        "laennec.recordings.csv",
        "laennec.parameters.yaml",
        ".laennec.tables.json",
        JOURNAL,
    }
    if settings == "another model":
        other.model.head.classifier.bias.data -= 1


def test_settings_may_change_before_anything_is_predicted(make, recordings, tmp_path):
    for window_s in (2, 3):
        done = predict(make(window_s=window_s), [recordings / "bad.wav"], tmp_path)
        assert len(done.failed) == 1
    assert b'"window_s":3.0' in (tmp_path / JOURNAL).read_bytes()


def test_another_recording_of_the_same_name_is_never_taken_for_it(make, recordings, tmp_path):
    for place, of in (("a", "r0"), ("b", "r1")):
        (tmp_path / place).mkdir()
        shutil.copy(recordings / f"{of}.wav", tmp_path / place / "x.wav")
    for place in ("a", "b", "a"):
        predict(make(), [tmp_path / place / "x.wav"], tmp_path / "out", formats=("json", "audacity"))
        assert json.loads((tmp_path / "out" / "x.laennec.json").read_text())["recording"] == str(
            tmp_path / place / "x.wav"
        )


@pytest.fixture
def replaced(make, recordings, tmp_path):
    """A folder with results of x.wav, whose recording is another one now, and how to predict it again."""
    sound, out = tmp_path / "sounds" / "x.wav", tmp_path / "out"
    sound.parent.mkdir()
    shutil.copy(recordings / "r0.wav", sound)
    predict(make(), [sound], out, formats=FORMATS)
    shutil.copy(recordings / "r1.wav", sound)
    return out, lambda **settings: predict(make(), [sound], out, **{"formats": FORMATS, **settings})


CORRECTED = "0.1\t0.5\tcrackle\n"


@pytest.mark.parametrize("moved", [False, True], ids=["another recording", "moved"])
@pytest.mark.parametrize("name", ["x.laennec.labels.txt", "x.laennec.selections.txt", "x.laennec.json"])
def test_a_corrected_result_is_replaced_by_overwriting_alone(replaced, make, recordings, tmp_path, name, moved):
    out, again = replaced
    if moved:
        again()
        place = tmp_path / "elsewhere"
        (tmp_path / "sounds").rename(place)
        again = lambda **more: predict(make(), [place / "x.wav"], out, **{"formats": FORMATS, **more})  # noqa: E731
    (out / name).write_text(CORRECTED)
    for formats in (FORMATS, ("json",)):
        ((_, reason),) = again(formats=formats).failed
        assert f"{out / name}: was changed after it was written; move it away" in reason and "\n" not in reason
        assert (out / name).read_text() == CORRECTED
    assert again(overwrite=True).failed == [] and (out / name).read_text() != CORRECTED
    (out / name).write_text(CORRECTED)  # the recording is the one that was predicted
    assert again(overwrite=True).failed == [] and (out / name).read_text() != CORRECTED


@pytest.mark.parametrize("name", ["laennec.predictions.csv", "laennec.recordings.csv", "laennec.parameters.yaml"])
def test_a_corrected_table_is_replaced_by_overwriting_alone(replaced, name):
    out, again = replaced
    (out / name).write_text(CORRECTED)
    before = content(out)
    with pytest.raises(InputError, match=f"{name}: was changed after it was written; move it away"):
        again()
    assert content(out) == before
    again(overwrite=True)
    assert (out / name).read_text() != CORRECTED


def test_results_of_another_recording_in_other_formats_do_not_stay(replaced):
    out, again = replaced
    again(formats=("json",))
    assert (out / "x.laennec.json").exists() and not list(out.glob("x.laennec.*.txt"))


@pytest.mark.parametrize(("call", "places"), [("replace", 8), ("unlink", 11), ("write", 2)])
def test_a_kill_while_results_are_replaced_is_no_correction(replaced, tmp_path, call, places):
    """The files of a recording that was replaced are replaced; killed at each place, then run again."""
    out, again = replaced
    shutil.copytree(out, tmp_path / "before")
    again()
    wanted, stop = content(out), 0
    while True:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "before", out)
        if not killed_at(stop, call, again):
            break
        assert again().failed == [] and content(out) == wanted
        stop += 1
    assert stop == places and content(out) == wanted


def test_an_out_folder_that_cannot_be_is_one_line_before_anything_is_computed(make, recordings, tmp_path):
    (tmp_path / "file").write_text("mine")
    predictor = make()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nobody/out")):
        with pytest.raises(InputError, match=r"is a file, not a folder; choose|cannot be created \(.*\); choose"):
            predict(predictor, [recordings], out)
    assert not hasattr(predictor, "computed") and (tmp_path / "file").read_text() == "mine"
