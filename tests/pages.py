"""Check HTML pages: parse them, and open them in a browser."""

import shutil
from html.parser import HTMLParser

import pytest

_VOID = {"meta", "img", "br", "hr", "input", "link", "source", "use", "circle", "path"}


class Page(HTMLParser):
    """Tags with their attributes in order, the text, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.open, self.unbalanced = [], [], [], []
        self.feed(text)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in _VOID or (tag == "use" and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def addresses(self):
        """All addresses that a browser could fetch."""
        names = ("src", "href", "srcset", "poster", "data", "action", "formaction", "xlink:href", "background")
        return [a[name] for _, a in self.tags for name in names if a.get(name)]


def check_page(text):
    """Check that tags are closed, no script and no outside address is in the page, and images have descriptions."""
    page = Page(text)
    assert page.unbalanced == []
    assert not page.all("script") and not page.all("link") and not page.all("iframe") and not page.all("object")
    assert all(
        address.startswith(("data:image/png;base64,", "data:audio/wav;base64,", "#")) for address in page.addresses()
    )
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "script" not in policy and "http" not in policy
    assert all(a.get("alt") for a in page.all("img"))
    assert "<section" not in text[text.find("<nav") : text.find("</nav>")]
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert len(anchors) == sum("id" in a for _, a in page.tags)
    assert {address[1:] for address in page.addresses() if address.startswith("#")} <= anchors
    return page


def open_in_browser(path, widths=(1280, 390)):
    """Open a page in headless Chromium at each width.

    Returns:
        {width: {"said": console lines and errors, "fetched": addresses, "overflow": pixels beyond the window}}.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    seen = {}
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in widths:
            page = browser.new_page(viewport={"width": width, "height": 900})
            said, fetched = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, fetched=fetched: fetched.append(request.url))
            page.goto(path.resolve().as_uri())
            page.wait_for_load_state("load")
            overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            facts = page.evaluate(
                """() => ({
                  images: [...document.images].every(i => i.complete && i.naturalWidth > 0),
                  players: [...document.querySelectorAll('audio')].map(a => a.error ? a.error.message : ''),
                })"""
            )
            outside = [url for url in fetched if not url.startswith(("file:", "data:"))]
            seen[width] = {"said": said, "fetched": outside, "overflow": overflow, **facts}
            page.close()
        browser.close()
    return seen
