"""The server of the page: addresses, limits, where thresholds come from, what is deleted."""

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference import app
from laennec.inference.app import Answerer, Limits
from laennec.inference.examples import write_examples
from laennec.inference.model_facts import model_facts
from laennec.inference.predictor import Predictor
from laennec.inference.serve import address_of, open_socket


@pytest.fixture(scope="module")
def answerer(tiny_run, tmp_path_factory):
    model, extractor = load_model(tiny_run)
    folder = tmp_path_factory.mktemp("sent")
    return Answerer(Predictor(model, extractor), model_facts(model, tiny_run), Limits(most_minutes=0.5), folder)


@pytest.fixture
def sound(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "mine.wav", 0.1 * rng.standard_normal(5 * 4000), 4000)
    return tmp_path / "mine.wav"


def test_a_port_that_is_taken_or_an_address_of_another_machine_is_one_line(capsys):
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert address_of(taken, "0.0.0.0") == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"--port {port} on 127.0.0.1 cannot be used"):
            open_socket("127.0.0.1", port)
    for host in ("192.0.2.7", "no such name", "256.1.1.1", "a" * 300):
        with pytest.raises(InputError, match=f"{host}.*(cannot be used|no address of this machine)"):
            open_socket(host, 0)
    for port in (70_000, -1):
        with pytest.raises(InputError, match=f"--port {port}"):
            open_socket("127.0.0.1", port)


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    with open_socket("127.0.0.1", 0) as taken:
        monkeypatch.setattr("laennec.inference.serve.FIRST_PORT", taken.getsockname()[1])
        with open_socket("127.0.0.1", None) as opened:
            assert opened.getsockname()[1] > taken.getsockname()[1]


def test_the_command_refuses_what_cannot_be(tmp_path, tiny_run, capsys):
    for flags in (["--max-minutes", "0"], ["--max-mb", "nan"], ["--host", "no such host"], ["--window-s", "-1"]):
        assert main(["app", str(tiny_run), "--port", "0", *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith("laennec: ") and said.count("\n") == 1 and flags[0] in said
    assert main(["app", str(tmp_path), "--port", "0"]) == 2
    assert "no model in this folder" in capsys.readouterr().err


def test_without_gradio_the_command_says_how_to_install_it(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else object())
    assert main(["app", str(tiny_run)]) == 2
    assert "pip install 'laennec[app]'" in capsys.readouterr().err


def test_the_page_says_where_thresholds_come_from(tiny_run, tmp_path):
    model, _ = load_model(tiny_run)
    record = json.loads((tiny_run / "run.json").read_text())
    said = model_facts(model, tiny_run)
    fitted = record["operating_points"]["fitted_on"]
    assert said.name == "tiny" and said.thresholds == model.config.thresholds
    for part in (f"{fitted['cycles']} cycles of {fitted['patients']} patients", "synthetic", "youden"):
        assert part in said.origin
    alone = shutil.copytree(tiny_run / "model", tmp_path / "somewhere" / "alone")
    assert "youden" in model_facts(model, alone).origin  # the model says so itself
    model.config.operating_point = {}  # as earlier models do
    assert "does not say by which rule" in model_facts(model, alone).origin
    # a record of another model is not believed
    record["operating_points"]["threshold_probabilities"] = {"crackle": 0.123, "wheeze": 0.456}
    (alone / "run.json").write_text(json.dumps(record))
    assert "does not say by which rule" in model_facts(model, alone).origin
    model.config.thresholds = {}
    assert model_facts(model, alone).thresholds == {"crackle": 0.5, "wheeze": 0.5}
    assert "above 0.5" in model_facts(model, alone).origin


def test_what_was_sent_is_deleted_whether_it_could_be_answered_or_not(answerer, sound, tmp_path):
    def sent(*files):
        copies = []
        for i, file in enumerate(files):
            folder = answerer.folder / f"upload{i}"
            folder.mkdir()
            copies.append(Path(shutil.copy(file, folder)))
        html = answerer.sent(copies)
        assert not any(copy.parent.exists() for copy in copies)
        return " ".join(html.split())

    words = tmp_path / "words.wav"
    words.write_text("no sound")
    times, wrong = tmp_path / "times.txt", tmp_path / "wrong.txt"
    times.write_text("0.5\t2.5\t0\t1\n")
    wrong.write_text("0.5\t99\t0\t1\n")
    assert "la-answer" in sent(sound)
    assert "1 cycle of the annotation" in sent(times, sound)
    assert "not audio" in sent(words) and "words.wav" in sent(words) and str(tmp_path) not in sent(words)
    assert "wrong.txt" in sent(sound, wrong) and "line 1" in sent(sound, wrong)
    assert "one recording at a time" in sent(sound, words)
    assert "open a sound file" in sent(times)
    assert "no file arrived" in answerer.sent([]) and "no file arrived" in answerer.sent(None)
    assert "no such file" in answerer.sent([answerer.folder / "gone.wav"]) and answerer.folder.is_dir()


def test_a_file_of_the_servers_own_is_neither_read_nor_deleted(answerer, sound):
    (answerer.folder / "link.wav").symlink_to(sound)
    for place in (
        sound,
        answerer.folder / ".." / sound.relative_to(answerer.folder.parent),
        answerer.folder / "link.wav",
    ):
        assert "no file arrived" in answerer.sent([place])
    assert sound.exists()


def test_what_was_never_answered_is_swept_away(tmp_path):
    old, new = tmp_path / "a" / "old.wav", tmp_path / "b" / "new.wav"
    for file in (old, new):
        file.parent.mkdir()
        file.write_bytes(b"sound")
        os.utime(file, (0, 0) if file is old else None)
    for folder in (old.parent, new.parent):
        os.utime(folder, (0, 0))
    app.sweep(tmp_path, 60)
    assert sorted(tmp_path.rglob("*")) in ([new.parent, new], [old.parent, new.parent, new])
    os.utime(old.parent, (0, 0)) if old.parent.exists() else None
    app.sweep(tmp_path, 60)
    assert sorted(tmp_path.rglob("*")) == [new.parent, new]


def test_a_recording_made_on_the_page_is_deleted_a_moment_later(answerer, sound):
    copy = Path(shutil.copy(sound, answerer.folder))
    assert "Your recording" in answerer.sent([copy], "Your recording", 0.5)
    for _ in range(100):
        if not copy.exists():
            break
        time.sleep(0.1)
    assert not copy.exists()


def test_too_long_and_too_many_are_refused(answerer, sound, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile([0.1, -0.1], 4000 * 20), 4000)
    assert "longer than 30 s" in answerer.answer(tmp_path / "long.wav")
    times = tmp_path / "times.txt"
    for lines, said in (
        ("0\t1\t0\t0\n" * 501, "500 cycles"),
        ("0\t5\t0\t0\n" * 5, "four of them"),
        ("", "is empty"),
        ("#" * 1_100_000, "larger than 1 MB"),
    ):
        times.write_text(lines)
        assert said in answerer.answer(sound, times), said


def test_the_times_of_cycles_come_in_every_form_that_predict_reads(answerer, sound, tmp_path):
    times = tmp_path / "times.txt"
    raven = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\n"
    for text, cycles, classes in (
        ("0.5\t1.5\tin\n1.5\t3.0\tout\n", 2, None),
        ("0,5\t1,5\t1\n1,5\t3,0\t2\n", 2, None),
        (f"{raven}1\tSpectrogram 1\t1\t0.5\t1.5\n", 1, None),
        # two labels over one span are one cycle, and what follows keeps its own
        ("0.5\t1.5\tcrackle\n0.5\t1.5\twheeze\n1.5\t3.0\tnormal\n", 2, ["both", "normal"]),
    ):
        times.write_text(text)
        html = answerer.answer(sound, times)
        assert f"{cycles} cycle{'s' if cycles > 1 else ''} of the annotation" in " ".join(html.split()), html[:300]
        assert html.count("<tr data-row") == cycles and ("Annotated" in html) == (classes is not None)
        if classes:
            assert re.findall(r"<td>(\w+)</td></tr>", html) == classes


def test_a_mistake_of_ours_is_logged_and_not_shown(answerer, sound, monkeypatch, caplog):
    monkeypatch.setattr(answerer, "predictor", lambda *_: 1 / 0)
    assert "in the log of the server" in answerer.answer(sound)
    assert "ZeroDivisionError" in caplog.text


def test_the_last_answer_is_forgotten_when_its_visitor_leaves(answerer):
    with app.private_folder() as folder:
        blocks = app.page(answerer, write_examples(folder))
        application = app.application(answerer)
        assert application.most_bytes > answerer.limits.most_bytes
    blocks.state_holder = SimpleNamespace(session_data={"a": 1, "b": 2}, time_last_used={"a": 0, "b": 0})
    leaving = next(fn for fn in blocks.fns.values() if any(event == "unload" for _, event in fn.targets))
    leaving.fn(SimpleNamespace(session_hash="a"))
    assert blocks.state_holder.session_data == {"b": 2} and not folder.exists()


def test_examples_hold_what_their_names_say(tmp_path):
    examples = write_examples(tmp_path)
    assert [example.title for example in examples] == ["Normal breathing", "Crackles", "Wheezes", "Both"]
    for example in examples:
        sound, rate = soundfile.read(example.recording)
        lines = [line.split() for line in example.annotation.read_text().splitlines()]
        assert (
            rate <= 8000 and example.recording.stat().st_size < 1_000_000 and float(lines[-1][1]) * rate <= len(sound)
        )
        crackle, wheeze = (any(line[k] == "1" for line in lines) for k in (2, 3))
        assert {"Normal breathing": (0, 0), "Crackles": (1, 0), "Wheezes": (0, 1), "Both": (1, 1)}[example.title] == (
            crackle, wheeze,
        )  # fmt: skip


def test_nobody_else_can_reach_the_page_unless_asked(tiny_run):
    from laennec.cli.main import _parser

    assert _parser().parse_args(["app", "x"]).host == "127.0.0.1"
    assert socket.inet_aton(_parser().parse_args(["app", "x"]).host) == b"\x7f\0\0\1"
