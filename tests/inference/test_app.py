"""The page in a real browser: numbers, sounds, broken files, keyboard, a phone's width, and nothing outbound."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from page_client import Served, ask, upload

from laennec.evaluation.evaluate import load_model
from laennec.inference.predictor import Predictor

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed here")


@pytest.fixture(scope="module")
def served(tiny_run, tmp_path_factory):
    """`laennec app` on a port of its own, which answers 20 s of sound and 2 MB."""
    flags = ["app", str(tiny_run), "--port", "0", "--max-minutes", "0.34", "--max-mb", "2"]
    # a proxy that is not there: whoever asks it for a page of ours finds out
    page = Served(
        f"from laennec.cli.main import main; raise SystemExit(main({flags!r}))",
        tmp_path_factory.mktemp("served"),
        HTTP_PROXY="http://127.0.0.1:9",
        NO_PROXY=None,
    )
    yield page
    code = page.end()
    assert code in (0, 143) and "OUTBOUND" not in page.said, page.said
    assert list(page.temporary.glob("laennec-app-*")) == []


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, served):
    """Open the page; at the end, every visit asked nobody else for anything and the console held no error."""
    contexts, wrong = [], []

    def opened(**settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        own = (served.address, "data:", "blob:" + served.address)
        page.on("request", lambda request: request.url.startswith(own) or wrong.append(request.url))
        page.on("response", lambda answer: answer.status < 400 or wrong.append(f"{answer.status} {answer.url}"))
        page.on("console", lambda message: message.type != "error" or wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(served.address)
        page.wait_for_selector("#la-file input[type=file]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def real_sound(shared_data):
    return shared_data / "icbhi2017_subset" / "103_2b2_Ar_mc_LittC2SE.flac"


def send(page, *files):
    """Open files on the page and wait for what it says."""
    page.evaluate("document.querySelector('#la-answer .la-answer, #la-answer .la-problem')?.remove()")
    page.set_input_files("#la-file input[type=file]", [str(file) for file in files])
    return page.wait_for_selector("#la-answer :is(.la-answer, .la-problem)").inner_text()


def table(page):
    """Rows of the table: seconds, and the values of the labels."""
    rows = page.locator(".la-table tbody tr").all()
    return [(row.locator("td").nth(1).inner_text(), row.locator(".la-value").all_inner_texts()) for row in rows]


def expected(tiny_run, sound, annotation=None):
    """The same, as `laennec predict` has it."""
    model, extractor = load_model(tiny_run)
    answer = Predictor(model, extractor)(sound, annotation)
    return [
        (
            f"{start:.1f}–{end:.1f}",
            [f"{p:.2f}{' ●' if on else ''}" for p, on in zip(probabilities, present, strict=True)],
        )
        for (start, end), probabilities, present in zip(answer.spans, answer.probabilities, answer.present, strict=True)
    ]


def seen(rows):
    return [
        (seconds, [" ".join(v.replace("above the threshold", "").split()) for v in values]) for seconds, values in rows
    ]


@needs_browser
def test_a_sound_is_answered_with_the_numbers_of_predict(visit, served, tiny_run, small_corpus):
    page = visit()
    for sound in sorted(small_corpus.glob("*.wav"))[:2]:
        assert sound.name in send(page, sound)
        assert seen(table(page)) == expected(tiny_run, sound) != []
    assert "No diagnosis" in page.inner_text(".la-warning")
    page.get_by_text("How to read the numbers").click()
    assert "rule youden" in page.inner_text(".la-facts")
    assert served.sent_files() == []
    assert page.locator("footer").is_hidden() and page.get_by_text("Gradio").count() == 0


@needs_browser
def test_a_real_recording_with_its_cycles(visit, served, tiny_run, real_sound):
    page = visit()
    annotation = real_sound.with_suffix(".txt")
    said = send(page, real_sound, annotation)
    assert "6 cycles of the annotation" in said and "44.1 kHz" in said
    assert seen(table(page)) == expected(tiny_run, real_sound, annotation)
    assert page.locator(".la-table tbody tr").first.locator("td").last.inner_text() == "wheeze"
    assert served.sent_files() == []


@needs_browser
def test_a_span_is_played_and_stops_at_its_end(visit, small_corpus):
    page = visit()
    send(page, sorted(small_corpus.glob("*.wav"))[0])
    state = "[document.querySelector('.la-answer audio')].map((a) => [a.currentTime, a.paused])[0]"
    page.wait_for_function("document.querySelector('.la-answer audio').readyState >= 2")
    page.evaluate("document.querySelector('.la-answer audio').playbackRate = 0.1")  # so that a busy machine is in time
    button = page.locator(".la-table tbody tr").nth(1).locator("button")
    start, end = float(button.get_attribute("data-start")), float(button.get_attribute("data-end"))
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.la-answer audio').paused")
    at, paused = page.evaluate(state)
    assert start - 0.05 <= at < end and button.get_attribute("aria-pressed") == "true" and not paused
    assert page.locator(".la-table tr.la-playing, .la-spans b.la-playing").count() == 2
    page.evaluate(f"document.querySelector('.la-answer audio').currentTime = {end - 0.2}")
    page.wait_for_function("document.querySelector('.la-answer audio').paused")
    assert page.evaluate(state)[0] == pytest.approx(end, abs=0.3) and button.get_attribute("aria-pressed") == "false"
    # a click into a picture plays the span there
    page.locator(".la-spec .la-plot").click(position={"x": 5, "y": 20})
    page.wait_for_function("!document.querySelector('.la-answer audio').paused")
    assert page.evaluate(state)[0] < 1.5
    page.locator(".la-spans b").first.click()  # and the sound ends when another answer takes its place
    page.evaluate("window.before = document.querySelector('.la-answer audio')")
    page.get_by_role("button", name="Crackles", exact=True).click()
    page.get_by_text("Example: crackles").wait_for()
    page.wait_for_function("window.before.paused")


@needs_browser
def test_a_broken_file_is_one_readable_line(visit, served, tmp_path):
    page = visit()
    soundfile.write(tmp_path / "whole.wav", 0.1 * np.sin(np.arange(20_000) / 9), 4000)
    whole = (tmp_path / "whole.wav").read_bytes()
    soundfile.write(tmp_path / "long.flac", np.tile([0.1, -0.1], 4000 * 60), 8000)
    for name, content, reason in (
        ("cut.wav", whole[:9000], "cut short"),
        ("words <img src=x onerror=alert(1)>.wav", b"no sound at all" * 99, "not audio"),
        ("empty.mp3", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        said = send(page, tmp_path / name)
        assert reason in said and str(served.temporary) not in said and "\n" not in said.strip(), said
    assert "longer than 20.4 s" in send(page, tmp_path / "long.flac")
    assert "one recording at a time" in send(page, tmp_path / "whole.wav", tmp_path / "cut.wav")
    assert served.sent_files() == []


@needs_browser
def test_a_file_that_is_too_large_is_said_to_be(visit, served, tmp_path):
    page = visit()
    (tmp_path / "large.wav").write_bytes(bytes(2_100_000))
    page.set_input_files("#la-file input[type=file]", str(tmp_path / "large.wav"))
    page.get_by_text(re.compile("maximum allowed size|exceeds", re.I)).first.wait_for()
    assert served.sent_files() == []


@needs_browser
def test_examples_answer_with_what_was_put_in(visit):
    page = visit()
    page.get_by_role("button", name="Both", exact=True).click()
    page.get_by_text("Example: both").wait_for()
    annotated = page.locator(".la-table tbody tr td:last-child").all_inner_texts()
    assert {"wheeze", "crackle"} <= set(annotated)
    assert "no patient's" in page.inner_text(".la-answer")


@needs_browser
def test_a_recording_is_made_and_answered(visit, served):
    page = visit(permissions=["microphone"])
    page.get_by_role("tab", name="Record").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop").first.wait_for()
    page.wait_for_timeout(800)
    page.get_by_role("button", name="Stop").first.click()
    page.wait_for_selector("#la-answer :is(.la-answer, .la-problem)")
    assert page.inner_text("#la-answer h2") == "Your recording"
    for _ in range(40):  # the recorder may still be showing what it recorded
        page.wait_for_timeout(250)
        if not served.sent_files():
            return
    raise AssertionError(served.sent_files())


# an element can be cut off inside one that hides what overflows, so the width of the page says little
BEYOND = """() => [...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1) && !e.closest('.la-table');
}).map((e) => e.outerHTML.slice(0, 120))"""


@needs_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 390), ("dark", 360)])
def test_a_phone_shows_all_of_it(visit, small_corpus, scheme, width):
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme, is_mobile=True, has_touch=True)
    sound = sorted(small_corpus.glob("*.wav"))[0]
    # with the annotation there is a column more
    send(page, *([sound] if scheme == "light" else [sound, sound.with_suffix(".txt")]))
    page.get_by_text("How to read the numbers").click()
    assert page.evaluate(BEYOND) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator(".la-table").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert box[0] <= box[1] + 1  # the table needs no scrolling sideways either
    small = (
        "e => [...e.querySelectorAll('.la-answer button')].filter(b => b.getBoundingClientRect().height < 36).length"
    )
    assert page.locator("body").evaluate(small) == 0
    # text against what lies behind it
    contrast = page.evaluate(CONTRAST)
    assert contrast and min(contrast.values()) >= 4.5, contrast


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const one = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => c.slice(0, 3).map((v) => one(v / 255));
  const luminance = (c) => { const [r, g, b] = light(c); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > .9) return c; } return [255, 255, 255]; };
  const found = {};
  for (const selector of ['.la-intro p', '.la-warning', '.la-answer h2', '.la-quiet', '.la-card h3', '.la-axis i',
                          '.la-head span', '.la-value', '.la-table caption', '.la-facts p', '.la-examples button']) {
    for (const e of document.querySelectorAll(selector)) {
      const a = luminance(numbers(getComputedStyle(e).color)), b = luminance(behind(e));
      const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      found[selector] = Math.min(found[selector] ?? 99, ratio);
    }
  }
  return found;
}"""

NAME = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const label = e.labels && e.labels[0] ? e.labels[0].innerText : '';
  const box = e.getBoundingClientRect();
  const style = getComputedStyle(e);
  return [e.tagName, (e.getAttribute('aria-label') || label || e.innerText || e.title || '').trim().slice(0, 60),
          style.outlineStyle !== 'none' || style.boxShadow !== 'none', box.width > 0];
}"""


@needs_browser
def test_everything_is_reached_by_tab_and_has_a_name(visit, small_corpus):
    page = visit()
    send(page, sorted(small_corpus.glob("*.wav"))[0])
    rows = page.locator(".la-table tbody tr").count()
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(60 + 2 * rows):
        page.keyboard.press("Tab")
        found = page.evaluate(NAME)
        if found is None:
            break
        reached.append(tuple(found))
    names = [name for _, name, _, _ in reached]
    for wanted in ("Open a file", "Click to upload", "Crackles", "Play window 1", "The whole recording", "How to read"):
        assert any(wanted in name for name in names), (wanted, names)
    assert sum("Play window" in name for name in names) >= rows
    assert all(name and visible for _, name, _, visible in reached), reached
    assert all(marked for tag, _, marked, _ in reached if tag != "AUDIO"), reached
    # everything that can be operated at all is among them, or is a part of what is
    shown = page.locator("button:visible, a:visible, input:visible, select:visible, summary:visible").all()
    assert all(e.get_attribute("aria-label") or e.inner_text().strip() or e.get_attribute("title") for e in shown)


def test_a_visitor_cannot_have_the_server_fetch_or_read_for_them(served, tmp_path):
    own = tmp_path / "own.svg"
    own.write_text("<svg/>")
    places = ("http://192.0.2.1/sound.wav", "https://example.org/a.wav", "/etc/hostname", str(own))
    for number, place in enumerate(places):
        for streamed in (False, True):  # Gradio passes over what it takes for a stream
            answer = ask(served.address, [place], session=f"s{number}{streamed}", is_stream=streamed)
            assert not answer["success"] or "no file arrived" in answer["output"]["data"][0], place
            assert "OUTBOUND" not in served.said
        read = httpx.get(f"{served.address}/gradio_api/file={place}")
        assert read.status_code in (403, 404), place
    assert "OUTBOUND" not in served.said and own.exists() and served.sent_files() == []


def test_people_who_send_the_same_file_at_once_are_all_answered(served, small_corpus):
    sound = sorted(small_corpus.glob("*.wav"))[0]

    def visitor(number):
        answer = ask(served.address, upload(served.address, sound), session=f"same{number}")
        return sound.name in answer["output"]["data"][0] and "la-answer" in answer["output"]["data"][0]

    with ThreadPoolExecutor(5) as visitors:
        assert all(visitors.map(visitor, range(5)))
    assert served.sent_files() == []


def test_a_request_of_many_large_files_is_cut_off(served, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(1_900_000))
    with pytest.raises(httpx.HTTPError):  # refused while it is being sent
        upload(served.address, *[tmp_path / "large.wav"] * 4)
    answer = httpx.get(served.address)
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert served.sent_files() == []


def test_nothing_is_offered_but_the_page(served):
    for path in ("docs", "openapi.json", "gradio_api/info", "gradio_api/openapi.json", "monitoring", "gradio_api/runs"):
        assert httpx.get(f"{served.address}/{path}").status_code == 404, path
    config = httpx.get(f"{served.address}/config").json()
    assert not config["analytics_enabled"] and not config["run_history"] and not config["show_error"]
    assert all(d["api_visibility"] == "private" for d in config["dependencies"])
    assert config["footer_links"] == []
