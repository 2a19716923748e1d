"""The page of a review in a real browser: keys, marks, undo, other reviewers; and names that hold HTML."""

import shutil
import threading

import pytest

from laennec.inference.page.app import serve_model
from laennec.review.page import pressed, shown_html, with_review
from laennec.review.session import Review

CHROMIUM = shutil.which("chromium")
WAIT_S = 60  # generous: a busy machine must not fail a test
KEY = "document.querySelector('#review section').dataset.key"


@pytest.fixture(scope="module")
def review(tiny_run, small_corpus, tmp_path_factory):
    labels = ["crackle", "wheeze", "stridor", "rhonchi"]
    out = tmp_path_factory.mktemp("page") / "review"
    return Review(tiny_run, small_corpus, out, reviewer="ann", patients="^[^_]+", labels=labels)


@pytest.fixture(scope="module")
def page(review, tiny_run):
    """The page in Chromium, on a phone, as `laennec review` serves it; no visit contacts another machine."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    ready, stop, address = threading.Event(), threading.Event(), []
    settings = {
        "wrap": lambda page: with_review(page, review),
        "ready": lambda where: (address.append(where), ready.set()),
        "stop": stop,
    }
    thread = threading.Thread(target=serve_model, args=(tiny_run,), kwargs=settings, daemon=True)
    thread.start()
    while not ready.wait(1):
        assert thread.is_alive(), "the server stopped before it was ready"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(1000 * WAIT_S)
        problems = []
        page.on("request", lambda r: r.url.startswith((address[0], "data:", "blob:")) or problems.append(r.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address[0])
        page.wait_for_selector("#review .sound")
        page.wait_for_function("typeof window.laennecPlay === 'function'")
        yield page
        browser.close()
    stop.set()
    thread.join(WAIT_S)
    assert problems == [] and not thread.is_alive()


def press(page, keys):
    """Press keys; the span that is shown then."""
    before = page.evaluate(KEY)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function(f"before => {KEY} !== before", arg=before)
    return page.evaluate(KEY)


def texts(review, who="ann"):
    return [answer.text for answer in review.answers.active() if answer.reviewer == who]


def test_keys_answer_mark_and_undo(page, review):
    first = page.evaluate(KEY)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert {"Crackle (c)", "Both (b)", "Stridor (1)", "Rhonchi (2)"} <= set(page.locator("button").all_inner_texts())
    second = press(page, ["c"])
    for keys in (["w"], ["b"], ["n"], ["s"], ["2"], ["Shift+Digit1", "w"]):
        press(page, keys)
    wanted = ["crackle", "wheeze", "both", "normal", "skipped", "rhonchi", "wheeze+stridor"]
    assert texts(review) == wanted and page.inner_text("#review .note") == "kept: wheeze+stridor"
    assert page.locator("#review-marks input:checked").count() == 0
    for _ in wanted[1:]:
        last = press(page, ["u"])
    assert last == second and texts(review) == ["crackle"]
    assert press(page, ["u"]) == first and texts(review) == []


def test_of_presses_at_once_the_first_one_counts(page, review):
    before, sent = page.evaluate(KEY), []
    page.on("request", lambda request: request.url.endswith("/queue/join?") and sent.append(request.url))
    page.evaluate("for (const key of 'cwn') document.getElementById(`review-${key}`).click()")
    page.wait_for_function(f"before => {KEY} !== before", arg=before)
    assert texts(review) == ["crackle"] and len(sent) == 1
    press(page, ["u"])
    assert texts(review) == [] and len(sent) == 2


def test_the_sound_of_the_span_is_played(page):
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#review audio').currentTime > 0")
    box = page.evaluate("({...document.querySelector('#review section').dataset})")
    page.wait_for_function("document.querySelector('#review audio').paused")
    assert page.evaluate("document.querySelector('#review audio').currentTime") >= float(box["to"]) - 0.05
    assert page.evaluate("document.querySelector('#review img').naturalWidth") > 50


def test_another_reviewer_types_a_name_and_has_the_queue_from_its_beginning(page, review):
    first = page.evaluate(KEY)
    press(page, ["n"])
    page.click("#review-who textarea, #review-who input")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("bob wn")  # w and n answer nothing here
    page.keyboard.press("Enter")
    page.wait_for_function(f"first => {KEY} === first", arg=first)
    assert texts(review) == ["normal"] and texts(review, "bob wn") == []
    page.locator("#review-c").click()
    page.wait_for_function(f"first => {KEY} !== first", arg=first)
    assert texts(review, "bob wn") == ["crackle"]


def test_what_the_disk_refuses_is_said_and_a_recording_that_is_gone_is_skipped(tiny_run, small_corpus, tmp_path):
    shutil.copytree(small_corpus, tmp_path / "sounds")
    review = Review(tiny_run, tmp_path / "sounds", tmp_path / "out", reviewer="ann")
    items = {item.key: item for item in review.items}
    item = review.next()
    (tmp_path / "out" / "annotations.csv").unlink()
    (tmp_path / "out" / "annotations.csv").mkdir()
    html, _ = pressed(review, items, "normal", item.key, "ann", [])
    assert "annotations.csv: " in html and 'class="problem"' in html and len(review.answers.active()) == 1
    (tmp_path / "out" / "annotations.csv").rmdir()
    gone = review.next()
    gone.path.unlink()
    html = shown_html(review, "ann")
    assert gone.path.name in html and 'class="problem"' in html and "Nothing is left" not in html
    html, _ = pressed(review, items, "normal", gone.key, "ann", [])
    assert 'class="problem"' in html and len(review.answers.active()) == 1
    pressed(review, items, "skip", gone.key, "ann", [])
    assert [answer.text for answer in review.answers.active()] == ["normal", "skipped"]


def test_names_are_escaped_and_problems_are_shown(tiny_run, small_corpus, tmp_path):
    name = "<img src=x onerror=alert(1)>.wav"
    (tmp_path / "sounds").mkdir()
    shutil.copy(sorted(small_corpus.glob("*.wav"))[0], tmp_path / "sounds" / name)
    review = Review(tiny_run, tmp_path / "sounds", tmp_path / "out", reviewer="ann", blind=True)
    html = shown_html(review, "ann")
    assert "<img src=x" not in html and "&lt;img src=x" in html and 'class="bar"' not in html
    key = review.next().key
    html, marks = pressed(review, {item.key: item for item in review.items}, "normal", key, "", ["stridor"])
    assert 'class="problem"' in html and marks == ["stridor"] and review.answers.active() == []
    pressed(review, {item.key: item for item in review.items}, "normal", key, "ann", [])
    assert [row.recording for row in review.answers.agreed()] == [name]
    while review.next():
        review.answer("skip")
    assert "Nothing is left to review" in shown_html(review, "ann")
