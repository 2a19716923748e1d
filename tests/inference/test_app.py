"""The page: predictions, errors in one line, limits, thresholds, and a real browser without the network."""

import re
import shutil
import threading
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.page.app import DISCLAIMER, Limits, predict_html, serve_model, threshold_origin
from laennec.inference.predictor import Predictor

CHROMIUM = shutil.which("chromium")
WAIT_S = 300  # generous: a busy machine must not fail a test


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor(*load_model(tiny_run))


@pytest.fixture(scope="module")
def served(tiny_run):
    """A running page: its address, and an event that stops it."""
    ready, stop, address = threading.Event(), threading.Event(), []

    def announce(where):
        address.append(where)
        ready.set()

    settings = {"limits": Limits(max_minutes=0.5, max_mb=2), "ready": announce, "stop": stop}
    thread = threading.Thread(target=serve_model, args=(tiny_run,), kwargs=settings, daemon=True)
    thread.start()
    while not ready.wait(1):
        assert thread.is_alive(), "the server stopped before it was ready"
    yield address[0]
    stop.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def page(served):
    """The page in Chromium; no visit contacts another machine."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(1000 * WAIT_S)
        outside = []
        page.on("request", lambda r: r.url.startswith((served, "data:", "blob:")) or outside.append(r.url))
        yield page
        browser.close()
    assert outside == []


def test_the_table_has_the_numbers_of_predict(predictor, small_corpus):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    expected = predictor(sound, sound.with_suffix(".txt"))
    html = predict_html(predictor, str(sound), str(sound.with_suffix(".txt")), Limits())
    pairs = zip(expected.probabilities.flat, expected.present.flat, strict=True)
    cells = [f"{probability:.2f}{' present' if present else ''}" for probability, present in pairs]
    found = re.findall(r"<td(?: class=\"present\")?>(\d\.\d\d(?: present)?)</td>", html)
    assert found == cells
    assert DISCLAIMER in unescape(html) and html.count("<th scope") == 5 and 'srcset="data:image/png' in html
    assert "Annotated" not in predict_html(predictor, str(sound), None, Limits())


def test_an_input_that_cannot_be_used_is_one_line(predictor, small_corpus, tmp_path):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    words, times = tmp_path / "words <img src=x>.wav", tmp_path / "times.txt"
    words.write_text("no sound at all" * 99)
    long = tmp_path / "long.flac"
    soundfile.write(long, np.tile([0.1, -0.1], 4000 * 20), 4000)
    cases = [(None, None, "no recording yet"), (words, None, "not audio"), (long, None, "longer than 30 s")]
    for lines, reason in (
        ("0.5\t99\t0\t1\n", "line 1"),
        ("".join(f"{k / 100}\t{k / 100 + 1}\t0\t0\n" for k in range(501)), "500 cycles"),
        ("".join(f"{k / 100}\t{k / 100 + 4}\t0\t0\n" for k in range(30)), "four times"),
        ("", "is empty"),
    ):
        times.write_text(lines)
        html = predict_html(predictor, str(sound), str(times), Limits(max_minutes=0.5))
        assert reason in html and 'class="problem"' in html and html.count("\n") == 1, html
    for recording, annotation, reason in cases:
        html = predict_html(predictor, recording and str(recording), annotation, Limits(max_minutes=0.5))
        assert reason in html and "<img" not in html and str(tmp_path) not in html and html.count("\n") == 1


def test_the_page_says_where_thresholds_come_from(tiny_run):
    model, _ = load_model(tiny_run)
    for spans in ("windows", "cycles"):
        fitted = model.config.operating_points.get("windows", model.config.operating_point)["fitted_on"]
        said = threshold_origin(model)
        assert f"{fitted['cycles']} validation {spans} of {fitted['patients']} patients" in said and "youden" in said
        assert ("not on windows" in said) == (spans == "cycles")
        model.config.operating_points = {}
    model.config.operating_point = {}
    assert "does not record by which rule" in threshold_origin(model)
    model.config.thresholds = {}
    assert "above 0.5" in threshold_origin(model)
    single = SimpleNamespace(config=SimpleNamespace(is_multi_label=False))
    assert "most probable label" in threshold_origin(single)


def test_invalid_options_are_one_line(tmp_path, tiny_run, capsys, monkeypatch):
    for flags in (["--max-minutes", "0"], ["--max-mb", "nan"], ["--window-s", "-1"], ["--port", "70000"]):
        assert main(["app", str(tiny_run), *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith("laennec: ") and said.count("\n") == 1 and flags[0] in said
    assert main(["app", str(tmp_path)]) == 2
    assert "no model in this folder" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else object())
    assert main(["app", str(tiny_run)]) == 2
    assert "pip install 'laennec[app]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(served, tiny_run):
    port = int(served.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"--port {port}.*choose another"):
        serve_model(tiny_run, port=port)


def test_a_visitor_uploads_a_sound_and_sees_its_prediction(page, served, small_corpus, tmp_path):
    page.goto(served)
    page.wait_for_selector("#predict")
    text = page.inner_text("main")
    assert "not a medical device" in text and "predicts crackle, wheeze along the recording" in text
    sound = sorted(small_corpus.glob("*.wav"))[0]
    page.set_input_files("#recording input[type=file]", str(sound))
    page.wait_for_selector("#recording #waveform, #recording [data-testid=waveform-Recording]")
    page.click("#predict")
    page.wait_for_selector("#result .prediction")
    text = page.inner_text("#result")
    assert sound.name in text and "crackle: present in" in text and "wheeze: present in" in text
    page.wait_for_function("document.querySelector('#result audio').readyState >= 1")
    page.wait_for_function("document.querySelector('#result img').naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone needs no sideways scrolling
    page.locator("#result button").nth(1).click()
    page.wait_for_function("document.querySelector('#result audio').currentTime > 1")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_a_file_over_the_limit_is_refused_by_the_page(page, served, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(2_200_000))
    page.goto(served)
    page.wait_for_selector("#predict")
    page.set_input_files("#recording input[type=file]", str(tmp_path / "large.wav"))
    page.get_by_text("maximum allowed size").first.wait_for()


def test_only_the_page_is_served(served):
    import httpx

    codes = {httpx.get(f"{served}/{path}").status_code for path in ("docs", "openapi.json", "monitoring")}
    assert codes <= {403, 404}
    config = httpx.get(f"{served}/config").json()
    assert not config["analytics_enabled"] and not config["show_error"]
    assert all(d["api_visibility"] == "private" for d in config["dependencies"])
